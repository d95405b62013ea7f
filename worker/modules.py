"""Which tensors the `modules` of a recipe mean: by the words of their names, no architecture table.

A module is the prefix of a stack (`model.language_model.layers`), a leading part of it
(`language_model`), or any word of it (`encoder`, `vision_tower`). Names that mergekit uses for
parts of vision-language models mean the words that checkpoints have for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

_SYNONYMS = {
    "text_decoder": ("language_model", "text_model", "llm", "lm_head", "thinker"),
    "vision_tower": ("vision_tower", "vision_model", "visual", "vision_encoder", "vision"),
    "vision_model": ("vision_model", "vision_tower", "visual", "vision_encoder", "vision"),
    "multi_modal_projector": ("multi_modal_projector", "mm_projector", "projector", "connector"),
    "shared": ("shared",),
}

T = TypeVar("T")


def tensors_of(module: str, modules: Sequence[str], tensors: Mapping[str, T]) -> dict[str, T]:
    """The tensors that belong to `module` among all `modules` of a recipe.

    `default` takes whatever no other module does.
    """
    others = [name for name in modules if name != "default"]
    if module == "default" and not others:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        places = {m: place for m in others if (place := _place(m, name)) is not None}
        owner = min(places, key=lambda m: places[m]) if places else "default"
        if owner == module:
            found[name] = tensor
    return found


def _place(module: str, name: str) -> tuple[int, int] | None:
    """Where in the name the module's words stand: the earlier, and the longer, the more it owns."""
    words = name.split(".")
    best = None
    for synonym in _SYNONYMS.get(module, (module.strip("."),)):
        wanted = synonym.split(".")
        for start in range(len(words) - len(wanted) + 1):
            if words[start : start + len(wanted)] == wanted:
                place = (start, -len(wanted))
                best = min(best, place) if best else place
                break
    return best
