from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = t(0, 0, 0, 0)
FIRST = [t(1, 2, 3, 4), t(2, -1, 3, 0)]
SECOND = [t(1, 2, 3, 4), t(5, 1, 3, 1)]


@pytest.mark.parametrize(
    ("models", "values", "want"),
    [
        (FIRST, {}, [1.318182, 2, 3, 4]),
        (FIRST, {"select_topk": 0.5}, [0, 0, 0, 4]),
        (SECOND, {}, [3.181818, 1.454545, 3, 2.363636]),
        ([x * 1e-4 for x in SECOND], {}, [3e-4, 1.5e-4, 3e-4, 2.5e-4]),
    ],
)
def test_by_hand(models: list[Tensor], values: dict[str, float], want: list[float]) -> None:
    got = merge("sce", models, ZERO, **values)  # type: ignore[arg-type]  # values
    assert got.tolist() == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_the_method_of_the_paper_at_any_scale() -> None:
    large = merge("sce", SECOND, ZERO, min_energy=0)
    small = merge("sce", [x * 1e-4 for x in SECOND], ZERO, min_energy=0)
    assert (small * 1e4).tolist() == pytest.approx(large.tolist())
    assert merge("sce", [ZERO, ZERO], ZERO, min_energy=0).tolist() == [0, 0, 0, 0]


def test_nothing_selected_is_the_base() -> None:
    base = t(1, 2, 3, 4)
    for share in (0.0, -1.0, 0.2):
        got = merge("sce", [base + 1, base + t(1, 1, 1, 2)], base, select_topk=share)
        assert got.equal(base)
    assert merge("sce", [base + 1, base + 1], base, select_topk=0.9).equal(base)
    assert merge("sce", [base + 1], base, select_topk=0.9).equal(base)


def exact(values: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in values.reshape(-1).tolist()]


def reference(case: Case, share: float, least: float) -> Tensor:
    """In fractions, element by element: no rounding anywhere."""
    base = exact(case.base)
    rows = [[x - b for x, b in zip(exact(m), base, strict=True)] for m in case.models]
    count, models = len(base), len(rows)
    columns = list(zip(*rows, strict=True))
    if share < 1:
        spread = [sum(x * x for x in c) / models - (sum(c) / models) ** 2 for c in columns]
        differing = sum(v != 0 for v in spread)
        k = int(torch.tensor(differing, dtype=torch.float32) * share) if share > 0 else 0
        kept = set(sorted(range(count), key=lambda i: (-spread[i], i))[:k])
        columns = [c if i in kept else (Fraction(0),) * models for i, c in enumerate(columns)]
    energies = [float(sum(c[m] ** 2 for c in columns)) / max(count, 1) for m in range(models)]
    total = sum(energies)
    equal = abs(total) < least or total == 0
    weights = [1 / models if equal else q / total for q in energies]
    out = []
    for b, column in zip(base, columns, strict=True):
        sign = 1 if sum(column) >= 0 else -1
        agreeing = [m for m, x in enumerate(column) if x * sign > 0]
        moved = sum(weights[m] * float(column[m]) for m in agreeing)
        out.append(float(b) + moved / max(sum(weights[m] for m in agreeing), 1e-6))
    return torch.tensor(out, dtype=torch.float64).reshape(case.base.shape)


@given(
    # Dyadic values: variances that are equal in fractions are equal in float64 as well.
    cases(1, 4, ["random", "base", "zero", "opposite", "same", "double"]),
    st.sampled_from([0.1, 0.29, 0.5, 0.9, 1.0, 2.0]),
    st.sampled_from([1e-6, 0.0, 1.0]),
    st.sampled_from([3, 64, 10**6]),
)
def test_formula(case: Case, share: float, least: float, block: int) -> None:
    case = Case([(x * 64).round() / 64 for x in case.models], (case.base * 64).round() / 64)
    got = merge("sce", *case, block=block, select_topk=share, min_energy=least)
    assert close(got, reference(case, share, least), size_of(case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_exactly_k_of_many_equal_variances(dtype: torch.dtype) -> None:
    """Larger than one block; equal variances are taken in the order of the tensor."""
    noise = torch.Generator().manual_seed(3)
    first = torch.randint(0, 3, (150_001,), generator=noise).to(dtype)
    second = torch.zeros_like(first)
    got = merge("sce", [first, second], second, select_topk=0.3, block=40_000)
    k = int(torch.tensor(int(first.ne(0).sum()), dtype=torch.float32) * 0.3)
    ranked = torch.sort(first.float(), descending=True, stable=True).indices
    want = torch.zeros_like(first)
    want[ranked[:k]] = first[ranked[:k]]
    assert got.equal(want)


def test_weights_are_not_accepted() -> None:
    with pytest.raises(AssertionError, match="no parameters"):
        merge("sce", FIRST, ZERO, weight=1)
