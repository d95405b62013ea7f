"""Text to Recipe: YAML, schema, validation, parameters. Reads no model."""

from .parser import parse
from .recipe_file import RecipeText, recipe_in

__all__ = ["RecipeText", "parse", "recipe_in"]
