"""`ftkit plan`: each question that it answers is a file."""
