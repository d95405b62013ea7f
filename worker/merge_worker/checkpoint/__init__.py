"""Folder or Hub name to Checkpoint, from headers only."""
