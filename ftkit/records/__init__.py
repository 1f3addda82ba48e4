"""Records of what was planned and observed, and the files that hold them."""
