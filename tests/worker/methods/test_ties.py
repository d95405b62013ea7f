import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import merge
from support.reference_formulas import DENSITIES, delta, largest, rescaled, vote


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = t(0, 0, 0, 0)
FIRST = [t(2, 2, 0, -1), t(1, -1, 3, -1)]


@pytest.mark.parametrize(
    ("models", "values", "want"),
    [
        (FIRST, {"weight": [1, 3]}, [1.25, -1, 3, -1]),
        (FIRST, {"weight": [1, 3], "normalize": False}, [5, -3, 9, -4]),
        (FIRST, {"weight": [1, 3], "lambda_": 2}, [2.5, -2, 6, -2]),
        (
            [t(4, -3, 2, 1), t(1, 2, -3, 4)],
            {"weight": [1, 1], "density": [0.5, 0.5]},
            [4, -3, -3, 4],
        ),
        ([t(1, 1, 0, 0), t(-1, 1, 0, -2)], {"weight": [1, 1]}, [1, 1, 0, -2]),
        ([t(2, 2, 2, 2), t(-1, -1, -1, -1)], {"weight": [1, -1]}, [3, 3, 3, 3]),
    ],
)
def test_by_hand(models: list[Tensor], values: dict[str, object], want: list[float]) -> None:
    assert merge("ties", models, ZERO, **values).tolist() == want  # type: ignore[arg-type]  # values


def test_rescale_by_hand() -> None:
    delta = torch.arange(1, 11, dtype=torch.float64)
    got = merge("ties", [delta], torch.zeros_like(delta), weight=1, density=0.3, rescale=True)
    assert got.tolist() == pytest.approx([0] * 7 + [16.296296, 18.333333, 20.370370], abs=1e-6)


def test_counting_votes_by_hand() -> None:
    models, zero = [t(5, -1), t(-1, 3), t(-1, -1)], t(0, 0)
    assert merge("ties", models, zero, weight=1).tolist() == [5, 3]
    assert merge("ties", models, zero, weight=1, consensus_method="count").tolist() == [-1, -1]
    # Two against two is a tie, and positive; a negative weight turns a vote.
    models = [t(1), t(2), t(-5), t(-6)]
    assert merge("ties", models, t(0), weight=1, consensus_method="count").tolist() == [1.5]
    got = merge("ties", models, t(0), weight=[1, -1, 1, 1], consensus_method="count")
    assert got.tolist() == pytest.approx([-13 / 1])
    with pytest.raises(ValueError, match="sum, count"):
        merge("ties", models, t(0), weight=1, consensus_method="majority")


def reference(case: Case, weights: list[float], densities: list[float], **more: object) -> Tensor:
    if not case.models:
        return case.base.double()
    deltas = [delta(x, case.base) for x in case.models]
    kept = [largest(d, density) for d, density in zip(deltas, densities, strict=True)]
    if more["rescale"]:
        kept = [rescaled(d, k) for d, k in zip(deltas, kept, strict=True)]
    merged = vote(kept, weights, str(more["consensus_method"]), bool(more["normalize"]))
    return case.base.double() + float(str(more["lambda_"])) * merged


def options() -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries(
        {
            "normalize": st.booleans(),
            "rescale": st.booleans(),
            "lambda_": st.sampled_from([1.0, 0.5, -2.0]),
            "consensus_method": st.sampled_from(["sum", "count"]),
        }
    )


densities = st.lists(st.sampled_from(DENSITIES), min_size=3, max_size=3)


@given(cases(0, 3), weight_lists(3), densities, options(), st.sampled_from([3, 64, 10**6]))
def test_formula(
    case: Case, weights: list[float], density: list[float], more: dict[str, object], block: int
) -> None:
    given = {"weight": weights[: len(case.models)], "density": density[: len(case.models)]}
    got = merge("ties", *case, block=block, **given, **more)  # type: ignore[arg-type]  # values
    want = reference(case, given["weight"], given["density"], **more)
    # Rescaling multiplies by up to the number of elements.
    assert close(got, want, 300 * size_of(case))


@given(cases(1, 3), densities, options())
def test_one_rounding(case: Case, density: list[float], more: dict[str, object]) -> None:
    case = case.to(torch.bfloat16)
    given = {"weight": [1.0, 0.5, 2.0][: len(case.models)], "density": density[: len(case.models)]}
    got = merge("ties", *case, **given, **more)  # type: ignore[arg-type]  # values
    want = reference(case, given["weight"], given["density"], **more)
    size = 30 * size_of(case) + float(want.abs().max() if want.numel() else 0)
    assert within_half_an_ulp(got, want, size)


@pytest.mark.parametrize("density", [0.1, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exactly_k_of_many_equal_magnitudes(density: float, dtype: torch.dtype) -> None:
    """Larger than one block, deltas of three magnitudes, ties taken in order."""
    noise = torch.Generator().manual_seed(3)
    x = torch.randint(-2, 3, (150_001,), generator=noise).to(dtype)
    base = torch.zeros_like(x)
    got = merge("ties", [x], base, weight=1, density=density, block=40_000)
    k = int(density * x.numel())
    ranked = torch.sort(x.abs().float(), descending=True, stable=True).indices
    want = torch.zeros_like(x)
    want[ranked[:k]] = x[ranked[:k]]
    assert got.equal(want)


@pytest.mark.parametrize("rescale", [False, True])
def test_blocks_change_no_bit(rescale: bool) -> None:
    noise = torch.Generator().manual_seed(4)
    base = (torch.randn(200_000, generator=noise) * 0.02).bfloat16()
    models = [
        (base.float() + torch.randn(200_000, generator=noise) * 1e-3).bfloat16() for _ in range(2)
    ]
    values = {"weight": [0.6, 0.4], "density": [0.3, 0.7], "rescale": rescale}
    whole = merge("ties", models, base, **values)  # type: ignore[arg-type]  # values
    for block in (4096, 65_536):
        assert merge("ties", models, base, block=block, **values).equal(whole)  # type: ignore[arg-type]  # values


def test_one_element_is_always_kept() -> None:
    assert merge("ties", [t(1, 3, 2)], t(0, 0, 0), weight=1, density=1e-9).tolist() == [0, 3, 0]
    assert merge("ties", [t(1, 3, 2)], t(0, 0, 0), weight=1, density=0).tolist() == [0, 0, 0]


def test_int8_mask_changes_nothing() -> None:
    got = merge("ties", FIRST, ZERO, weight=[1, 3], int8_mask=True)
    assert got.equal(merge("ties", FIRST, ZERO, weight=[1, 3]))


def test_rescaling_of_large_half_precision_tensors() -> None:
    """Norms above 65504, with which float16 arithmetic ends in Inf."""
    x = torch.full((100_000,), 2.0, dtype=torch.float16)
    got = merge("ties", [x], torch.zeros_like(x), weight=1, density=0.5, rescale=True)
    assert sorted(set(got.tolist())) == [0.0, 4.0]


def test_norms_below_1e_7_are_not_restored() -> None:
    got = merge("ties", [t(1e-9, 3e-9)], t(0, 0), weight=1, density=0.5, rescale=True)
    assert got.tolist() == [0, 3e-9]
    got = merge("ties", [t(1e-7, 3e-7)], t(0, 0), weight=1, density=0.5, rescale=True)
    assert got.tolist() == pytest.approx([0, 4e-7])
