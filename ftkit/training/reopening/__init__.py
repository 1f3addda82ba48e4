"""What a run has saved is opened in a new process and compared with the model in memory."""
