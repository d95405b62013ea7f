"""Vocabulary tensors with rows gathered in the order of other tokens while reading.

Ranges of rows are read in place; rows of tokens missing from a model come from other models, are
means of their rows, zeros, or the mean of all its own rows.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dtypes import BY_NAME, DType
from .source import (
    BufferSize,
    DerivedTensor,
    Reader,
    StoredTensor,
    TensorSource,
    add_sizes,
    buffer_size,
    declared_dtype,
)
from .views import slice_axis

if TYPE_CHECKING:
    from torch import Tensor


ZERO, MEAN, OWN_MEAN = -1, -2, -3
"""Instead of a model's number: zeros; mean of the rows in `means[row]`; mean of all other rows."""

CHUNK = 1 << 16  # elements read at a time for the mean of a whole tensor


class Run(NamedTuple):
    """`length` rows from `start` on, taken from the rows of model `part` from `row` on."""

    start: int
    length: int
    part: int
    row: int


Row = tuple[int, int]


class RowMap:
    """The origin of each row, shared by all vocabulary tensors of a model."""

    def __init__(self, rows: Sequence[Row], means: Sequence[tuple[Row, ...]] = ()) -> None:
        self.means = tuple(means)
        self.count = len(rows)
        self.runs: list[Run] = []
        for number, (part, row) in enumerate(rows):
            last = self.runs[-1] if self.runs else None
            follows = last and last.part == part and (part < 0 or last.row + last.length == row)
            if last and follows and part != MEAN:
                self.runs[-1] = last._replace(length=last.length + 1)
            else:
                self.runs.append(Run(number, 1, part, row))
        self.starts = [run.start for run in self.runs]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowMap) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        numbers = array("q", chain.from_iterable(self.runs)).tobytes()
        return hashlib.sha256(numbers + repr(self.means).encode()).hexdigest()

    def plain(self, part: int, rows: int) -> bool:
        """Whether this is model `part` unchanged, with all of its `rows`."""
        return self.runs == [Run(0, rows, part, 0)]

    def spans(self) -> dict[int, tuple[int, int]]:
        """Return the range of rows taken from each model."""
        spans: dict[int, tuple[int, int]] = {}
        runs = [(run.part, run.row, run.length) for run in self.runs if run.part >= 0]
        for part, row, count in (*runs, *((*row, 1) for rows in self.means for row in rows)):
            first, stop = spans.get(part, (row, row))
            spans[part] = (min(first, row), max(stop, row + count))
        return dict(sorted(spans.items()))

    @property
    def computed(self) -> bool:
        """Whether any row is a mean."""
        return any(run.part in (MEAN, OWN_MEAN) for run in self.runs)


@dataclass(frozen=True)
class GatheredRows(DerivedTensor):
    """Rows of one tensor of several models (`inputs`), chosen by `rows`."""

    kind = "Rows"

    rows: RowMap = field(kw_only=True)
    # Index in `inputs` and first row there, by number of the model.
    places: Mapping[int, tuple[int, int]] = field(kw_only=True, hash=False)
    # Shared by copies under other names, as of a tied head.
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    _mean: list[Tensor] = field(default_factory=list, compare=False, repr=False)

    @property
    def width(self) -> int:
        return self.count // self.shape[0]

    def fingerprint(self) -> object:
        return self.rows.digest

    def over(self, inputs: tuple[TensorSource, ...], dtype: DType) -> GatheredRows:
        """Return the same rows of other tensors, of the shapes of the inputs."""
        lock, mean = threading.Lock(), list[Any]()
        return replace(
            self, inputs=inputs, dtype=dtype, declared_dtype=None, _lock=lock, _mean=mean
        )

    def buffer_size(self) -> BufferSize:
        # Inputs are read one after the other into one slot, derived ones into their own.
        sizes = [buffer_size(source) for source in self.inputs]
        derived = [source for source in self.inputs if isinstance(source, DerivedTensor)]
        inner = add_sizes(source.buffer_size() for source in derived)
        most = max((source.dtype.bytes for source in self.inputs), default=0)
        fixed = max((size.fixed for size in sizes), default=0)
        if self.rows.computed:
            fixed += (max(CHUNK, self.width) + 2 * self.width) * (8 + 8 + most + inner.per_element)
        return BufferSize(most + inner.per_element, max(fixed, inner.fixed))

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        width, at = self.width, start
        index = bisect_right(self.rows.starts, start // width) - 1
        while at < stop:
            run = self.rows.runs[index]
            end = min(stop, (run.start + run.length) * width)
            self._run(reader, run, at - run.start * width, out[at - start : end - start], slot)
            at, index = end, index + 1

    def _run(self, reader: Reader, run: Run, offset: int, out: Tensor, slot: str) -> None:
        """Write the elements of a run from `offset` on."""
        if run.part >= 0:
            out.copy_(self._read(reader, (run.part, run.row), offset, out.numel(), slot))
            return
        if run.part == ZERO:
            out.zero_()
            return
        row = self._mean_of(reader, self.rows.means[run.row], slot) if run.part == MEAN else None
        values = self._mean_of_all(reader, slot) if row is None else row
        done = 0
        while done < out.numel():
            begin = (offset + done) % self.width
            piece = values[begin : begin + out.numel() - done]
            out[done : done + piece.numel()] = piece
            done += piece.numel()

    def _read(self, reader: Reader, row: Row, offset: int, count: int, slot: str) -> Tensor:
        """Read `count` elements of a model, from `offset` after the start of a row."""
        number, first = self.places[row[0]]
        start = (row[1] - first) * self.width + offset
        return reader.read(self.inputs[number], start, start + count, slot + "0")

    def _mean_of(self, reader: Reader, rows: Sequence[Row], slot: str) -> Tensor:
        import torch

        total = torch.zeros(self.width, dtype=torch.float64)
        for row in rows:
            total += self._read(reader, row, 0, self.width, slot)
        return (total / len(rows)).to(getattr(torch, self.dtype.torch_name))

    def _mean_of_all(self, reader: Reader, slot: str) -> Tensor:
        """Return the mean of all rows not filled with it, computed once."""
        import torch

        with self._lock:
            if not self._mean:
                kind, width = getattr(torch, self.dtype.torch_name), self.width
                total, count = torch.zeros(width, dtype=torch.float64), 0
                most = max(1, CHUNK // width)
                buffer = torch.empty(most * width, dtype=kind)
                for run in self.rows.runs:
                    if run.part == OWN_MEAN:
                        continue
                    for row in range(0, run.length, most):
                        rows = min(most, run.length - row)
                        values = buffer[: rows * width]
                        self._run(reader, run, row * width, values, slot)
                        total += values.view(rows, width).double().sum(0)
                    count += run.length
                self._mean.append((total / max(1, count)).to(kind))
            return self._mean[0]


def gather_rows(number: int, parts: Mapping[int, TensorSource], rows: RowMap) -> TensorSource:
    """Gather the rows of model `number` according to `rows`; its own tensor if unchanged."""
    own = parts[number]
    if rows.plain(number, own.shape[0]):
        return own
    spans = rows.spans()
    windows = [_window(parts[part], *span) for part, span in spans.items()]
    used = {own.dtype, *(window.dtype for window in windows)}
    most = max(dtype.bits for dtype in used)
    dtype = own.dtype
    if len(used) > 1 or (rows.computed and most < 32):
        # Neither bfloat16 nor float16 holds the other; and a mean is rounded once, at the end.
        dtype = BY_NAME["F64" if most > 32 else "F32"]
    shape, declared = (rows.count, *own.shape[1:]), declared_dtype(own)
    places = {
        part: (place, spans[part][0] if isinstance(parts[part], StoredTensor) else 0)
        for place, part in enumerate(spans)
    }
    return GatheredRows(own.name, dtype, shape, tuple(windows), declared, rows=rows, places=places)


def _window(part: TensorSource, first: int, stop: int) -> TensorSource:
    """Return rows [first, stop) of a stored tensor; a derived one as a whole."""
    stored = isinstance(part, StoredTensor)
    return slice_axis(part, 0, first, stop, part.name) if stored else part
