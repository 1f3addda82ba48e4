"""The structure of a model: its layers, its heads, and the modules that get an adapter."""
