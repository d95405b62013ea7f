"""PEFT adapters as inputs of a merge."""
