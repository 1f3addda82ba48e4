"""A trained model in use: opened by the name of its run, asked, scored on other data."""
