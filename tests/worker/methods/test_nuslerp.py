import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker import methods
from merge_worker.algorithms.modifiers import begin
from merge_worker.engine.buffers import Pool
from merge_worker.method import Block, Granularity, MergePass, StatisticsPass
from merge_worker.planning.step import block_grid
from support.method_cases import Case, cases, close, size_of, weight_lists, within_half_an_ulp
from support.method_driver import blocks, make_task, merge

A = torch.tensor([[1.0, 0], [0, 2]], dtype=torch.float64)
B = torch.tensor([[1.0, 0], [2, 0]], dtype=torch.float64)
FORMS = [(True, False), (True, True), (False, False), (False, True)]


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def between(v1: Tensor, v2: Tensor, part: float) -> Tensor:
    """Slerp of two vectors from their unit vectors, as it is usually written."""
    u1, u2 = (v / v.norm().clamp(min=1e-7) for v in (v1, v2))
    c = (u1 * u2).sum().clamp(-1, 1)
    assume(not -1 < float(c) < -1 + 1e-6)  # opposite but for rounding: no direction is right
    if float(1 - c * c) <= 1e-14:
        return (1 - part) * v1 + part * v2
    angle = c.acos()
    return (torch.sin((1 - part) * angle) * v1 + torch.sin(part * angle) * v2) / angle.sin()


def reference(d1: Tensor, d2: Tensor, part: float, flatten: bool, row_wise: bool) -> Tensor:
    if not d1.numel():
        return d1
    if flatten or d1.dim() < 2:
        return between(d1, d2, part)
    if row_wise:
        d1, d2 = d1.movedim(0, -1), d2.movedim(0, -1)
    rows = [
        between(v1, v2, part)
        for v1, v2 in zip(d1.reshape(-1, d1.shape[-1]), d2.reshape(-1, d2.shape[-1]), strict=True)
    ]
    merged = torch.stack(rows).view(d1.shape)
    return merged.movedim(-1, 0) if row_wise else merged


def part_of(w: list[float]) -> float:
    return w[1] / (w[0] + w[1]) if abs(w[0] + w[1]) >= 1e-6 else 0.5


def test_by_hand() -> None:
    got = merge("nuslerp", [t(1, 0), t(0, 1)], weight=[0.75, 0.25])
    assert got.tolist() == pytest.approx([0.923880, 0.382683], abs=1e-6)
    got = merge("nuslerp", [t(3, 1), t(1, 5)], t(1, 1), weight=[1, 1])
    assert got.tolist() == pytest.approx([2.414214, 3.828427], abs=1e-6)


def test_rows_and_columns_by_hand() -> None:
    rows = merge("nuslerp", [A, B], weight=[1, 1], nuslerp_flatten=False)
    assert rows.flatten().tolist() == pytest.approx([1, 0, 1.414214, 1.414214], abs=1e-6)
    columns = merge("nuslerp", [A, B], weight=[1, 1], nuslerp_flatten=False, nuslerp_row_wise=True)
    assert columns.flatten().tolist() == pytest.approx([1.175571, 0, 1.175571, 1.414214], abs=1e-6)


@given(cases(2, 2), weight_lists(2), st.sampled_from(FORMS), st.booleans())
def test_formula(case: Case, weight: list[float], form: tuple[bool, bool], based: bool) -> None:
    base = case.base if based else torch.zeros_like(case.base)
    part = part_of(weight)
    want = base + reference(case.models[0] - base, case.models[1] - base, part, *form)
    values = {"weight": weight, "nuslerp_flatten": form[0], "nuslerp_row_wise": form[1]}
    got = merge("nuslerp", case.models, base if based else None, block=24, **values)  # type: ignore[arg-type]  # values
    # Near opposite ends, rounding is divided by the sine of the angle.
    assert close(got, want, size_of(case) * max(1, abs(part)), 1e-8)


@given(cases(2, 2, ["random", "near", "same", "base"]), weight_lists(2), st.sampled_from(FORMS))
def test_bfloat16_is_rounded_once(case: Case, weight: list[float], form: tuple[bool, bool]) -> None:
    case = case.to(torch.bfloat16)
    (x1, x2), base = case.double()
    part = part_of(weight)
    assume(abs(part) < 10)
    want = base + reference(x1 - base, x2 - base, part, *form)
    values = {"weight": weight, "nuslerp_flatten": form[0], "nuslerp_row_wise": form[1]}
    got = merge("nuslerp", case.models, case.base, **values)  # type: ignore[arg-type]  # values
    assert within_half_an_ulp(got, want, size_of(case) * 100)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("factor", [-1.0, -2.0, -0.75])
def test_opposite_vectors_are_interpolated_linearly(
    form: tuple[bool, bool], dtype: torch.dtype, factor: float
) -> None:
    # Multiples of 4 with few bits: their products with the factor are exact in bfloat16.
    x = (torch.arange(120) % 31 * 4 + 4).view(10, 12).to(dtype)
    y = (x.double() * factor).to(dtype)
    got = merge("nuslerp", [x, y], weight=[3, 1], nuslerp_flatten=form[0], nuslerp_row_wise=form[1])
    want = 0.75 * x.double() + 0.25 * y.double()
    assert torch.allclose(got.double(), want, atol=float(x.max()) * 2.0**-8)


def test_columns_do_not_depend_on_the_order_in_which_blocks_are_seen() -> None:
    method = methods.get("nuslerp")
    x, y = torch.randn(2, 40, 6)
    values = {"weight": [1, 2], "nuslerp_flatten": False, "nuslerp_row_wise": True}
    task = make_task(method, [x, y], None, values)
    scratch, flat = Pool(torch.device("cpu")), [x.view(-1), y.view(-1)]
    seen = list(blocks(block_grid(task.shape, Granularity.ROW, 12), flat, scratch))
    results = []
    for order in (seen, seen[::-1], seen[7:] + seen[:7]):
        current = begin(method, task)
        assert isinstance(current, StatisticsPass)
        final = current.next_pass([current.collect(block) for block in order])
        assert isinstance(final, MergePass)
        results.append(torch.empty_like(x))
        final.merge(Block([x, y], 0, scratch), results[-1])
    assert results[0].equal(results[1])
    assert results[0].equal(results[2])
