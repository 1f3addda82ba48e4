"""The frozen trunk: where it ends, what crosses there, and how that is kept on a disk so that it is computed once."""
