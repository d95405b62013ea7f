"""The grid of blocks: covers everything once, keeps rows whole, depends on the tensor alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.method import Granularity
from merge_worker.planning.step import (
    CPU_BLOCK,
    DEVICE_BLOCK,
    Grid,
    Piece,
    block_for,
    block_grid,
    pieces,
)

shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@given(shapes, st.sampled_from(Granularity), st.integers(1, 500))
def test_blocks_cover_every_element_once(
    shape: tuple[int, ...], cut: Granularity, block: int
) -> None:
    grid = block_grid(shape, cut, block)
    count = 1
    for extent in shape:
        count *= extent
    position = 0
    for number in range(grid.blocks):
        start, stop = grid.span(number, 1)
        assert start == position and stop > start
        position = stop
    assert position == grid.count == count
    if grid.blocks:
        assert grid.span(0, grid.blocks) == (0, count)


@given(shapes, st.integers(1, 500))
def test_rows_are_never_cut(shape: tuple[int, ...], block: int) -> None:
    grid = block_grid(shape, Granularity.ROW, block)
    if grid.count == 0:
        return
    assert grid.row is not None
    for number in range(grid.blocks):
        start, stop = grid.span(number, 1)
        assert start % grid.row == 0 and stop % grid.row == 0


def test_by_element() -> None:
    assert block_grid((10, 10), Granularity.ELEMENT, 32) == Grid(100, 32, None)
    assert block_grid((10, 10), Granularity.ELEMENT, 32).blocks == 4


def test_by_row_takes_as_many_rows_as_fit() -> None:
    assert block_grid((10, 10), Granularity.ROW, 32) == Grid(100, 30, 10)
    assert block_grid((10, 10), Granularity.ROW, 5) == Grid(100, 10, 10), (
        "a row longer than a block stays whole"
    )
    assert block_grid((6, 2, 5), Granularity.ROW, 25) == Grid(60, 20, 10), (
        "a row is all behind the first axis"
    )
    assert block_grid((100,), Granularity.ROW, 32) == Grid(100, 100, 100), "a vector is one row"


def test_whole_tensors() -> None:
    assert block_grid((10, 10), Granularity.TENSOR, 32) == Grid(100, 100, 10)
    assert block_grid((10, 10), Granularity.TENSOR, 32).blocks == 1


def test_scalars_and_empty_tensors() -> None:
    for cut in Granularity:
        assert block_grid((), cut, 32).blocks == 1
        assert block_grid((0, 5), cut, 32).blocks == 0
        assert block_grid((5, 0), cut, 32).blocks == 0


@given(st.integers(0, 20), st.integers(0, 100), st.integers(1, 30))
def test_pieces_are_a_run(first: int, blocks: int, most: int) -> None:
    run = list(pieces(first, first + blocks, most))
    assert sum(piece.blocks for piece in run) == blocks
    assert all(0 < piece.blocks <= most for piece in run)
    position = first
    for piece in run:
        assert piece.first == position
        position += piece.blocks


def test_pieces_in_words() -> None:
    assert list(pieces(2, 7, 2)) == [Piece(2, 2), Piece(4, 2), Piece(6, 1)]


@pytest.mark.parametrize(
    ("visible", "block"),
    [
        # PBS sets nothing, or with its hook UUIDs, and an empty text for jobs without GPUs.
        (None, DEVICE_BLOCK),
        ("0,1", DEVICE_BLOCK),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", DEVICE_BLOCK),
        ("", CPU_BLOCK),
        ("-1", CPU_BLOCK),
    ],
)
def test_devices_as_schedulers_show_them(visible: str | None, block: int, monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert block_for("auto", ("/dev/null",)) == block
    assert block_for("cpu") == CPU_BLOCK
    assert block_for("cuda:1") == DEVICE_BLOCK
