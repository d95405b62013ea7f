"""One vocabulary for all models of a merge."""
