"""One training run: set up, stepped, scored, checkpointed, saved."""
