"""A trained model in other forms: merged into its base, in GGUF, ready for the hub; a tensor at a time."""
