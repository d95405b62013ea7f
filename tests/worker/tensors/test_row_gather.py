"""Gathered rows: the same bits for every run, within the announced memory."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.reader import Files
from merge_worker.engine.lane import Lane
from merge_worker.tensors.row_gather import (
    MEAN,
    OWN_MEAN,
    ZERO,
    GatheredRows,
    Row,
    RowMap,
    gather_rows,
)
from merge_worker.tensors.source import (
    DerivedTensor,
    StoredTensor,
    TensorSource,
    buffer_size,
    bytes_read,
)
from support.checkpoint_factory import write_checkpoint

WIDTH = 5


class Bench:
    """Matrices of models in files, and their rows gathered by a row map."""

    def __init__(self, folder: Path, dtypes: Sequence[torch.dtype], rows: int = 40) -> None:
        generator = torch.Generator().manual_seed(1)
        self.values: list[Tensor] = []
        self.parts: dict[int, TensorSource] = {}
        for number, dtype in enumerate(dtypes):
            values = torch.randn(rows, WIDTH, generator=generator).to(dtype)
            path = write_checkpoint(folder / str(number), {"e.weight": values})
            self.values.append(values)
            self.parts[number] = open_checkpoint(path).tensors["e.weight"]
        self.lane = Lane(torch.device("cpu"), Files())

    def read(self, source: TensorSource, start: int = 0, stop: int | None = None) -> Tensor:
        last = source.count if stop is None else stop
        return self.lane.read(source, start, last, "in0").clone()


MIXED: list[Row] = [
    *((0, n) for n in range(7)),
    *[(1, 3), (1, 4), (ZERO, 0), (MEAN, 0), (MEAN, 1), (2, 39), (0, 8)],
    *((OWN_MEAN, 0) for _ in range(3)),
]
MEANS = [((0, 1), (1, 2)), ((0, 0), (1, 0), (2, 0))]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, [torch.bfloat16, torch.bfloat16, torch.bfloat16])


def expected(values: Sequence[Tensor]) -> Tensor:
    a, b, c = (tensor.double() for tensor in values)
    rows = [*a[:7], b[3], b[4], torch.zeros(WIDTH), (a[1] + b[2]) / 2, (a[0] + b[0] + c[0]) / 3]
    merged = torch.stack([row.double() for row in [*rows, c[39], a[8]]]).float()
    return torch.cat([merged, merged.double().mean(0).float().expand(3, WIDTH)])


def test_every_kind_of_row(bench: Bench) -> None:
    source = gather_rows(0, bench.parts, RowMap(MIXED, MEANS))
    assert isinstance(source, GatheredRows) and source.shape == (17, WIDTH)
    assert source.dtype.name == "F32", "a mean of bfloat16 is no bfloat16"
    assert source.declared_dtype is not None and source.declared_dtype.name == "BF16"
    assert torch.equal(bench.read(source).view(17, WIDTH), expected(bench.values))


def test_every_cut_gives_the_same_bits(bench: Bench) -> None:
    whole = bench.read(gather_rows(0, bench.parts, RowMap(MIXED, MEANS)))
    chance = random.Random(5)
    for _ in range(200):
        start, stop = sorted(chance.sample(range(len(whole) + 1), 2))
        fresh = gather_rows(0, bench.parts, RowMap(MIXED, MEANS))
        assert torch.equal(bench.read(fresh, start, stop), whole[start:stop])


def test_runs_are_read_as_runs(bench: Bench) -> None:
    rows = RowMap([(0, n) for n in (0, 1, 2, 3, 30, 31, 5)])
    assert [(run.start, run.length, run.row) for run in rows.runs] == [
        (0, 4, 0),
        (4, 2, 30),
        (6, 1, 5),
    ]
    reads: list[tuple[int, int]] = []

    class Noted:
        def read(self, source: Any, start: int, stop: int, slot: str) -> Tensor:
            reads.append((start, stop))
            return bench.lane.read(source, start, stop, slot)

    source = gather_rows(0, bench.parts, rows)
    assert isinstance(source, DerivedTensor)
    source.read_into(Noted(), 0, source.count, torch.empty(source.count, dtype=torch.bfloat16), "x")
    assert reads == [(0, 20), (150, 160), (25, 30)]


def test_only_the_rows_that_count_are_fetched(bench: Bench) -> None:
    rows = RowMap([*((0, n) for n in range(40)), (1, 38), (1, 39)])
    source = gather_rows(0, bench.parts, rows)
    assert bytes_read(source) == 42 * WIDTH * 2
    assert torch.equal(bench.read(source).view(42, WIDTH)[40:], bench.values[1][38:])


def test_unchanged_tensors_are_not_derived(bench: Bench) -> None:
    assert gather_rows(1, bench.parts, RowMap([(1, n) for n in range(40)])) is bench.parts[1]


@pytest.mark.parametrize(
    ("dtypes", "rows", "expected"),
    [
        ((torch.bfloat16, torch.bfloat16), [(0, 1), (1, 2)], "BF16"),
        ((torch.bfloat16, torch.float16), [(0, 1), (1, 2)], "F32"),
        ((torch.bfloat16, torch.float32), [(0, 1), (1, 2)], "F32"),
        ((torch.bfloat16, torch.float32), [(0, 1), (0, 0)], "BF16"),
        ((torch.float16, torch.float64), [(0, 1), (1, 0)], "F64"),
        ((torch.float64, torch.float64), [(0, 1), (OWN_MEAN, 0)], "F64"),
        ((torch.float16, torch.float64), [(0, 1), (OWN_MEAN, 0)], "F32"),
    ],
)
def test_dtypes(
    dtypes: Sequence[torch.dtype], rows: list[Row], expected: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, dtypes, 3)
    source = gather_rows(0, bench.parts, RowMap(rows))
    assert source.dtype.name == expected
    bench.read(source)


def test_a_head_of_another_name_shares_the_mean(bench: Bench) -> None:
    source = gather_rows(0, bench.parts, RowMap(MIXED, MEANS))
    assert isinstance(source, GatheredRows)
    first = bench.read(source)
    renamed = replace(source, name="lm_head.weight")
    assert renamed._mean and torch.equal(bench.read(renamed), first)


def test_rows_of_derived_tensors(bench: Bench) -> None:
    """Inputs may be derived themselves, such as an embedding with an adapter."""
    inner = gather_rows(0, bench.parts, RowMap([(0, n) for n in range(39, -1, -1)]))
    outer = gather_rows(0, {0: inner, 1: bench.parts[1]}, RowMap([(0, 2), (1, 7), (OWN_MEAN, 0)]))
    rows = bench.read(outer).view(3, WIDTH)
    a, b = bench.values[0][37].float(), bench.values[1][7].float()
    assert torch.equal(rows[:2], torch.stack([a, b]))
    assert torch.equal(rows[2], ((a.double() + b.double()) / 2).float())
    assert buffer_size(outer).per_element >= 4 + 2 + 2


def test_buffers_stay_within_what_was_announced(tmp_path: Path) -> None:
    bench = Bench(tmp_path, [torch.bfloat16] * 3)
    source = gather_rows(0, bench.parts, RowMap(MIXED, MEANS))
    for count in (1, 4, 17, 40, 85):
        bench.read(source, 0, count)
        allocated = sum(t.numel() for t in bench.lane.host._slots.values())
        announced = buffer_size(source)
        assert allocated <= count * announced.per_element + announced.fixed


def test_vectors_have_rows_of_one_element(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m", {"lm_head.bias": torch.arange(6.0)})
    info = open_checkpoint(path).tensors["lm_head.bias"]
    assert isinstance(info, StoredTensor)
    source = gather_rows(0, {0: info}, RowMap([(0, 5), (ZERO, 0), (0, 1), (0, 2)]))
    lane = Lane(torch.device("cpu"), Files())
    assert lane.read(source, 0, 4, "in0").tolist() == [5, 0, 1, 2]
    assert lane.read(source, 1, 3, "in0").tolist() == [0, 1]
