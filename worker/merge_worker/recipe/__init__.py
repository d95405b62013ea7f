"""Text to Recipe: YAML, schema, validation, parameters. Reads no model."""

from .parser import parse

__all__ = ["parse"]
