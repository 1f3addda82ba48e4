"""Activations: which of them a layer keeps, which it computes again, and which wait on the host."""
