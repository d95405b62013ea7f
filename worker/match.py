"""Which tensors of the models belong together: by name and shape, wherever their shards are.

The output has the names of the base (or first) model. Every difference between the models has a
rule here and is either an error with the names, or a note that ends up in the manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .checkpoint import Checkpoint, is_quantised
from .dtypes import Kind
from .errors import InputError, first_names
from .header import TensorInfo


@dataclass(frozen=True, slots=True)
class Match:
    """One output tensor: its name, and what it is made of, one entry per model that has it."""

    name: str
    sources: tuple[tuple[int, TensorInfo], ...]  # (number of the model, its tensor)
    merged: bool  # else copied from the first source


@dataclass(frozen=True)
class Matches:
    """All output tensors in the order of the first model's files, and what was noticed."""

    tensors: tuple[Match, ...]
    missing: tuple[str, ...]  # not in every model; copied from the first
    surplus: tuple[str, ...]  # not in the first model; left out
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """What to do with names that only some models have: `error` unless the user says otherwise."""

    missing: str = "error"  # or "copy": take the tensor of the base as it is
    surplus: str = "error"  # or "drop"


def match_by_name(models: Sequence[Checkpoint], labels: Sequence[str], rules: Rules) -> Matches:
    """Match `models` to the first of them; `labels` name them in messages.

    InputError lists every name or shape that does not fit, with counts and the first names.
    """
    first = models[0]
    faults = [f"{labels[i]}: {why}" for i, m in enumerate(models) if (why := is_quantised(m))]
    if faults:
        hint = "dequantise first: load with transformers, model.dequantize(), save_pretrained(…)"
        raise InputError("\n".join([*faults, f"  {hint}"]))
    notes: list[str] = []
    missing, surplus = _lone_names(models, labels, rules, notes)
    tensors: list[Match] = []
    shapes: list[str] = []
    mixed: list[str] = []
    for shard in first.shards:
        for info in shard.tensors:
            peers = [
                (i, m.tensors[info.name]) for i, m in enumerate(models) if info.name in m.tensors
            ]
            wrong = [(i, p) for i, p in peers if p.shape != info.shape]
            if wrong:
                number, peer = wrong[0]
                shapes.append(
                    f"{info.name} is {list(info.shape)} in {labels[0]} "
                    f"but {list(peer.shape)} in {labels[number]}"
                )
            kinds = {peer.dtype.kind for _, peer in peers}
            if len(kinds) > 1:
                mixed.append(info.name)
            whole = len(peers) == len(models) and kinds == {Kind.FLOAT}
            tensors.append(Match(info.name, tuple(peers), whole))
    if shapes:
        faults.append(f"{len(shapes)} tensors differ in shape:\n  " + "\n  ".join(shapes[:3]))
        if len(shapes) > 3:
            faults[-1] += f"\n  and {len(shapes) - 3} more"
    if mixed:
        faults.append(f"{len(mixed)} tensors are floating in one model only: {first_names(mixed)}")
    if faults:
        raise InputError("\n".join([*faults, "  these models are not of one family"]))
    notes += _dtype_note(tensors, labels)
    return Matches(tuple(tensors), missing, surplus, tuple(notes))


def _lone_names(
    models: Sequence[Checkpoint], labels: Sequence[str], rules: Rules, notes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names that not every model has. Errors where leaving them alone would be wrong."""
    first = models[0]
    missing: dict[str, None] = {}
    surplus: dict[str, None] = {}
    faults: list[str] = []
    for label, model in zip(labels[1:], models[1:], strict=True):
        lost = [name for name in first.tensors if name not in model.tensors]
        more = [name for name in model.tensors if name not in first.tensors]
        heavy = [n for n in lost if first.tensors[n].dtype.kind is Kind.FLOAT]
        extra = [
            n
            for n in more
            if model.tensors[n].dtype.kind is Kind.FLOAT and not _is_tied_head(n, first)
        ]
        if heavy and rules.missing == "error":
            faults.append(
                f"{label}: {len(heavy)} of the {len(first.tensors)} tensors of {labels[0]} are "
                f"missing: {first_names(heavy)}"
            )
        if extra and rules.surplus == "error":
            faults.append(
                f"{label}: {len(extra)} tensors that {labels[0]} has not: {first_names(extra)}"
            )
        missing |= dict.fromkeys(lost)
        surplus |= dict.fromkeys(more)
    if faults:
        hint = "--missing copy takes missing tensors from the base, --surplus drop omits extra ones"
        raise InputError("\n".join([*faults, f"  {hint}"]))
    if missing:
        notes.append(f"{len(missing)} tensors copied from {labels[0]}: {first_names(missing)}")
    if surplus:
        notes.append(f"{len(surplus)} tensors not in {labels[0]} left out: {first_names(surplus)}")
    return tuple(missing), tuple(surplus)


def _is_tied_head(name: str, first: Checkpoint) -> bool:
    """A stored output head that the first model ties to its embedding: nothing is lost with it."""
    config = first.config
    text = config.get("text_config")
    tied = config.get(
        "tie_word_embeddings", isinstance(text, dict) and text.get("tie_word_embeddings")
    )
    return bool(tied) and name.rsplit(".", 2)[-2:] == ["lm_head", "weight"]


def _dtype_note(tensors: Sequence[Match], labels: Sequence[str]) -> list[str]:
    """One line when models store the same tensors with different precision."""
    mixed = [m for m in tensors if m.merged and len({info.dtype for _, info in m.sources}) > 1]
    if not mixed:
        return []
    found = ", ".join(f"{labels[i]} {info.dtype.torch_name}" for i, info in mixed[0].sources)
    return [f"{len(mixed)} tensors are stored with different dtypes ({found}); merged in float32"]
