"""Checksums of parts of a file that add up to that of the whole, in any order.

A file is words of 64 bits, little-endian, the last one filled up with zeros. `plain` is their sum,
`placed` the sum of words times their places from 1, both modulo 2^64 (after J. Fletcher, An
Arithmetic Checksum for Serial Transmissions, 1982). CRC-32 took an eighth of the time of a merge,
these take a fifth of that. They tell of damage, not of forgery: for that there is SHA-256.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

WORD = 8
COLUMNS = 1024
CHUNK = 8 << 20
DIGITS = 32
_MASK = (1 << 64) - 1


class Checksum(NamedTuple):
    """Of some bytes of a file."""

    plain: int = 0
    placed: int = 0

    def __str__(self) -> str:
        return f"{self.plain:016x}{self.placed:016x}"


def parse(text: str | bytes) -> Checksum:
    """The reverse of `str`."""
    return Checksum(int(text[:16], 16), int(text[16:], 16))


def total(parts: Iterable[Checksum]) -> Checksum:
    """Of all the bytes that the parts are of."""
    plain = placed = 0
    for part in parts:
        plain += part.plain
        placed += part.placed
    return Checksum(plain & _MASK, placed & _MASK)


def checksum(data: memoryview, position: int) -> Checksum:
    """Of `data`, which is at `position` of its file."""
    head = min(-position % WORD, len(data))
    tail = (len(data) - head) % WORD
    end = len(data) - tail
    found = [_of_edge(data[:head], position), _of_edge(data[end:], position + end)]
    for start in range(head, end, CHUNK):
        stop = min(start + CHUNK, end)
        found.append(_of_words(_words(data[start:stop]), (position + start) // WORD + 1))
    return total(found)


def _of_edge(data: memoryview, position: int) -> Checksum:
    """Of less than a word."""
    place, shift = divmod(position, WORD)
    value = int.from_bytes(data, "little") << 8 * shift
    return Checksum(value & _MASK, value * (place + 1) & _MASK)


def _words(data: memoryview) -> Tensor:
    import torch

    if data.readonly or ctypes.addressof(ctypes.c_char.from_buffer(data)) % WORD:
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=torch.int64)


def _of_words(words: Tensor, first: int) -> Checksum:
    """`first` is the place of the first word."""
    whole = len(words) // COLUMNS * COLUMNS
    found = []
    if whole:
        found.append(_of_table(words[:whole].view(-1, COLUMNS), first))
    if whole < len(words):
        found.append(_of_table(words[whole:].view(1, -1), first + whole))
    return total(found)


def _of_table(table: Tensor, first: int) -> Checksum:
    """Sums of rows and of columns: each is one pass over memory without products."""
    rows, columns, steps = table.sum(1), table.sum(0), _steps()
    plain = int(rows.sum())
    placed = plain * first + int((columns * steps[: len(columns)]).sum())
    placed += len(columns) * int((rows * steps[: len(rows)]).sum())
    return Checksum(plain & _MASK, placed & _MASK)


@cache
def _steps() -> Tensor:
    import torch

    return torch.arange(max(COLUMNS, CHUNK // WORD // COLUMNS))
