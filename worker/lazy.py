"""The result of a document that others use, made while they stream: never a folder on disk.

That can be where every tensor of it is a sum of its sources element by element; what needs an
earlier look at a whole tensor is kept on disk instead (`planned`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .dtypes import DType
from .methods._define import Block, Final
from .origin import Derived, Origin, Reader, Room, add, room
from .step import Step

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Merged(Derived):
    """What a step makes of its sources. `key` is that of the document's plan."""

    step: Step = field(kw_only=True)
    key: str = field(kw_only=True)

    def fill(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        final, grid = _final(self.step), self.step.grid
        assert isinstance(final, Final)
        for number in range(start // grid.block, -(-stop // grid.block)):
            first, last = grid.span(number, 1)
            read = [reader.read(p, first, last, f"{slot}{n}") for n, p in enumerate(self.parts)]
            here = reader.take(f"{slot}out", last - first, self.dtype.torch_name)
            final.merge(Block(read, first, _Scratch(reader, slot)), here)
            low, high = max(start, first), min(stop, last)
            out[low - start : high - start].copy_(here[low - first : high - first])

    def token(self) -> object:
        return [self.key, self.name]

    def room(self) -> Room:
        """A block at a time, whatever the run."""
        sources = add(*(room(part) for part in self.parts))
        block = min(self.step.grid.block, max(1, self.count))
        each = sources.per_element + self.dtype.bytes + self.step.scratch
        return Room(0, block * each + sources.fixed)


@dataclass(frozen=True)
class _Scratch:
    """Memory of the reader that belongs to one derived tensor."""

    reader: Reader
    slot: str

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        return self.reader.take(f"{self.slot}{slot}", count, dtype)


def lazily(steps: Sequence[Step], said: Mapping[str, DType], key: str) -> dict[str, Origin] | None:
    """Every result by name, to be made on the way; None where one of them cannot be."""
    found: dict[str, Origin] = {}
    for step in steps:
        if step.task is None:
            found[step.name] = _as(step.sources[0], step.name, said[step.name])
            continue
        if step.grid.row is not None or not isinstance(_final(step), Final):
            return None
        found[step.name] = Merged(
            step.name, step.dtype, step.shape, step.sources, said[step.name], step=step, key=key
        )
    return found


def _final(step: Step) -> object:
    return step.method.begin(step.task) if step.method and step.task else None


def _as(source: Origin, name: str, said: DType) -> Origin:
    """A copied tensor under its name in the result."""
    return replace(source, name=name, said=said)
