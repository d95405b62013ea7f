"""Tensors for property tests: the combinations in which merge methods go wrong."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

SHAPES = [
    (),
    (1,),
    (2,),
    (7,),
    (130,),
    (1, 1),
    (3, 5),
    (5, 1),
    (1, 6),
    (2, 3, 4),
    (0,),
    (0, 3),
    (3, 0),
]
KINDS = ["random", "near", "base", "zero", "opposite", "same", "double"]


class Case(NamedTuple):
    models: list[Tensor]
    base: Tensor

    def to(self, dtype: torch.dtype) -> "Case":
        return Case([x.to(dtype) for x in self.models], self.base.to(dtype))

    def double(self) -> "Case":
        return self.to(torch.float64)


@st.composite
def cases(draw: st.DrawFn, least: int, most: int, kinds: list[str] = KINDS) -> Case:
    """Draw `least` to `most` models and a base of one shape, in float64."""
    shape = draw(st.sampled_from(SHAPES))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scale = draw(st.sampled_from([1.0, 0.02, 30.0]))

    def random() -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64) * scale

    base = torch.zeros(shape, dtype=torch.float64) if draw(st.booleans()) else random()
    models: list[Tensor] = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=least, max_size=most)):
        first = models[0] if models else base
        models.append(
            {
                "random": random(),
                "near": base + 1e-3 * random(),
                "base": base.clone(),
                "zero": torch.zeros_like(base),
                "opposite": 2 * base - first,  # its difference from the base is
                "same": first.clone(),
                "double": 2 * first - base,
            }[kind]
        )
    return Case(models, base)


weights = st.sampled_from([1.0, 0.5, 0.3, 2.0, 0.0, -1.0, -0.4, 0.123456])


def weight_lists(count: int) -> st.SearchStrategy[list[float]]:
    return st.lists(weights, min_size=count, max_size=count)


def close(got: Tensor, want: Tensor, size: float, tolerance: float = 1e-11) -> bool:
    """Return whether both are equal up to `tolerance` of `size`, the largest number used."""
    return bool(((got - want).abs() <= tolerance * max(size, 1e-30)).all())


def size_of(case: Case) -> float:
    return max((float(x.abs().max()) for x in [*case.models, case.base] if x.numel()), default=0.0)


def within_half_an_ulp(got: Tensor, want: Tensor, size: float) -> bool:
    """Return whether bfloat16 `got` is nearest to `want`, up to float32 noise of that `size`."""
    half = torch.exp2(torch.floor(torch.log2(want.abs().clamp(min=1e-38))) - 8)
    return bool(((got.double() - want).abs() <= half + size * 2.0**-21).all())
