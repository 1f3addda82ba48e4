"""The optimizer step and its loss: the heart, run by training, profiling and planning alike."""
