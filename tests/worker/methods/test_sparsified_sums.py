"""The methods that drop elements of task vectors and add the rest, against their formulas."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import merge
from support.reference_formulas import (
    DENSITIES,
    delta,
    inner,
    kept_by_chance,
    kept_by_rank,
    rescaled,
    vote,
)

TENSOR = "some.name"
CHANCES = [(0.5, 0.15), (0.3, 0.2), (0.7, 0.1), (0.5, 0.4), (0.4, 0.0), (1.0, 0.15), (0.0, 0.15)]


class Sparsifier(NamedTuple):
    parameters: tuple[str, ...]
    values: st.SearchStrategy[tuple[float, ...]]
    keep: Callable[[Tensor, tuple[float, ...], int, int], Tensor]
    """`keep(delta, values, seed, model)` zeroes what the sparsifier drops."""
    noise: float  # of float32, relative to the largest number


BREADCRUMBS = Sparsifier(
    ("density", "gamma"),
    st.tuples(st.sampled_from(DENSITIES), st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.9])),
    lambda d, values, seed, model: inner(d, *values),
    30,
)
DARE = Sparsifier(
    ("density",),
    st.tuples(st.sampled_from(DENSITIES)),
    lambda d, values, seed, model: kept_by_chance(d, *values, seed, TENSOR, model),
    100,
)
DELLA = Sparsifier(
    ("density", "epsilon"),
    st.sampled_from(CHANCES),
    lambda d, values, seed, model: kept_by_rank(d, *values, seed, TENSOR, model),
    100,
)


@pytest.mark.parametrize(
    ("method", "sparsifier", "consensus"),
    [
        ("breadcrumbs", BREADCRUMBS, None),
        ("breadcrumbs_ties", BREADCRUMBS, "sum"),
        ("dare_linear", DARE, None),
        ("dare_ties", DARE, "sum"),
        ("della_linear", DELLA, None),
        ("della", DELLA, "sum"),
    ],
)
@given(
    st.data(),
    cases(0, 3),
    weight_lists(3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from([3, 64, 10**6]),
    st.sampled_from([torch.float64, torch.bfloat16]),
)
def test_formula(
    method: str,
    sparsifier: Sparsifier,
    consensus: str | None,
    data: st.DataObject,
    case: Case,
    weights: list[float],
    normalize: bool,
    rescale: bool,
    seed: int,
    block: int,
    dtype: torch.dtype,
) -> None:
    case, count = case.to(dtype), len(case.models)
    chosen = data.draw(st.lists(sparsifier.values, min_size=count, max_size=count))
    weights = weights[:count]
    if dtype == torch.bfloat16:
        weights = [abs(w) + 0.5 for w in weights]
    got = merge(
        method,
        *case,
        block=block,
        seed=seed,
        tensor=TENSOR,
        weight=weights,
        normalize=normalize,
        rescale=rescale,
        **{name: [v[i] for v in chosen] for i, name in enumerate(sparsifier.parameters)},
    )
    deltas = [delta(x, case.base) for x in case.models]
    pairs = enumerate(zip(deltas, chosen, strict=True))
    kept = [sparsifier.keep(d, values, seed, m) for m, (d, values) in pairs]
    if rescale:
        kept = [rescaled(d, k) for d, k in zip(deltas, kept, strict=True)]
    want = case.base.double() + vote(kept, weights, consensus, normalize) if kept else got
    if dtype == torch.float64:
        # A factor of rescaling and weights that nearly cancel enlarge errors of rounding.
        assert close(got, want, 1e4 * size_of(case))
    else:
        largest = float(want.abs().max()) if want.numel() else 0.0
        assert within_half_an_ulp(got, want.double(), sparsifier.noise * size_of(case) + largest)
