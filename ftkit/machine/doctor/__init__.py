"""A look at this machine: the state of all that training needs, and what to install or to set."""
