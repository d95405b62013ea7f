"""Consensus merging of task arithmetic and of TIES: masks by hand, and the formulas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, weight_lists
from support.method_driver import merge
from support.reference_formulas import largest, vote


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_consensus_ta_by_hand() -> None:
    # Needed by both; by the first alone; by neither, since they cancel to little.
    models = [t(1, 1, 1), t(1, 0.1, -0.9)]
    got = merge("consensus_ta", models, t(0, 0, 5), tall_mask_lambda=0.5)
    assert got[0].item() == 2 and got[1].item() == 0
    got = merge("consensus_ta", models, t(0, 0, 0), tall_mask_lambda=2.0)
    assert got.tolist() == [0, 0, 0]
    got = merge("consensus_ta", models, t(0, 0, 0), tall_mask_lambda=2, consensus_threshold=1)
    assert got.tolist() == [0, 1.1, 0]


@pytest.mark.parametrize(
    ("method", "plain", "more"),
    [
        ("consensus_ta", "task_arithmetic", {}),
        ("consensus_ties", "ties", {"density": 0.5, "normalize": False}),
    ],
)
def test_threshold_0_masks_nothing_and_above_all_models_everything(
    method: str, plain: str, more: dict[str, object]
) -> None:
    models, base = [t(1, 2, 3, -1), t(2, -1, 0, -2)], t(1, 1, 1, 1)
    values = {"weight": [0.5, 2], "lambda_": 0.3, **more}
    got = merge(method, models, base, consensus_threshold=0, **values)  # type: ignore[arg-type]  # values
    want = merge(plain, models, base, **values)  # type: ignore[arg-type]  # values
    assert got.tolist() == pytest.approx(want.tolist())
    got = merge(method, models, base, consensus_threshold=3, **values)  # type: ignore[arg-type]  # values
    assert got.equal(base)


@given(
    cases(0, 4, ["random", "near", "base", "zero", "same"]),
    weight_lists(4),
    st.sampled_from([1.0, 0.3]),
    st.sampled_from([0.2, 0.437, 0.6]),
    st.integers(0, 3),
    st.sampled_from([3, 10**6]),
)
def test_formula_of_consensus_ta(
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


def test_consensus_ties_by_hand() -> None:
    # The second element is trimmed by the first model, which needs it all the same; the last one
    # is needed by the first model alone.
    models = [t(4, 3, 1, 4), t(4, 2, 0.1, 0.1)]
    got = merge("consensus_ties", models, t(0, 0, 0, 0), density=0.5, tall_mask_lambda=0.5)
    assert got.tolist() == [8, 2, 0, 0]
    values = {"density": [1, 1], "tall_mask_lambda": 0.5}
    got = merge("consensus_ties", models, t(0, 0, 0, 0), **values)  # type: ignore[arg-type]  # values
    assert got.tolist() == [8, 5, 0, 0]
    got = merge("consensus_ties", models, t(0, 0, 0, 0), normalize=True, **values)  # type: ignore[arg-type]  # values
    assert got.tolist() == [4, 2.5, 0, 0]


def test_default_density_is_that_of_ties_paper() -> None:
    x = torch.arange(1, 11, dtype=torch.float64)
    got = merge("consensus_ties", [x, x], x * 0)
    assert got.tolist() == [0] * 8 + [18, 20]


@given(
    cases(1, 4, ["random", "near", "base", "zero"]),
    st.lists(st.sampled_from([1.0, 0.37, 2.0, -0.7]), min_size=4, max_size=4),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from([0.2, 0.437, 0.61]),
    st.integers(0, 3),
    st.sampled_from([3, 10**6]),
)
def test_formula_of_consensus_ties(
    case: Case,
    weights: list[float],
    density: float,
    normalize: bool,
    part: float,
    least: int,
    block: int,
) -> None:
    weights = weights[: len(case.models)]
    got = merge(
        "consensus_ties",
        *case,
        block=block,
        weight=weights,
        density=density,
        normalize=normalize,
        tall_mask_lambda=part,
        consensus_threshold=least,
    )
    deltas = [x - case.base for x in case.models]
    merged = vote([largest(d, density) for d in deltas], weights, "sum", normalize)
    votes = torch.zeros_like(merged)
    for weight, d in zip(weights, deltas, strict=True):
        own = d if normalize else weight * d
        # Where they are equal but for rounding, |own| is not larger.
        votes += own.abs() > part * (merged - own).abs() * (1 + 1e-12)
    want = case.base + torch.where(votes >= least, merged, 0)
    assert close(got, want, 1e3 * size_of(case))
