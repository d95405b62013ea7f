"""CRC-32 of a file from the CRC-32s of its parts, so that nothing is read back to be checksummed.

Arithmetic in GF(2)[x] modulo the CRC-32 polynomial, bits reflected: the CRC of A followed by B is
crc(A) · x^(8·|B|) + crc(B). (Method: M. Adler, zlib's crc32_combine.)
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def combine(parts: Iterable[tuple[int, int]]) -> int:
    """CRC-32 of the concatenation of parts given as `(crc, length in bytes)`."""
    total = 0
    for crc, length in parts:
        total = _multiply(_power_of_x(8 * length), total) ^ crc
    return total


def _multiply(a: int, b: int) -> int:
    product = 0
    bit = _ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@cache
def _power_of_x(exponent: int) -> int:
    power, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        exponent >>= 1
    return power
