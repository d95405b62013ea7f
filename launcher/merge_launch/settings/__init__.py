"""Options as dataclasses: a field is a flag, an environment variable and a profile key."""
