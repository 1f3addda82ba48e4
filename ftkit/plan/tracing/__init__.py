"""The real training step traced on tensors without values."""
