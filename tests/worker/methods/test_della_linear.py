import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import merge
from support.reference_formulas import delta, kept_by_rank, rescaled, vote

CHANCES = [(0.5, 0.15), (0.3, 0.2), (0.7, 0.1), (0.5, 0.4), (0.4, 0.0), (1.0, 0.15), (0.0, 0.15)]


@given(
    cases(0, 3),
    weight_lists(3),
    st.lists(st.sampled_from(CHANCES), min_size=3, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([3, 64, 10**6]),
    st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_formula(
    case: Case,
    weights: list[float],
    chances: list[tuple[float, float]],
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
        "della_linear",
        *case,
        block=block,
        seed=seed,
        weight=weights[:count],
        density=[d for d, _ in chances[:count]],
        epsilon=[e for _, e in chances[:count]],
        normalize=normalize,
        rescale=rescale,
    )
    deltas = [delta(x, case.base) for x in case.models]
    kept = [
        kept_by_rank(d, p, seed, m)
        for m, (d, p) in enumerate(zip(deltas, chances[:count], strict=True))
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
    first, second = (torch.randn(40, 60, generator=noise) for _ in range(2))
    zero, values = torch.zeros(40, 60), {"density": 0.5, "epsilon": 0.2}
    both = merge("della_linear", [first, second], zero, weight=[2, -1], **values)  # type: ignore[arg-type]  # values
    one = merge("della", [first, second], zero, weight=[2, 0], normalize=False, **values)  # type: ignore[arg-type]  # values
    other = merge("della", [first, second], zero, weight=[0, -1], normalize=False, **values)  # type: ignore[arg-type]  # values
    assert torch.allclose(both, one + other, rtol=1e-6, atol=1e-6)
    mean = merge("della_linear", [first, second], zero, weight=[2, 2], normalize=True)
    assert torch.allclose(mean, (first + second) / 2, rtol=1e-6, atol=1e-6)


def test_probabilities_outside_0_and_1_are_refused() -> None:
    x = torch.ones(4, 4)
    with pytest.raises(ValueError, match="epsilon must be smaller than"):
        merge("della_linear", [x], x, weight=1, density=0.9)
    with pytest.raises(ValueError, match="0 or more"):
        merge("della_linear", [x], x, weight=1, density=0.5, epsilon=-0.1)
