"""Checksums of parts, put together, against zlib over the whole."""

import zlib

from hypothesis import given
from hypothesis import strategies as st

from worker.crc import combine


@given(st.lists(st.binary(max_size=40)))
def test_combined_is_the_checksum_of_the_whole(parts: list[bytes]) -> None:
    assert combine([(zlib.crc32(p), len(p)) for p in parts]) == zlib.crc32(b"".join(parts))


def test_long_parts() -> None:
    head, zeros = b"head", bytes(1 << 20)
    parts = [(zlib.crc32(head), len(head)), *[(zlib.crc32(zeros), len(zeros))] * 5]
    assert combine(parts) == zlib.crc32(head + zeros * 5)


def test_lengths_beyond_32_bits() -> None:
    # A run of zeros doubles in length: crc(AA) from crc(A) by the function itself, twice.
    crc, length = zlib.crc32(bytes(1 << 20)), 1 << 20
    for _ in range(14):
        crc, length = combine([(crc, length), (crc, length)]), length * 2
    assert combine([(crc, length)]) == crc
    whole = zlib.crc32(bytes(1 << 20))
    assert combine([(whole, 1 << 20)] * (1 << 14)) == crc
