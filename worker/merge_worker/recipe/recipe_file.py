"""The text of a recipe in a file: the file as it is, or the recipe in a model card."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import UsageError
from ..messages import first_names

RECIPE = "mergekit_config.yml"
"""Name of the recipe in the output folder of its merge."""

PARTIAL = ".merge-partial"
"""The folder in OUT that holds everything until the commit."""

WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".npz", ".pkl", ".h5", ".onnx",
)  # fmt: skip
"""Endings of files that hold weights: such a file is a model, any other may be a recipe."""

_BLOCK = re.compile(
    r"^(`{3,}|~{3,}) *ya?ml[^\n]*\n(.*?)^\1", re.MULTILINE | re.DOTALL | re.IGNORECASE
)
_RECIPE = re.compile(r"^\s*\"?(merge_method|experts|genome)\"?\s*:", re.MULTILINE)


class RecipeText(NamedTuple):
    """A recipe, and the line of its file that it begins on."""

    text: str
    first_line: int = 1


def recipe_in(text: str, where: str) -> RecipeText:
    """Return the recipe in the text of a file. UsageError for a model card without one.

    The recipe of a model card (`.md`) is its YAML block with a `merge_method`.
    """
    if not where.lower().endswith((".md", ".markdown")):
        return RecipeText(text)
    blocks = [match for match in _BLOCK.finditer(text) if _RECIPE.search(match[2])]
    found = [RecipeText(m[2], text.count("\n", 0, m.start(2)) + 1) for m in blocks]
    if not found:
        raise UsageError(
            f"{where}: no recipe in this text; a model card has it in a YAML block with "
            f"'merge_method'"
        )
    if len(found) > 1:
        lines = first_names([str(each.first_line) for each in found])
        raise UsageError(f"{where}: several recipes, on lines {lines}; save one of them to a file")
    return found[0]
