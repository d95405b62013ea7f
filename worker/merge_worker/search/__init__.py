"""Search for values of a recipe: the file, its candidates, the study, the loop, the results."""
