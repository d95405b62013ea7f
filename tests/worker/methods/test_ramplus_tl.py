import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of
from support.method_driver import merge
from support.reference_formulas import delta


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    got = merge("ramplus_tl", [t(1, 0, 2, 0), t(3, 3, 0, 0)], t(0, 0, 0, 0))
    assert got.tolist() == pytest.approx([2, 3.06, 2.04, 0])


def test_without_unique_elements() -> None:
    """Nothing to make stronger, whatever shared/epsilon is."""
    models = [t(1, 2), t(3, 4)]
    assert merge("ramplus_tl", models, t(0, 0), alpha=1e9).tolist() == [2, 3]


def test_result_has_the_dtype_of_the_base() -> None:
    """mergekit returns float32 for models of 16 bits."""
    models = [torch.tensor([1.0, 0, 2], dtype=torch.bfloat16) for _ in range(2)]
    assert merge("ramplus_tl", models, torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def reference(case: Case, epsilon: float, r: float, alpha: float) -> Tensor:
    columns = [delta(x, case.base).reshape(-1).tolist() for x in case.models]
    rows = list(zip(*columns, strict=True)) if columns else [()] * case.base.numel()
    active = [[m for m, x in enumerate(row) if abs(x) > epsilon] for row in rows]
    factors = []
    for m in range(len(columns)):
        shared = sum(m in a and len(a) > 1 for a in active)
        unique = sum(a == [m] for a in active)
        ratio = shared / max(unique, epsilon) if shared else 0.0
        factors.append(1 + r * min(ratio, alpha))
    out = []
    for b, row, here in zip(case.base.reshape(-1).tolist(), rows, active, strict=True):
        if len(here) == 1:
            out.append(b + factors[here[0]] * row[here[0]])
        else:
            out.append(b + sum(row[m] for m in here) / max(len(here), 1))
    return torch.tensor(out, dtype=torch.float64).reshape(case.base.shape)


@given(
    cases(0, 4),
    st.sampled_from([1e-5, 1e-3, 0.5]),
    st.sampled_from([0.1, 2.0, 0.0]),
    st.sampled_from([0.2, 5.0]),
    st.sampled_from([3, 10**6]),
)
def test_formula(case: Case, epsilon: float, r: float, alpha: float, block: int) -> None:
    got = merge("ramplus_tl", *case, block=block, epsilon=epsilon, r=r, alpha=alpha)
    assert close(got, reference(case, epsilon, r, alpha), 50 * size_of(case))


def test_counts_are_of_the_whole_tensor() -> None:
    """Shared elements in the first block, unique ones in the last."""
    first, second = torch.zeros(100_000), torch.zeros(100_000)
    first[:100] = second[:100] = 1.0
    first[-1000:] = 1.0
    got = merge("ramplus_tl", [first, second], torch.zeros(100_000), block=4096, r=1.0)
    assert float(got[-1]) == pytest.approx(1.1)
    assert float(got[0]) == 1.0
