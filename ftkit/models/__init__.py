"""Models: where they come from, how they are built, and what a method makes of them."""
