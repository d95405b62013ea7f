"""Matrices of experts that are not copies: with noise added, and multiplied by a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..algorithms.normal_numbers import SCRATCH_BYTES, normal_numbers
from ..algorithms.random_masks import RandomStream
from ..dtypes import BY_NAME
from ..method import Block
from ..tensors.source import BufferSize, DerivedTensor, Reader, TensorSource, buffer_size
from .stages import ReaderScratch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChangedTensor(DerivedTensor):
    """`scale` times the input with N(0, 1) times `noise` added, in float32 or wider.

    The random numbers depend on `seed` and the name of this tensor, and on nothing else.
    """

    kind = "Changed"

    scale: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        out.copy_(reader.read(self.inputs[0], start, stop, f"{slot}0"))
        if self.noise:
            stream = RandomStream.of(self.seed, self.name, 0)
            block = Block([out], start, ReaderScratch(reader, slot))
            out.add_(normal_numbers(stream, block), alpha=self.noise)
        out.mul_(self.scale)

    def fingerprint(self) -> object:
        return [self.scale, self.noise, self.seed, self.name]

    def buffer_size(self) -> BufferSize:
        inner = buffer_size(self.inputs[0])
        more = SCRATCH_BYTES + 2 * self.dtype.bytes if self.noise else 0
        return BufferSize(inner.per_element + more, inner.fixed)


def changed(
    source: TensorSource, name: str, scale: float = 1.0, noise: float = 0.0, seed: int = 0
) -> TensorSource:
    """Return a matrix of an expert under its new name, itself where nothing changes it."""
    if scale == 1.0 and noise == 0.0:
        return source
    dtype = BY_NAME["F64" if source.dtype.bits > 32 else "F32"]
    declared = source.declared_dtype or source.dtype
    return ChangedTensor(name, dtype, source.shape, (source,), declared, scale, noise, seed)
