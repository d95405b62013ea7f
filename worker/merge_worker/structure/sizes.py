"""Widths and depths of models, compared before their layouts and tensors are.

A field of the config counts where shapes confirm it: tensors of one name have its values as
extents, or stacks of layers have them as depths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..checkpoint.folder import Checkpoint
from ..messages import counted, first_names, printable
from ..tensors.source import TensorSource
from .components import is_computed
from .embeddings import embeddings, is_vocabulary
from .layers import counts, gradient_depths

_WIDTH = re.compile(
    r".*(hidden|width|d_model|embd|embed|dim|intermediate|inner|ffn|d_ff|state|rank|experts).*"
)
_HEADS = re.compile(r".*(heads?|groups)")
MOST = 4


class Sized(NamedTuple):
    """A model as far as it is merged: its name in messages, its config, the tensors selected."""

    label: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSource]

    @classmethod
    def of(cls, model: Checkpoint, label: str, merges: Callable[[str], bool]) -> Sized:
        return cls(label, model.config, {n: t for n, t in model.tensors.items() if merges(n)})


class Depths(NamedTuple):
    """A difference in depth: its message, and whether the second model has more layers."""

    text: str
    deeper: bool


def width_fault(first: Sized, other: Sized) -> str | None:
    """Return how two models differ in width, with a tensor that shows it; None if they do not.

    A difference in depth is named too.
    """
    listed, example = _widths(first, other)
    if not listed:
        return None
    kinds = {_kind(field) for field in listed}
    kind = kinds.pop() if len(kinds) == 1 else "sizes"
    texts = first_names([*listed, *_depths(first, other)], MOST)
    return f"{other.label}: {texts}; {kind} cannot be merged{example}"


def size_differences(first: Sized, other: Sized) -> str:
    """Return in what sizes two models differ: `hidden_size 64 against 32, 8 layers against 4`."""
    return first_names([*_widths(first, other)[0], *_depths(first, other)], MOST)


def _kind(field: str) -> str:
    if "experts" in field:
        return "numbers of experts"
    return "numbers of heads" if _HEADS.fullmatch(field.partition(" ")[0]) else "widths"


def _depths(first: Sized, other: Sized) -> list[str]:
    return [f"{counted(new, 'layers')} against {old}" for new, old in _depth_pairs(first, other)]


def _widths(first: Sized, other: Sized) -> tuple[list[str], str]:
    """Return the fields that differ with their values, and a line with a tensor that shows it."""
    examples: dict[tuple[int, int], str] = {}
    for name, source in first.tensors.items():
        peer = other.tensors.get(name)
        if peer is None or peer.shape == source.shape:
            continue
        shown = f"{printable(name)} is {list(source.shape)} in {first.label}"
        shown = f"\n  {shown} but {list(peer.shape)} in {other.label}"
        examples = {**dict.fromkeys(_unequal(source, peer), shown), **examples}
    columns = [{s.shape[1] for s in embeddings(each.tensors)} for each in (first, other)]
    apart = all(columns) and not columns[0] & columns[1]
    widest = (max(columns[0]), max(columns[1])) if apart else None
    pairs = _pairs(first.config, other.config, _WIDTH)
    fields = {key: pair for key, pair in pairs.items() if pair in {*examples, widest}}
    if widest and widest not in fields.values():
        fields["columns of embeddings"] = widest
    if not fields:
        for key, heads in _pairs(first.config, other.config, _HEADS).items():
            if extents := next((each for each in examples if _of_heads(each, heads)), None):
                fields[key] = heads
                examples[heads] = examples[extents]
    listed = [f"{key} {new} against {old}" for key, (old, new) in fields.items()]
    example = next((examples[pair] for pair in fields.values() if pair in examples), "")
    return listed, example


def depth_fault(first: Sized, other: Sized) -> Depths | None:
    """Return how two models differ in depth; None if they do not."""
    pairs = _depth_pairs(first, other)
    if not pairs:
        return None
    lines = []
    for (new, old), key in pairs.items():
        place = f" ({key.rstrip('.')})" if "_config." in key or len(pairs) > 1 else ""
        lines.append(
            f"{other.label} has {counted(new, 'layers')}{place}, {first.label} has {old}: "
            f"see slices"
        )
    return Depths("\n".join(lines), any(new > old for new, old in pairs))


def _depth_pairs(first: Sized, other: Sized) -> dict[tuple[int, int], str]:
    """Return the numbers of layers that differ, the other's first, with the field that says so."""
    mine, theirs = _declared_depths(first), _declared_depths(other)
    if not all(counts(model.config) for model in (first, other)):
        mine, theirs = (gradient_depths(m.tensors, m.config) for m in (first, other))
    return {(theirs[k], n): k for k, n in reversed(mine.items()) if theirs.get(k, n) != n}


def _unequal(source: TensorSource, peer: TensorSource) -> Iterator[tuple[int, int]]:
    """Yield the extents that differ, without rows of tokens and buffers that models compute."""
    if len(source.shape) != len(peer.shape) or is_computed(source.name, source.shape):
        return
    begin = 1 if is_vocabulary(source.name) else 0
    for pair in zip(source.shape[begin:], peer.shape[begin:], strict=True):
        if pair[0] != pair[1]:
            yield pair


def _of_heads(extents: tuple[int, int], heads: tuple[int, int]) -> bool:
    """Return whether two extents are those of unequal numbers of equal heads."""
    if min(heads) < 1 or heads[0] == heads[1]:
        return False
    widths = [divmod(extent, count) for extent, count in zip(extents, heads, strict=True)]
    return widths[0] == widths[1] and widths[0][1] == 0


def _pairs(
    mine: Mapping[str, Any], theirs: Mapping[str, Any], pattern: re.Pattern[str]
) -> dict[str, tuple[int, int]]:
    """Return the values of fields of two configs by name; one that lacks it has the first's."""
    others = dict(_numbers(theirs, "", pattern))
    return {key: (n, others.get(key, n)) for key, n in _numbers(mine, "", pattern)}


def _numbers(
    section: Mapping[str, Any], prefix: str, pattern: re.Pattern[str]
) -> Iterator[tuple[str, int]]:
    """Yield the fields whose names match, by dotted name without `text_config`."""
    for key, value in section.items():
        if type(value) is int and pattern.fullmatch(key):
            yield prefix + key, value
        elif isinstance(value, dict) and key.endswith("_config"):
            inner = prefix if key == "text_config" else f"{prefix}{key}."
            yield from _numbers(value, inner, pattern)


def _declared_depths(model: Sized) -> dict[str, int]:
    """Return the layer counts of the config that a stack confirms, by field."""
    stacks = gradient_depths(model.tensors, model.config).values()
    return {
        ".".join(count.path).removeprefix("text_config."): count.value
        for count in counts(model.config)
        if count.value in stacks
    }
