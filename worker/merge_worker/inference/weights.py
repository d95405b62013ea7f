"""The tensors of a checkpoint by their names in memory, read by byte range into torch tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from ..checkpoint.folder import Checkpoint
from ..checkpoint.hub import Hub
from ..checkpoint.reader import Files
from ..dtypes import Kind
from ..tensors.host import host_view
from ..tensors.source import StoredTensor, TensorSource, stored_inputs

AT_ONCE = 1 << 24
"""Elements of a derived tensor that are computed at a time, which bounds its buffers."""


class Weights:
    """Reads tensors of a checkpoint on the host; close it after use. Not for several threads.

    Stored tensors are read straight into the memory of the result, derived ones (an adapter on its
    base, experts stacked, FP8 with scales) with buffers that `release` frees.
    """

    def __init__(self, checkpoint: Checkpoint, hub: Hub | None = None) -> None:
        self.checkpoint = checkpoint
        self.bytes_read = 0
        self._files = Files(hub)
        self._slots: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.tensors[name].shape

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Return a whole tensor, converted to `dtype` if it is floating. Raises InputError."""
        source = self.checkpoint.tensors[name]
        return _converted(self._range(source, 0, source.count), dtype).view(source.shape)

    def rows(self, name: str, first: int, stop: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return rows [first, stop) of a tensor along its first axis."""
        source = self.checkpoint.tensors[name]
        width = prod(source.shape[1:])
        values = self._range(source, first * width, stop * width)
        return _converted(values, dtype).view(stop - first, *source.shape[1:])

    def gather(self, name: str, rows: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Return the listed rows of a tensor, in their order."""
        source = self.checkpoint.tensors[name]
        width = prod(source.shape[1:])
        kind: torch.dtype = getattr(torch, source.dtype.torch_name)
        out = torch.empty((len(rows), *source.shape[1:]), dtype=kind)
        for place, row in enumerate(rows):
            self._read_into(source, row * width, (row + 1) * width, out[place].view(-1))
        return _converted(out, dtype)

    def nbytes(self, names: Iterable[str]) -> int:
        """Return the bytes on disk of tensors."""
        return sum(self.checkpoint.tensors[name].nbytes for name in names)

    def will_need(self, names: Iterable[str]) -> None:
        """Tell the kernel to read tensors ahead; only a hint."""
        for name in names:
            for stored in stored_inputs(self.checkpoint.tensors[name]):
                self._files.will_need(stored.file, stored.offset, stored.nbytes)

    def release(self) -> None:
        """Free the buffers of derived tensors."""
        self._slots.clear()

    def close(self) -> None:
        self.release()
        self._files.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _range(self, source: TensorSource, start: int, stop: int) -> Tensor:
        kind: torch.dtype = getattr(torch, source.dtype.torch_name)
        out = torch.empty(stop - start, dtype=kind)
        self._read_into(source, start, stop, out)
        return out

    def _read_into(self, source: TensorSource, start: int, stop: int, out: Tensor) -> None:
        if isinstance(source, StoredTensor):
            offset = self._files.begin(source) + start * source.dtype.bytes
            self._files.read(source.file, offset, host_view(out.view(torch.uint8)))
            self.bytes_read += out.nbytes
            return
        for begin in range(start, stop, AT_ONCE):
            end = min(stop, begin + AT_ONCE)
            source.read_into(self, begin, end, out[begin - start : end - start], "")

    # What derived tensors read their inputs with.

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        """Return elements [start, stop) of a source in the memory of a slot."""
        out = self.take(slot, stop - start, source.dtype.torch_name)
        if isinstance(source, StoredTensor):
            self._read_into(source, start, stop, out)
        else:
            source.read_into(self, start, stop, out, f"{slot}.")
        return out

    def take(self, slot: str, count: int, dtype: str) -> Tensor:
        """Return 1-D memory of a slot."""
        kind: torch.dtype = getattr(torch, dtype)
        size = count * kind.itemsize
        buffer = self._slots.get(slot)
        if buffer is None or buffer.numel() < size:
            self._slots.pop(slot, None)
            buffer = self._slots[slot] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(kind)


def is_floating(source: TensorSource) -> bool:
    return source.dtype.kind is Kind.FLOAT


def _converted(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not values.is_floating_point():
        return values
    return values.to(dtype)
