"""The optimizer step: the heart, run by training, profiling and planning alike, and who may watch it."""
