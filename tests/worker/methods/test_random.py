"""Random numbers by counting: the definition, independence of cutting, and their quality."""

import math

import pytest
import torch
from driver import Meter
from selection import draws
from torch import Tensor

from worker.methods._define import Block
from worker.methods._random import RUN, Stream, above

SIZE = 1 << 19


def numbers(model: int, start: int = 0, count: int = SIZE, tensor: str = "t") -> Tensor:
    block = Block([torch.empty(0)], start, Meter())
    return Stream.of(0, tensor, model).fill(block, torch.empty(count))


def test_definition() -> None:
    assert numbers(3, 0, 500).equal(draws(0, "t", 3, 500))
    late = draws(0, "t", 1, RUN + 300)[RUN - 200 :]
    assert numbers(1, RUN - 200, 500).equal(late)


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
    masks = torch.stack([numbers(m) > above(density) for m in range(6)]).double()
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
        Stream.of(seed, name, model).key
        for seed in range(10)
        for name in ("layers.1.a", "layers.11.a", "layers.1.b")
        for model in range(12)
    }
    assert len(streams) == 360


def test_bounds_of_probability() -> None:
    assert above(0.0) >= float(torch.tensor(2**31 - 1).float())
    assert above(1.0) == -(2.0**31)
    assert above(0.3) == float(torch.tensor(above(0.3)).float())
