"""Table of tensor dtypes: safetensors name, torch attribute, size, kind. Imports no torch."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """How values of a dtype may be treated."""

    FLOAT = "float"  # merged
    INTEGER = "integer"  # copied, never averaged
    PACKED = "packed"  # quantized: values mean nothing without their scales


class DType(NamedTuple):
    """One dtype: `name` as in safetensors headers, `torch_name` as attribute of torch."""

    name: str
    torch_name: str
    bits: int
    kind: Kind

    @property
    def bytes(self) -> int:
        """Bytes of one element (packed sub-byte dtypes are never read element-wise)."""
        return max(1, self.bits // 8)


_TABLE = (
    DType("F64", "float64", 64, Kind.FLOAT),
    DType("F32", "float32", 32, Kind.FLOAT),
    DType("F16", "float16", 16, Kind.FLOAT),
    DType("BF16", "bfloat16", 16, Kind.FLOAT),
    DType("I64", "int64", 64, Kind.INTEGER),
    DType("I32", "int32", 32, Kind.INTEGER),
    DType("I16", "int16", 16, Kind.INTEGER),
    DType("I8", "int8", 8, Kind.INTEGER),
    DType("U64", "uint64", 64, Kind.INTEGER),
    DType("U32", "uint32", 32, Kind.INTEGER),
    DType("U16", "uint16", 16, Kind.INTEGER),
    DType("U8", "uint8", 8, Kind.INTEGER),
    DType("BOOL", "bool", 8, Kind.INTEGER),
    DType("C64", "complex64", 64, Kind.INTEGER),
    DType("F8_E5M2", "float8_e5m2", 8, Kind.PACKED),
    DType("F8_E4M3", "float8_e4m3fn", 8, Kind.PACKED),
    DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 8, Kind.PACKED),
    DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 8, Kind.PACKED),
    DType("F8_E8M0", "float8_e8m0fnu", 8, Kind.PACKED),
    DType("F6_E2M3", "uint8", 6, Kind.PACKED),
    DType("F6_E3M2", "uint8", 6, Kind.PACKED),
    DType("F4", "float4_e2m1fn_x2", 4, Kind.PACKED),
)

BY_NAME = {row.name: row for row in _TABLE}

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Names accepted by `dtype` in recipes and by `--dtype`."""


def from_torch_name(name: str) -> DType:
    """Return the dtype of a torch name, with or without `torch.`. KeyError if unknown."""
    plain = name.removeprefix("torch.")
    return {row.torch_name: row for row in _TABLE if row.name not in ("F6_E2M3", "F6_E3M2")}[plain]
