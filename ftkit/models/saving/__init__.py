"""Writing the weights of a model, a tensor at a time, as safetensors."""
