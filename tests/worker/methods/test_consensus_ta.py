import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, weight_lists
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_by_hand() -> None:
    # Needed by both; by the first alone; by neither, since they cancel to little.
    models = [t(1, 1, 1), t(1, 0.1, -0.9)]
    got = merge("consensus_ta", models, t(0, 0, 5), tall_mask_lambda=0.5)
    assert got[0].item() == 2 and got[1].item() == 0
    got = merge("consensus_ta", models, t(0, 0, 0), tall_mask_lambda=2.0)
    assert got.tolist() == [0, 0, 0]
    got = merge("consensus_ta", models, t(0, 0, 0), tall_mask_lambda=2, consensus_threshold=1)
    assert got.tolist() == [0, 1.1, 0]


def test_no_consensus_asked_for_is_task_arithmetic() -> None:
    models, base = [t(1, 2, 3), t(2, -1, 0)], t(1, 1, 1)
    values = {"weight": [0.5, 2], "lambda_": 0.3}
    got = merge("consensus_ta", models, base, consensus_threshold=0, **values)  # type: ignore[arg-type]  # values
    want = merge("task_arithmetic", models, base, **values)  # type: ignore[arg-type]  # values
    assert got.tolist() == pytest.approx(want.tolist())
    got = merge("consensus_ta", models, base, consensus_threshold=3, **values)  # type: ignore[arg-type]  # values
    assert got.equal(base)


@given(
    cases(0, 4, ["random", "near", "base", "zero", "same"]),
    weight_lists(4),
    st.sampled_from([1.0, 0.3]),
    st.sampled_from([0.2, 0.437, 0.6]),
    st.integers(0, 3),
    st.sampled_from([3, 10**6]),
)
def test_formula(
    case: Case, weights: list[float], scale: float, part: float, least: int, block: int
) -> None:
    weights = weights[: len(case.models)]
    got = merge(
        "consensus_ta",
        *case,
        block=block,
        weight=weights,
        lambda_=scale,
        tall_mask_lambda=part,
        consensus_threshold=least,
    )
    out = []
    columns = [(x - case.base).reshape(-1).tolist() for x in case.models]
    for i, b in enumerate(case.base.reshape(-1).tolist()):
        terms = [w * column[i] for w, column in zip(weights, columns, strict=True)]
        total = sum(terms)
        votes = sum(abs(x) > part * abs(total - x) for x in terms)
        out.append(b + scale * total if votes >= least else b)
    want = torch.tensor(out, dtype=torch.float64).reshape(case.base.shape)
    assert close(got, want, 10 * size_of(case))
