"""Weighted sums and Gram matrices, which methods with linear combinations share."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker import methods
from merge_worker.algorithms.gram import TensorGram
from merge_worker.algorithms.modifiers import begin
from merge_worker.algorithms.weighted_sum import WeightedSum, whole_ratio
from merge_worker.engine.buffers import Pool
from merge_worker.method import Block, MergePass
from support.method_driver import make_task, merge


@pytest.mark.parametrize(
    ("coefficients", "whole"),
    [
        ([1 / 3] * 3, [1, 1, 1]),
        ([0.3, 0.7], [3, 7]),
        ([0.37, 0.41, 0.22], [37, 41, 22]),
        ([-0.4, 1.4, 0.0], [-2, 7, 0]),
        ([0.999, 0.001], [999, 1]),
    ],
)
def test_weights_of_people_are_in_whole_ratios(
    coefficients: list[float], whole: list[float]
) -> None:
    numbers, scale = whole_ratio(coefficients)
    assert list(numbers) == whole
    assert [scale * w for w in numbers] == pytest.approx(coefficients, rel=1e-14)


@pytest.mark.parametrize(
    "coefficients", [[0.3712345, 0.6], [1e-9, 1.0], [math.nan, 1.0], [math.inf, 1.0], [0.0], []]
)
def test_others_stay_as_they_are(coefficients: list[float]) -> None:
    assert repr(whole_ratio(coefficients)) == repr((tuple(coefficients), 1.0))


def test_terms_that_cancel_leave_nothing() -> None:
    x = torch.randn(1000).bfloat16()
    assert not merge("linear", [x, x, x], weight=[0.37, 0.41, -0.78], normalize=False).any()


def test_large_coefficients_are_summed_in_double_precision() -> None:
    x, y = torch.tensor([1.0, 1.0078125]).bfloat16().split(1)
    out = torch.empty(1, dtype=torch.bfloat16)
    block = Block([x, y], 0, Pool(torch.device("cpu")))
    WeightedSum([-123456.789, 123456.789 + 1], "float32").merge(block, out)
    assert out.item() == torch.tensor(1.0078125 + 123456.789 / 128).bfloat16().item()


@given(
    st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    st.integers(0, 1 << 20),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_any_weights_give_the_nearest_number(
    weight: list[float], seed: int, dtype: torch.dtype
) -> None:
    """Also where terms cancel to nearly nothing: within half a step of the result's own size."""
    chance = torch.Generator().manual_seed(seed)
    models = [torch.randn(400, generator=chance).to(dtype) for _ in weight]
    models[-1] = (models[0].double() * -1.0009).to(dtype)
    got = merge("linear", models, weight=weight, normalize=False)
    want = sum(w * x.double() for w, x in zip(weight, models, strict=True))
    assert isinstance(want, Tensor)
    bits, smallest = (8, -133) if dtype == torch.bfloat16 else (11, -24)
    exponents = (torch.frexp(want).exponent - bits).clamp(min=smallest)
    step = torch.ldexp(torch.ones_like(want), exponents)
    noise = 1e-15 * sum(abs(w) * x.double().abs() for w, x in zip(weight, models, strict=True))
    assert bool(((got.double() - want).abs() <= step / 2 + noise).all())


def test_the_gram_matrix_of_16_bits_is_nearly_exact() -> None:
    noise = torch.Generator().manual_seed(0)
    xs = [torch.randn(300_001, generator=noise).add_(0.1).bfloat16() for _ in range(5)]
    grams: list[Tensor] = []

    def then(gram: Tensor) -> MergePass:
        grams.append(gram)
        return WeightedSum([1.0], "float32")

    for dtype, error in (("float32", 1.5e-7), ("float64", 1e-13)):
        for deltas in (False, True):
            count = 4 if deltas else 5
            gram = TensorGram(count, deltas, dtype, 300_001, then)
            scratch = Pool(torch.device("cpu"))
            parts = zip(*(x.split(70_000) for x in xs), strict=True)
            gram.next_pass(
                [gram.collect(Block(list(p), i * 70_000, scratch)) for i, p in enumerate(parts)]
            )
            matrix = torch.stack(xs).double()
            matrix = matrix[:4] - matrix[4] if deltas else matrix
            want = matrix @ matrix.T
            assert float((grams[-1] - want).abs().max() / want.max()) < error
            assert grams[-1].equal(grams[-1].T)


def test_a_tensor_without_change_has_no_direction() -> None:
    """A length of zero must not make a coefficient of 1e8 that rounds the base away."""
    base = torch.full((5,), 1.5390625).bfloat16()
    x = base - 1
    assert merge("multislerp", [x, base.clone()], base, weight=[1.0, 0.6]).sub(base).abs().max() < 1


def test_a_base_alone_is_known_while_planning() -> None:
    method = methods.get("slerp")
    task = make_task(method, [], torch.ones(3), {"t": 0.5})
    method.algorithm.check(method, task)
    assert isinstance(begin(method, task), WeightedSum)
