"""The dtype table against torch and against safetensors' own names."""

import pytest
import torch
from safetensors.torch import save

from merge_worker.dtypes import BY_NAME, FLOATS, DType, Kind, from_torch_name

IN_TORCH = [row for row in BY_NAME.values() if hasattr(torch, row.torch_name) and row.bits >= 8]


@pytest.mark.parametrize("row", IN_TORCH, ids=lambda row: row.name)
def test_sizes_are_those_of_torch(row: DType) -> None:
    dtype: torch.dtype = getattr(torch, row.torch_name)
    assert dtype.itemsize == row.bytes == row.bits // 8
    floating = dtype.is_floating_point
    assert floating == (row.kind in (Kind.FLOAT, Kind.PACKED))


@pytest.mark.parametrize("row", IN_TORCH, ids=lambda row: row.name)
def test_names_are_those_of_safetensors(row: DType) -> None:
    tensor = torch.zeros(8 * row.bytes, dtype=torch.uint8).view(getattr(torch, row.torch_name))
    assert f'"dtype":"{row.name}"'.encode() in save({"x": tensor})


def test_every_row_comes_back_by_its_torch_name() -> None:
    for row in BY_NAME.values():
        if row.torch_name != "uint8" or row.name == "U8":
            assert from_torch_name(row.torch_name) is row
            assert from_torch_name(f"torch.{row.torch_name}") is row
    assert from_torch_name("uint8").name == "U8", "packed six-bit rows are stored as bytes"


def test_unknown_torch_name() -> None:
    with pytest.raises(KeyError):
        from_torch_name("float13")


def test_names_that_a_recipe_may_ask_for_are_floats() -> None:
    assert all(from_torch_name(name).kind is Kind.FLOAT for name in FLOATS)
    assert {row.torch_name for row in BY_NAME.values() if row.kind is Kind.FLOAT} == set(FLOATS)
