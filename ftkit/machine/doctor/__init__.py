"""What is on this machine, what of it works for training, and what to install or to set."""
