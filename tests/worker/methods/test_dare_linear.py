import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import merge
from support.reference_formulas import DENSITIES, delta, kept_by_chance, rescaled, vote


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(
    cases(0, 3),
    weight_lists(3),
    st.lists(st.sampled_from(DENSITIES), min_size=3, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([3, 64, 10**6]),
    st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_formula(
    case: Case,
    weights: list[float],
    density: list[float],
    normalize: bool,
    rescale: bool,
    seed: int,
    block: int,
    dtype: torch.dtype,
) -> None:
    case, count = case.to(dtype), len(case.models)
    if dtype == torch.bfloat16:
        weights = [abs(w) + 0.5 for w in weights]
    got = merge(
        "dare_linear",
        *case,
        block=block,
        seed=seed,
        tensor="some.name",
        weight=weights[:count],
        density=density[:count],
        normalize=normalize,
        rescale=rescale,
    )
    deltas = [delta(x, case.base) for x in case.models]
    kept = [
        kept_by_chance(d, p, seed, "some.name", m)
        for m, (d, p) in enumerate(zip(deltas, density[:count], strict=True))
    ]
    if rescale:
        kept = [rescaled(d, k) for d, k in zip(deltas, kept, strict=True)]
    want = case.base.double() + vote(kept, weights[:count], None, normalize) if kept else got
    if dtype == torch.float64:
        assert close(got, want, 1e4 * size_of(case))
    else:
        largest = float(want.abs().max()) if want.numel() else 0.0
        assert within_half_an_ulp(got, want.double(), 100 * size_of(case) + largest)


def test_sum_without_votes() -> None:
    noise = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5000, generator=noise) for _ in range(2))
    zero = torch.zeros(5000)
    both = merge("dare_linear", [first, second], zero, weight=[2, -1], density=0.4)
    one = merge("dare_ties", [first, second], zero, weight=[2, 0], density=0.4)
    other = merge("dare_ties", [first, second], zero, weight=[0, -1], density=0.4)
    assert torch.allclose(both, one + other, rtol=1e-6, atol=1e-6)


def test_divisor_by_hand() -> None:
    models, zero = [t(1, 2, 4), t(3, -2, 0)], t(0, 0, 0)
    assert merge("dare_linear", models, zero, weight=[1, 2]).tolist() == [7, -2, 4]
    got = merge("dare_linear", models, zero, weight=[1, 3], normalize=True)
    assert got.tolist() == [2.5, -1, 1]
    # Weights that add up to nothing are not divided by.
    got = merge("dare_linear", models, zero, weight=[1, -1], normalize=True)
    assert got.tolist() == [-2, 4, 4]


def test_l1_norm_is_restored() -> None:
    x = torch.linspace(0.5, 1.5, 100_000)
    got = merge("dare_linear", [x], x * 0, weight=1, density=0.1)
    assert float(got.double().sum()) == pytest.approx(float(x.double().sum()), rel=1e-6)
    plain = merge("dare_linear", [x], x * 0, weight=1, density=0.1, rescale=False)
    assert plain.equal(torch.where(got != 0, x, 0.0))
    assert float(plain.ne(0).double().mean()) == pytest.approx(0.1, abs=0.005)
