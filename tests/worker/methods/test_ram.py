import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, within_half_an_ulp
from support.method_driver import merge
from support.reference_formulas import delta


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    models = [t(1, 0, 2, 1e-5), t(1, 3, 0, 2e-5)]
    assert merge("ram", models, t(0, 0, 0, 0)).tolist() == pytest.approx([1, 3, 2, 2e-5])
    got = merge("ram", models, t(0, 0, 0, 0), epsilon=0.0)
    assert got.tolist() == pytest.approx([1, 3, 2, 1.5e-5])


def test_what_two_of_three_changed_is_averaged_over_two() -> None:
    assert merge("ram", [t(3), t(0), t(-1)], t(0)).tolist() == [1]


def test_negative_epsilon_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        merge("ram", [t(1)], t(0), epsilon=-1.0)


@given(
    cases(0, 4),
    st.sampled_from([1e-5, 0.0, 1e-3, 0.5]),
    st.sampled_from([3, 10**6]),
    st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_formula(case: Case, epsilon: float, block: int, dtype: torch.dtype) -> None:
    case = case.to(dtype)
    got = merge("ram", *case, block=block, epsilon=epsilon)
    bound = epsilon if dtype == torch.float64 else float(torch.tensor(epsilon).float())
    out = []
    columns = [delta(x, case.base).reshape(-1).tolist() for x in case.models]
    for i, b in enumerate(case.base.double().reshape(-1).tolist()):
        active = [column[i] for column in columns if abs(column[i]) > bound]
        out.append(b + sum(active) / max(len(active), 1))
    want = torch.tensor(out, dtype=torch.float64).reshape(case.base.shape)
    if dtype == torch.float64:
        assert close(got, want, 4 * size_of(case))
    else:
        assert within_half_an_ulp(got, want, 4 * size_of(case))
