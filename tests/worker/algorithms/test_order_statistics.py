"""Exact order statistics: every value, every tie, against a plain sort with indices."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merge_worker.algorithms import order_statistics as order_statistics_module
from merge_worker.algorithms import rank_search
from merge_worker.algorithms.order_statistics import Threshold, order_statistics
from merge_worker.method import Block, Granularity, MergePass, StatisticsPass
from merge_worker.planning.step import block_grid
from support.method_driver import Meter, blocks


class Done(MergePass):
    def __init__(self, thresholds: list[list[Threshold]]) -> None:
        self.thresholds = thresholds

    def merge(self, block: Block, out: Tensor) -> None:
        raise NotImplementedError


def magnitudes(block: Block) -> Sequence[Tensor]:
    count = block.tensors[0].numel()
    taken = block.scratch.take("values", len(block.tensors) * count, "float32").view(-1, count)
    for values, source in zip(taken, block.tensors, strict=True):
        values.copy_(source)
    return taken.abs_().unbind()


def search(
    series: Sequence[Tensor], ranks: Sequence[Sequence[int]], block: int, whole: bool = False
) -> tuple[list[list[Tensor]], int]:
    """For every series and rank a mask of the upper side; and the number of passes."""
    flat = [values.reshape(-1) for values in series]
    places = block_grid((flat[0].numel(),), Granularity.ELEMENT, block)
    scratch = Meter()
    current, passes = order_statistics(magnitudes, flat[0].numel(), ranks, Done, whole), 0
    with torch.inference_mode():
        while isinstance(current, StatisticsPass):
            current = current.next_pass([current.collect(b) for b in blocks(places, flat, scratch)])
            passes += 1
        assert isinstance(current, Done)
        return [
            [upper_side(threshold, places, flat, scratch) for threshold in of_series]
            for of_series in current.thresholds
        ], passes


def upper_side(threshold: Threshold, places: object, flat: list[Tensor], scratch: Meter) -> Tensor:
    masks = []
    for block in blocks(places, flat, scratch):  # type: ignore[arg-type]
        edge = threshold.leading_ties(block)
        values = magnitudes(block)[threshold.series]
        above = ~(values <= threshold.value)
        above[:edge] |= values[:edge] == threshold.value
        assert torch.equal(~(values[:edge] <= threshold.below), above[:edge])
        masks.append(above)
    return torch.cat(masks)


def expected(values: Tensor, rank: int) -> Tensor:
    """By definition: sorted by (value, falling index), the elements from `rank` on."""
    size = values.numel()
    keys = [(abs(v) if v == v else math.inf, -i) for i, v in enumerate(values.float().tolist())]
    order = sorted(range(size), key=lambda i: keys[i])
    mask = torch.zeros(size, dtype=torch.bool)
    mask[order[rank:]] = True
    return mask


def sorted_mask(values: Tensor, rank: int) -> Tensor:
    """Like `expected`, for large tensors: a stable sort of falling magnitudes."""
    order = torch.sort(values.float().abs(), descending=True, stable=True).indices
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[: values.numel() - rank]] = True
    return mask


@given(
    values=st.lists(st.sampled_from([0.0, 0.5, -0.5, 1.0, -2.0, 1e-42]), min_size=1, max_size=40),
    place=st.floats(0, 1, exclude_max=True),
    block=st.integers(1, 41),
)
def test_small_tensors_with_ties(values: list[float], place: float, block: int) -> None:
    tensor = torch.tensor(values)
    rank = int(place * len(values))
    (masks,), _ = search([tensor], [[rank]], block)
    assert torch.equal(masks[0], expected(tensor, rank))


def large(kind: str, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(size, generator=generator) * 1e-3
    if kind == "bfloat16 delta":
        base = torch.randn(size, generator=generator).mul_(0.02).bfloat16()
        return (base.float() + values).bfloat16().float() - base.float()
    if kind == "few values":
        return torch.randint(-2, 3, (size,), generator=generator).float()
    if kind == "beside a heavy value":
        # Ranks of the test lie a few elements beside what one value holds.
        values = values.sort().values.abs()
        values[size // 10 + 3 : size // 2 - 5] = 0.5
        values[size // 2 - 5 :] += 1
        return values[torch.randperm(size, generator=generator)]
    if kind == "all equal":
        return torch.full((size,), 0.25)
    if kind == "mostly zero":
        return values * (torch.rand(size, generator=generator) < 1e-3)
    if kind == "sorted":
        return values.sort().values
    if kind == "missed by the sample":
        values[:: order_statistics_module.STRIDE] = 0.0
        return values
    if kind == "one block holds the rank":
        values[: size // 2] *= 1e-3
        values[size // 2 : size // 2 + 40_000] = 0.5 + values[:40_000].abs() * 1e-3
        return values
    return values


KINDS = [
    *("continuous", "bfloat16 delta", "few values", "all equal", "mostly zero", "sorted"),
    *("missed by the sample", "one block holds the rank", "beside a heavy value"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_large_tensors(kind: str) -> None:
    size = 120_001
    values = large(kind, size)
    ranks = [0, 1, size // 10, size // 2, size - 14_000, size - 1000, size - 1]
    (masks,), _ = search([values], [ranks], 1 << 16)
    for rank, mask in zip(ranks, masks, strict=True):
        assert torch.equal(mask, sorted_mask(values, rank)), rank
        assert int(mask.sum()) == size - rank


@pytest.mark.parametrize("kind", ["continuous", "bfloat16 delta"])
def test_two_passes_as_a_rule(kind: str) -> None:
    series = [large(kind, 200_001).roll(shift) for shift in range(8)]
    passes = [search([values], [[100_000]], 1 << 17)[1] for values in series]
    assert sorted(passes)[len(passes) // 2] <= order_statistics_module.READS


@settings(max_examples=10, deadline=None)
@given(
    block=st.sampled_from([1000, 4096, 65_536, 131_072, 10**6]),
    place=st.floats(0, 1, exclude_max=True),
    whole=st.booleans(),
)
def test_any_cut_gives_the_same(block: int, place: float, whole: bool) -> None:
    series = [large("bfloat16 delta", 150_000), large("continuous", 150_000)]
    rank = int(place * 150_000)
    masks, _ = search(series, [[rank], []], block, whole)
    assert masks[1] == []
    assert torch.equal(masks[0][0], sorted_mask(series[0], rank))
    masks, _ = search(series, [[], [rank, rank // 2]], block, whole)
    assert torch.equal(masks[1][1], sorted_mask(series[1], rank // 2))


@pytest.mark.parametrize("size", [50, 200_000])
def test_nan_counts_as_the_largest(size: int) -> None:
    values = torch.linspace(0, 1, size)
    values[5] = math.nan
    values[7] = math.inf
    for rank in (0, size // 2, size - 2):
        (masks,), _ = search([values], [[rank]], 1 << 16)
        assert bool(masks[0][5]) and int(masks[0].sum()) == size - rank
    values[: size - 1] = math.nan
    (masks,), _ = search([values], [[size // 2]], 1 << 16)
    assert bool(masks[0][:-1].all())


def test_candidates_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bracket that holds far more than the sample told is not kept."""
    kept = []
    plain = rank_search.join_counts

    def watched(parts: Sequence[rank_search.Counts]) -> rank_search.Counts:
        counts = plain(parts)
        kept.append(0 if counts.kept is None else counts.kept.numel())
        return counts

    monkeypatch.setattr(order_statistics_module, "join_counts", watched)
    size = 1 << 20
    values = large("missed by the sample", size)
    (masks,), _ = search([values], [[size // 2]], 1 << 17)
    assert torch.equal(masks[0], sorted_mask(values, size // 2))
    assert sum(kept) < size // 20


def test_many_of_one_value_are_kept_once() -> None:
    generator = torch.Generator().manual_seed(2)
    blocks = [torch.randint(0, most, (9000,), generator=generator) * 0.5 for most in (30, 7, 9000)]
    plain = [rank_search.Counts(0, 9000, values) for values in blocks]
    short = [rank_search.join_counts([counts]) for counts in plain]
    assert [counts.times is not None for counts in short] == [True, True, False]
    assert all(len(c.kept) < 40 for c in short[:2] if c.kept is not None)
    for rank in (0, 1, 5000, 13_499, 26_999):
        assert rank_search.select_rank(short, rank) == rank_search.select_rank(plain, rank)


def test_without_numpy_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = large("bfloat16 delta", 100_000)
    (with_numpy,), _ = search([values], [[70_000]], 1 << 16)
    monkeypatch.setattr(rank_search, "has_numpy", lambda: False)
    (without,), _ = search([values], [[70_000]], 1 << 16)
    assert torch.equal(with_numpy[0], without[0])
