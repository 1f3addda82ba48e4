"""What was planned and what was observed: records, and the files that hold them."""
