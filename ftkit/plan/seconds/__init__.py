"""How long a step takes: its operators against what a device reaches, by its data sheet or as measured."""
