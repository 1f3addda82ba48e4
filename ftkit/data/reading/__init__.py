"""Files, folders and names on the hub to the rows of splits, exactly as they are written."""
