"""Tensors that are no data: one value everywhere, such as the biases of a new router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dtypes import DType
from .source import BufferSize, DerivedTensor, Reader

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ConstantTensor(DerivedTensor):
    """A tensor with `value` everywhere, read from nowhere."""

    kind = "Constant"

    value: float = 0.0

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        out.fill_(self.value)

    def fingerprint(self) -> object:
        return [self.value, list(self.shape)]

    def buffer_size(self) -> BufferSize:
        return BufferSize(0)


def zeros(name: str, dtype: DType, shape: tuple[int, ...]) -> ConstantTensor:
    """Return a tensor of zeros."""
    return ConstantTensor(name, dtype, shape, ())
