"""Checkpoints: their files, the thread that writes them, and whether one is of the run at hand."""
