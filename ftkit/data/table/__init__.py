"""The columns of a split: chosen, joined into prompts, checked row by row."""
