"""Many configurations: their axes, and the trials that run them."""
