"""A tensor as torch.save writes it: the bytes around its elements, known before them. No torch.

A zip of stored members: the pickle of the tensor, then its elements as they are in memory.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

from ..dtypes import DType
from .shards import PAGE

MOST_BYTES = 1 << 31
"""Bytes of one tensor: half of what zips hold without the fields of zip64."""

ALIGNMENT = 64
"""Bytes: what torch.save aligns the elements of tensors to."""

_STORAGES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
}
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_FOLDER, _ELEMENTS = "archive/", "archive/data/0"
_DATE = 33  # 1980-01-01, the first that a zip can say
_PADDING = 0x4246
"""Number of the extra field that fills the space before the elements, as in files of torch."""


class TorchFile(NamedTuple):
    """A zip at byte `start` of a file: `begin` is the first byte of the elements there."""

    start: int
    begin: int
    length: int
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int

    def around(self, crc: int) -> tuple[bytes, bytes]:
        """Return the bytes before and after the elements, given their CRC-32."""
        return _around(self.dtype, self.shape, self.nbytes, self.start, crc)


def torch_file(dtype: DType, shape: tuple[int, ...], nbytes: int, start: int) -> TorchFile:
    """Place a tensor of less than MOST_BYTES at byte `start` of a file."""
    before, after = _around(dtype, shape, nbytes, start, 0)
    length = len(before) + nbytes + len(after)
    return TorchFile(start, start + len(before), length, dtype, shape, nbytes)


def _around(
    dtype: DType, shape: tuple[int, ...], nbytes: int, start: int, crc: int
) -> tuple[bytes, bytes]:
    texts = {
        f"{_FOLDER}data.pkl": _pickle(dtype, shape),
        f"{_FOLDER}byteorder": b"little",
        f"{_FOLDER}version": b"3\n",
    }
    before, central = b"", b""
    for name, text in texts.items():
        facts = (zlib.crc32(text), len(text), name.encode())
        central += _central(*facts, len(before))
        before += _local(*facts, b"") + text
    central += _central(crc, nbytes, _ELEMENTS.encode(), len(before))
    begin = len(before) + _LOCAL.size + len(_ELEMENTS) + 4
    # Whole pages are written fastest where they begin a page.
    align = PAGE if nbytes >= 16 * PAGE else ALIGNMENT
    filled = -(start + begin) % align
    extra = struct.pack("<2H", _PADDING, filled) + b"Z" * filled
    before += _local(crc, nbytes, _ELEMENTS.encode(), extra)
    count, place = len(texts) + 1, len(before) + nbytes
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(central), place, 0)
    return before, central + end


def _local(crc: int, size: int, name: bytes, extra: bytes) -> bytes:
    head = (b"PK\x03\x04", 20, 0, 0, 0, _DATE, crc, size, size, len(name), len(extra))
    return _LOCAL.pack(*head) + name + extra


def _central(crc: int, size: int, name: bytes, place: int) -> bytes:
    head = (b"PK\x01\x02", 20, 20, 0, 0, 0, _DATE, crc, size, size, len(name))
    return _CENTRAL.pack(*head, 0, 0, 0, 0, 0, place) + name


def _pickle(dtype: DType, shape: Sequence[int]) -> bytes:
    """Return the pickle of a row-major tensor on the CPU, whose storage has the key 0."""
    known = _STORAGES.get(dtype.torch_name)
    storage = f"torch\n{known}Storage" if known else "torch.storage\nUntypedStorage"
    count = prod(shape) * (1 if known else dtype.bytes)
    strides = tuple(accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1))[::-1]
    return b"".join(
        [
            b"\x80\x02",
            f"ctorch._utils\n_rebuild_tensor_v{2 if known else 3}\n((".encode(),
            _text("storage"),
            f"c{storage}\n".encode(),
            _text("0"),
            _text("cpu"),
            _number(count),
            b"tQ",
            _number(0),
            _tuple(shape),
            _tuple(strides if shape else ()),
            b"\x89ccollections\nOrderedDict\n)R",
            b"" if known else f"ctorch\n{dtype.torch_name}\n".encode(),
            b"tR.",
        ]
    )


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _number(number: int) -> bytes:
    """Return the opcode of a whole number from 0."""
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)
