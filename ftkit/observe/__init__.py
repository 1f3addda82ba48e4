"""How a step is watched, on real tensors or on tensors without values."""
