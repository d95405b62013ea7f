"""Tensors of the `modules` of a recipe, by the words of their names, without an architecture table.

A module is the prefix of a stack (`model.language_model.layers`), a leading part of it
(`language_model`), or any word of it (`encoder`, `vision_tower`). Names that mergekit uses for
parts of vision-language models mean the words that checkpoints have for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from ..messages import nearest, printable
from ..tensors.source import TensorSource

_SYNONYMS = {
    "text_decoder": ("language_model", "text_model", "llm", "lm_head", "thinker"),
    "vision_tower": ("vision_tower", "vision_model", "visual", "vision_encoder", "vision"),
    "vision_model": ("vision_model", "vision_tower", "visual", "vision_encoder", "vision"),
    "multi_modal_projector": ("multi_modal_projector", "mm_projector", "projector", "connector"),
}


def tensors_of(
    module: str, modules: Sequence[str], tensors: Mapping[str, TensorSource]
) -> dict[str, TensorSource]:
    """Return the tensors of `module` among all `modules`; `default` has those of no other."""
    others = [name for name in modules if name != "default"]

    def owner(name: str) -> str:
        places = {m: place for m in others if (place := _place(m, name)) is not None}
        return min(places, key=lambda m: places[m], default="default")

    return {name: tensor for name, tensor in tensors.items() if owner(name) == module}


def _place(module: str, name: str) -> tuple[int, int] | None:
    """Return the place of a module's words in a name; the earliest, then the longest, owns it."""
    places = []
    for synonym in _SYNONYMS.get(module, (module.strip("."),)):
        before, match, _ = _dotted(name).partition(f".{synonym}.")
        if match:
            places.append((before.count("."), -synonym.count(".") - 1))
    return min(places, default=None)


# Patterns of `include` and `exclude`: unselected tensors are copied from the base.


def matches_pattern(pattern: str, name: str) -> bool:
    """Match whole names if the pattern has `*`, `?` or `[`, else consecutive words of the name.

    `mlp.gate` is in `model.layers.3.mlp.gate.weight`, not in `…mlp.gate_proj.weight`. A sub-folder
    with weights of its own is the first word of their names.
    """
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern)
    return f".{pattern.strip('./')}." in _dotted(name)


def _dotted(name: str) -> str:
    return f".{name}.".replace("/", ".")


def is_selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a tensor is merged; `exclude` takes precedence over `include`."""
    wanted = not include or any(matches_pattern(pattern, name) for pattern in include)
    return wanted and not any(matches_pattern(pattern, name) for pattern in exclude)


def unused_patterns(patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Describe the patterns that no name matches."""
    words = {word for name in names for word in _dotted(name).split(".") if not word.isdigit()}
    return [
        f"no tensor matches '{printable(pattern)}'{nearest(pattern.strip('.*'), words)}"
        for pattern in patterns
        if not any(matches_pattern(pattern, name) for name in names)
    ]
