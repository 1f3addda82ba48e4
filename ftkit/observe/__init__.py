"""Watch a step, on real tensors or on tensors without values."""
