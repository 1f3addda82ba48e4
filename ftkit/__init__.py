"""Fine-tune transformer models where memory is scarce: planned before, exact while, proven after."""

__version__ = "0.1.0"
