"""Adapters made: extracted from fine-tunes, or merged from adapters. No merge needs any of it."""
