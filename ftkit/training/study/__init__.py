"""What the features of a frozen trunk say of a dataset: how well its labels can be told, and which may be wrong."""
