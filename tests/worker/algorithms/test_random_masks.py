"""Random numbers by counting: the definition, independence of cutting, and their quality."""

import math

import pytest
import torch
from torch import Tensor

from merge_worker.algorithms.random_masks import GROUP, RUN, RandomStream, keep_bound
from merge_worker.method import Block
from support.method_driver import Meter
from support.reference_formulas import draws

SIZE = 1 << 19


def numbers(model: int, start: int = 0, count: int = SIZE, tensor: str = "t") -> Tensor:
    block = Block([torch.empty(count)], start, Meter())
    return RandomStream.of(0, tensor, model).words(block).long()


def test_definition() -> None:
    assert numbers(3, 0, 500).equal(draws(0, "t", 3, 500))
    late = draws(0, "t", 1, RUN + 300)[RUN - 200 :]
    assert numbers(1, RUN - 200, 500).equal(late)
    assert numbers(1, 0, RUN + 300)[RUN - 200 :].equal(late)


def test_groups_of_runs() -> None:
    border = GROUP * RUN
    near = numbers(1, border - 3 * RUN - 7, 6 * RUN)
    assert near[: 3 * RUN + 7].equal(numbers(1, border - 3 * RUN - 7, 3 * RUN + 7))
    assert near[3 * RUN + 7 :].equal(numbers(1, border, 3 * RUN - 7))


@pytest.mark.parametrize("step", [1000, RUN, 100_000])
def test_any_cut_gives_the_same(step: int) -> None:
    whole = numbers(0, 0, 300_000)
    for start in range(0, 300_000, step):
        count = min(step, 300_000 - start)
        assert numbers(0, start, count).equal(whole[start : start + count])


def test_beyond_32_bits_of_index() -> None:
    far = numbers(0, (1 << 40) + 5, 1000)
    assert not far.equal(numbers(0, 5, 1000))
    assert far.equal(numbers(0, 1 << 40, 1005)[5:])


@pytest.mark.parametrize("density", [0.5, 0.1, 0.53, 0.9, 0.01, 0.001])
def test_share_and_independence(density: float) -> None:
    """Shares per model, per run, per 64 neighbours, per column; models and lags uncorrelated."""
    masks = torch.stack([numbers(m) >= keep_bound(density) for m in range(6)]).double()
    spread = density * (1 - density)
    normed = (masks - density) / math.sqrt(spread)
    assert float(normed.mean(1).abs().max()) * math.sqrt(SIZE) < 4.5
    for width in (64, 2048, RUN):
        counts = masks.view(-1, width).sum(1)
        ratio = float(((counts - density * width) ** 2).mean()) / (spread * width)
        assert abs(ratio - 1) < 6 * math.sqrt((2 + 1 / (width * spread)) / len(counts))
    columns = masks.view(6, -1, 2048).sum(1)
    ratio = float(((columns - density * SIZE / 2048) ** 2).mean()) * 2048 / (SIZE * spread)
    assert abs(ratio - 1) < 6 * math.sqrt(2 / columns.numel()) + 0.01
    between = (normed @ normed.T / math.sqrt(SIZE))[~torch.eye(6, dtype=torch.bool)]
    assert float(between.abs().max()) < 4.5
    for lag in (1, 2, 3, 64, 768, 2048, 5632, RUN // 2, RUN, 2 * RUN):
        both = float((normed[:, lag:] * normed[:, :-lag]).mean())
        assert abs(both) * math.sqrt(6 * (SIZE - lag)) < 4.5, lag


def test_every_name_model_and_seed_has_its_own() -> None:
    streams = {
        RandomStream.of(seed, name, model).key
        for seed in range(10)
        for name in ("layers.1.a", "layers.11.a", "layers.1.b")
        for model in range(12)
    }
    assert len(streams) == 360


def test_bounds_of_probability() -> None:
    assert keep_bound(0.0) == keep_bound(1e-12) == 2**31 - 1
    assert keep_bound(1.0) == keep_bound(1 - 1e-12) == -(2**31)
    assert keep_bound(0.25) == 2**30
