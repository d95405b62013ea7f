"""Streaming of all models through memory once, with the sums of blocks added in a fixed order.

Each thread holds one piece of every model and its scratch memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from ..checkpoint.reader import Files
from ..engine.buffers import Pool
from ..method import matrix_shape
from ..system.progress import Progress
from .models import Models, Shared
from .sums import PieceRows, Sums, sum_piece, zero_sums

PIECE = 1 << 20
"""Elements read at a time."""


class ReadProgress(Progress):
    """The progress of a command that reads only."""

    @property
    def done(self) -> int:
        return self.bytes_in

    def facts(self) -> dict[str, float]:
        """Return the facts of a merge, with the time left computed from the bytes read."""
        facts = super().facts()
        left = (self.total_out - self.bytes_in) * facts["elapsed_s"]
        return {**facts, "left_s": round(left / self.bytes_in, 1) if self.bytes_in else -1}


class _Piece(NamedTuple):
    """The elements [start, stop) of a tensor."""

    tensor: Shared
    start: int
    stop: int


def stream(models: Models, threads: int, mode: str) -> Iterator[tuple[Shared, Sums]]:
    """Yield the sums of every tensor, in order. InputError if a file cannot be read."""
    total = sum(info.nbytes for tensor in models.tensors for info in tensor.infos)
    torch.set_num_threads(1)
    files, local = Files(), threading.local()
    progress = ReadProgress(mode, total, "compare")

    def work(piece: _Piece) -> Sums:
        if not hasattr(local, "pool"):
            local.pool = Pool(torch.device("cpu"))
        return _read_piece(piece, models.has_base, files, local.pool, progress)

    pool = ThreadPoolExecutor(threads)
    try:
        with progress:
            running: deque[tuple[_Piece, Future[Sums]]] = deque()
            waiting = (piece for tensor in models.tensors for piece in _pieces(tensor))
            total_sums = zero_sums(len(models.labels), models.has_base)
            while True:
                while len(running) < 4 * threads and (piece := next(waiting, None)):
                    running.append((piece, pool.submit(work, piece)))
                if not running:
                    return
                piece, future = running.popleft()
                total_sums.add_piece(future.result())
                if piece.stop == piece.tensor.count:
                    yield piece.tensor, total_sums
                    total_sums = zero_sums(len(models.labels), models.has_base)
    finally:
        pool.shutdown(cancel_futures=True)
        files.close()


def _pieces(tensor: Shared) -> Iterator[_Piece]:
    """Split a tensor into pieces, of whole rows if its matrices are sketched."""
    row = tensor.shape[-1] if tensor.sketched else 1
    size = max(1, PIECE // row) * row
    count = tensor.count
    for start in range(0, count, size) if count else (0,):
        yield _Piece(tensor, start, min(count, start + size))


def _read_piece(
    piece: _Piece, has_base: bool, files: Files, pool: Pool, progress: Progress
) -> Sums:
    tensor, loaded = piece.tensor, []
    for number, info in enumerate(tensor.infos):
        size, count = info.dtype.bytes, piece.stop - piece.start
        memory = pool.memory(f"in{number}", count * size)
        files.read(info.file, info.offset + piece.start * size, memory)
        loaded.append(pool.take(f"in{number}", count, info.dtype.torch_name))
        progress.read(len(memory))
    rows = None
    if tensor.sketched and (matrix := matrix_shape(tensor.shape)):
        rows = PieceRows(piece.start // matrix[1], *matrix)
    return sum_piece(loaded, has_base, rows, pool)
