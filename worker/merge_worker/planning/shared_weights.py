"""Weight files beside the main ones of a model: merged where all models have them. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..checkpoint.folder import Checkpoint
from ..messages import first_names


def share_weights(
    models: Sequence[Checkpoint], labels: Sequence[str]
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Return the models with the sets of weights that all of them have, and notes on the rest.

    What the first model has alone is copied with its other files.
    """
    prefixes = [{weights.prefix for weights in model.files.sets} for model in models]
    shared = set.intersection(*prefixes)
    kept = tuple(model.with_weights(shared) for model in models)
    return kept, list(_notes(kept, labels))


def _notes(models: Sequence[Checkpoint], labels: Sequence[str]) -> Iterator[str]:
    first, *others = (model.files for model in models)
    if first.unmerged:
        yield f"{labels[0]}: weights that are copied, not merged: {first_names(first.unmerged)}"
    known = {*first.copied, *first.left_out, *(n for w in first.sets for n in w.paths)}
    for files, label in zip(others, labels[1:], strict=True):
        extra = [name for name in files.data if name not in known]
        if extra:
            yield f"{label}: files missing from {labels[0]} are left out: {first_names(extra)}"
