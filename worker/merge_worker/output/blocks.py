"""Pieces of tensors → bytes at places in files: in one run, or in blocks of several files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from ..planning.step import Piece, Step

_POLYNOMIAL = 0xEDB88320


class Run(NamedTuple):
    """Bytes of a piece that lie together in a file."""

    shard: int
    position: int
    nbytes: int
    block: int  # number of the block in the tensor; -1 for a tensor in one
    start: int  # first element of the piece
    stop: int


def runs(step: Step, piece: Piece) -> Iterator[Run]:
    """Yield where the bytes of a piece go."""
    start, stop = step.grid.span(piece.first, piece.blocks)
    size, blocks = step.dtype.bytes, step.blocks
    if blocks is None:
        yield Run(step.shard, step.file_offset(piece), (stop - start) * size, -1, start, stop)
        return
    for number in blocks.overlapping(start, stop) if start < stop else ():
        lines = list(blocks.lines(number, start, stop))
        if lines:
            count, chunk = sum(each.lines * each.length for each in lines), blocks.chunk(number)
            position = chunk.offset + lines[0].at * size
            yield Run(chunk.file, position, count * size, number, start, stop)


def part(step: Step, run: Run, data: memoryview) -> memoryview:
    """Return the bytes of a run, of those of its piece."""
    if step.blocks is None or run.nbytes == len(data):
        return data
    lines, size = list(step.blocks.lines(run.block, run.start, run.stop)), step.dtype.bytes
    if len(lines) == 1 and lines[0].lines == 1:
        begin = (lines[0].first - run.start) * size
        return data[begin : begin + run.nbytes]
    import torch

    result = bytearray(run.nbytes)
    source, out = (torch.frombuffer(each, dtype=torch.uint8) for each in (data, result))
    for first, count, length, stride, at in lines:
        values = source[(first - run.start) * size :]
        values = values.as_strided((count, length * size), (stride * size, 1))
        into = out[(at - lines[0].at) * size :][: count * length * size]
        into.view(count, length * size).copy_(values)
    return memoryview(result)


def joined_crc(first: int, second: int, nbytes: int) -> int:
    """Return the CRC-32 of two texts one after the other, the second of `nbytes` bytes."""
    return _times(_shift(nbytes), first) ^ second


@cache
def _shift(nbytes: int) -> int:
    """Return x to the power of 8 · nbytes modulo the polynomial of CRC-32, by squaring."""
    result, power, exponent = 1 << 31, 1 << 30, 8 * nbytes
    while exponent:
        if exponent & 1:
            result = _times(power, result)
        power, exponent = _times(power, power), exponent >> 1
    return result


def _times(a: int, b: int) -> int:
    """Multiply polynomials modulo that of CRC-32; the highest bit is the constant term."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
