"""Files, hub names and demo data to token arrays and batches, with label names and the data's own report."""
