"""`ftkit tune`: the command, and how it starts a training."""
