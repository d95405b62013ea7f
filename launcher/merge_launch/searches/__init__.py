"""Searches: their files, jobs with several workers, and tables of results."""
