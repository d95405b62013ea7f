"""Adapters extracted from fine-tunes or merged from adapters. Merges of models do not use this."""
