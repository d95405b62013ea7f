"""A merge as a job: source words, preflight checks, payload."""
