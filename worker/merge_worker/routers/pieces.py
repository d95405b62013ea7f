"""Token ids of a data set cut into pieces, a held-out part of them, and the batches of each step.

All depends on the data, the options and the seed alone, so that a run that was stopped continues
with the batch it would have had.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

HELD_OUT = 10
"""One piece in so many is held out."""

MOST_HELD_OUT = 64
IGNORED = -100
"""The label of a token that does not count, as in torch's cross entropy."""


class Piece(NamedTuple):
    """Tokens in a row: their ids, and for each whether it counts as a prediction."""

    ids: tuple[int, ...]
    counts: tuple[bool, ...]

    @property
    def predicted(self) -> int:
        """Number of tokens that are predicted and count; the first has nothing before it."""
        return sum(self.counts[1:])


@dataclass(frozen=True)
class Data:
    """Pieces to train on and pieces held out, of one list of samples."""

    training: tuple[Piece, ...]
    held_out: tuple[Piece, ...]
    samples: int
    files: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of all pieces."""
        parts = [[p.ids, p.counts] for p in (*self.training, *self.held_out)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {
            "files": list(self.files),
            "sha256": self.digest,
            "samples": self.samples,
            "tokens": sum(len(piece.ids) for piece in self.training),
            "held_out_tokens": sum(len(piece.ids) for piece in self.held_out),
        }


def split(samples: Iterable[tuple[Sequence[int], Sequence[bool]]], length: int, where: str) -> Data:
    """Cut samples into pieces of at most `length` tokens and hold some out. Raises InputError.

    A sample is held out with all its pieces; a single sample is parted.
    """
    cut = [pieces for ids, counts in samples if (pieces := _cut(ids, counts, length))]
    if not cut:
        raise InputError(f"{where}: no text to train on; a sample needs two tokens or more")
    parts = cut if len(cut) > 1 else [[piece] for piece in cut[0]]
    if len(parts) < 2:
        raise InputError(
            f"{where}: one piece of text, and one has to be held out to see what training did\n"
            f"  give more text, or a smaller --length than {length}"
        )
    every = min(HELD_OUT, len(parts))
    held = [piece for number, part in enumerate(parts) if number % every == 0 for piece in part]
    rest = [piece for number, part in enumerate(parts) if number % every for piece in part]
    return Data(tuple(rest), tuple(held[:MOST_HELD_OUT]), len(cut))


def _cut(ids: Sequence[int], counts: Sequence[bool], length: int) -> list[Piece]:
    starts = range(0, len(ids), length)
    pieces = [Piece(tuple(ids[s : s + length]), tuple(counts[s : s + length])) for s in starts]
    return [piece for piece in pieces if piece.predicted]


class Order:
    """The pieces of each step: every piece once, in an order of the seed, then all again."""

    def __init__(self, pieces: Sequence[Piece], batch: int, seed: int) -> None:
        self._pieces, self._batch, self._seed = pieces, batch, seed

    def step(self, number: int) -> list[Piece]:
        """Return the pieces of step `number`, counted from 0."""
        places = range(number * self._batch, (number + 1) * self._batch)
        orders = {place // len(self._pieces): Tensor() for place in places}
        for round_ in orders:
            chance = torch.Generator().manual_seed(self._seed * 1_000_003 + round_)
            orders[round_] = torch.randperm(len(self._pieces), generator=chance)
        turns = (divmod(place, len(self._pieces)) for place in places)
        return [self._pieces[int(orders[round_][index])] for round_, index in turns]


class Batch(NamedTuple):
    """Pieces as tensors [B, T], padded behind: ids, mask of real tokens, labels to predict."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def collate(pieces: Sequence[Piece], pad: int, device: torch.device) -> Batch:
    """Return pieces side by side on a device."""
    width = max(len(piece.ids) for piece in pieces)
    ids, mask, labels = [], [], []
    for piece in pieces:
        rest = width - len(piece.ids)
        ids.append([*piece.ids, *[pad] * rest])
        mask.append([1] * len(piece.ids) + [0] * rest)
        wanted = [i if use else IGNORED for i, use in zip(piece.ids, piece.counts, strict=True)]
        labels.append([*wanted, *[IGNORED] * rest])
    tensors = (torch.tensor(rows, device=device) for rows in (ids, mask, labels))
    return Batch(*tensors)
