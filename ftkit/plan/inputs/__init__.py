"""The inputs of a plan: which model, where it would run, and which batches it would take."""
