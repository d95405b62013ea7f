"""Which tensors the `modules` of a recipe mean: by the words of their names, no architecture table.

A module is the prefix of a stack (`model.language_model.layers`), a leading part of it
(`language_model`), or any word of it (`encoder`, `vision_tower`). Names that mergekit uses for
parts of vision-language models mean the words that checkpoints have for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ..messages import nearest, printable

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


# Patterns of `include` and `exclude`: unselected tensors are copied from the base.


def matches_pattern(pattern: str, name: str) -> bool:
    """Match whole names if the pattern has `*`, `?` or `[`, else consecutive words of the name.

    `mlp.gate` is in `model.layers.3.mlp.gate.weight`, not in `…mlp.gate_proj.weight`.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return f".{pattern.strip('.')}." in f".{name}."


def is_selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a tensor is merged: what is excluded is not, whatever includes it."""
    wanted = not include or any(matches_pattern(pattern, name) for pattern in include)
    return wanted and not any(matches_pattern(pattern, name) for pattern in exclude)


def unused_patterns(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Describe the patterns that no name matches."""
    words = {word for name in names for word in name.split(".") if not word.isdigit()}
    return [
        f"no tensor matches '{printable(pattern)}'{nearest(pattern.strip('.*'), words)}"
        for pattern in patterns
        if not any(matches_pattern(pattern, name) for name in names)
    ]
