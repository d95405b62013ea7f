import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker.errors import ResultError
from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reference(deltas: list[Tensor], weight: list[float], eps: float = 1e-8) -> Tensor:
    """The procedure step by step, its tangential part included."""
    if len(deltas) == 1:
        return deltas[0]
    w = [x / sum(weight) for x in weight]
    lengths = [float(d.norm()) for d in deltas]
    units = [d / (n + eps) for d, n in zip(deltas, lengths, strict=True)]
    mean = sum(x * u for x, u in zip(w, units, strict=True))
    assert isinstance(mean, Tensor)
    size = float(mean.norm())
    assume(size < eps * 0.1 or size > 1e-5)
    if size < eps:
        assume(len(deltas) == 2)
        return w[0] * deltas[0] + w[1] * deltas[1]
    mean = mean / size
    tangent = sum(x * (u - (u * mean).sum() * mean) for x, u in zip(w, units, strict=True))
    assert isinstance(tangent, Tensor)
    q = tangent.norm() + eps
    total = sum(x * n for x, n in zip(w, lengths, strict=True))
    return (torch.cos(q) * mean + torch.sin(q) / q * tangent) * total


def test_by_hand() -> None:
    models = [t(2, 0), t(0, 4)]
    got = merge("multislerp", models, weight=[1, 3])
    assert got.tolist() == pytest.approx([1.106797, 3.320392], abs=1e-6)
    got = merge("multislerp", models, weight=[1, 3], normalize_weights=False)
    assert got.tolist() == pytest.approx([4.427189, 13.281566], abs=1e-6)
    got = merge("multislerp", [t(3, 1), t(1, 5)], t(1, 1), weight=[1, 1])
    assert got.tolist() == pytest.approx([3.121320, 3.121320], abs=1e-6)


@given(st.data(), cases(1, 4), st.booleans())
def test_formula(data: st.DataObject, case: Case, based: bool) -> None:
    weight = data.draw(weight_lists(len(case.models)))
    assume(abs(sum(weight)) > 0.01)
    base = case.base if based else torch.zeros_like(case.base)
    want = base + reference([x - base for x in case.models], weight)
    got = merge("multislerp", case.models, base if based else None, weight=weight, block=64)
    assert close(got, want, size_of(case) * 1e3, 1e-9)


@given(cases(2, 3, ["random", "near", "same"]))
def test_bfloat16_is_rounded_once(case: Case) -> None:
    case = case.to(torch.bfloat16)
    exact = case.double()
    weight = [1.0, 0.6, 0.7][: len(case.models)]
    want = exact.base + reference([x - exact.base for x in exact.models], weight)
    got = merge("multislerp", case.models, case.base, weight=weight)
    assert within_half_an_ulp(got, want, size_of(case) * 100)


def test_directions_that_cancel() -> None:
    got = merge("multislerp", [t(1, 0), t(-3, 0)], weight=[1, 1])
    assert got.tolist() == [-1, 0]
    with pytest.raises(ResultError, match="tensor 't': multislerp: the directions"):
        merge("multislerp", [t(1, 0), t(-0.5, 0.75**0.5), t(-0.5, -(0.75**0.5))], weight=[1, 1, 1])


def test_weights_that_add_up_to_zero_are_refused() -> None:
    with pytest.raises(ZeroDivisionError, match="add up to 0"):
        merge("multislerp", [t(1, 0), t(0, 1)], weight=[1, -1])


def test_one_model_is_copied() -> None:
    x, base = torch.randn(2, 9).bfloat16()
    assert merge("multislerp", [x], base, weight=[0.3]).equal(x)
