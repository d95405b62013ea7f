"""A model as transformers loads it, and what it says: `try`. Transformers is imported late."""
