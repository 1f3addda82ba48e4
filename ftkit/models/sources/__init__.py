"""Where models come from: found by their names, with their tokenizers, configurations, labels and weights."""
