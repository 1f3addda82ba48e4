"""The methods: one file each, holding all that sets it apart from the others."""
