import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case, cases, close, size_of
from support.method_driver import merge


def isotropic(case: Case, alpha: float) -> Tensor:
    """By an SVD, as in the paper; without directions whose singular value is 0."""
    total = torch.stack([x - case.base for x in case.models]).sum(0)
    if total.dim() != 2 or not total.numel():
        return case.base + alpha * total / len(case.models)
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    kept = s > 1e-6 * size_of(case)
    mean = s[kept].mean() if kept.any() else 0.0
    return case.base + alpha * mean * (u[:, kept] @ v[kept])


def outside(delta: Tensor, factor: Tensor) -> float:
    """The share of a delta that is not in the columns of `factor`."""
    inside = factor @ torch.linalg.lstsq(factor, delta).solution
    return float((delta - inside).norm() / delta.norm())


def test_by_hand() -> None:
    base = torch.tensor([[1.0, 1, 1], [1, 1, 1]]).double()
    models = [
        base + torch.tensor([[3.0, 0, 0], [0, 0, 0]]),
        base + torch.tensor([[0.0] * 3, [0, -1, 0]]),
    ]
    assert merge("iso_c", models, base).tolist() == [[3, 1, 1], [1, -1, 1]]
    assert merge("iso_c", models, base, alpha=0.5).tolist() == [[2, 1, 1], [1, 0, 1]]


def test_vectors_get_the_mean() -> None:
    models = [torch.tensor([3.0, 0, 1]).double(), torch.tensor([1.0, 2, 1]).double()]
    assert merge("iso_c", models, torch.ones(3).double(), alpha=1.5).tolist() == [2.5, 1, 1]


@given(cases(1, 4), st.sampled_from([1.0, 1.5, 0.0, -0.3]))
def test_formula(case: Case, alpha: float) -> None:
    got = merge("iso_c", case.models, case.base, alpha=alpha)
    assert close(got, isotropic(case, alpha), size_of(case) * 4, 1e-8)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (64, 64), (130, 7)], ids=str)
def test_sixteen_bits(shape: tuple[int, int]) -> None:
    noise = torch.Generator().manual_seed(0)
    base = (torch.randn(shape, generator=noise) * 0.02).bfloat16()
    models = [(base + torch.randn(shape, generator=noise) * 0.01).bfloat16() for _ in range(3)]
    want = isotropic(Case(models, base).double(), 1.0)
    got = merge("iso_c", models, base)
    assert ((got.double() - want).abs() <= want.abs() * 2.0**-8 * 1.01 + 1e-6).all()


def test_learnt_directions_of_a_low_rank_delta_only() -> None:
    """The trap: of a delta of rank 4 in 60 × 40, an SVD puts 90 % of the energy elsewhere."""
    noise = torch.Generator().manual_seed(0)
    base, left, right = (
        torch.randn(s, generator=noise).double() for s in ((60, 40), (60, 4), (4, 40))
    )
    delta = merge("iso_c", [base + left @ right], base) - base
    assert outside(delta, left) < 1e-12
    sizes = torch.linalg.svdvals(delta)
    assert torch.allclose(sizes[:4], torch.linalg.svdvals(left @ right)[:4].mean().expand(4))
    assert sizes[4:].max() < 1e-12
    u, _, v = torch.linalg.svd(left @ right, full_matrices=False)
    assert outside(u @ v, left) > 0.9, "else this tests nothing"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_adapters_that_were_merged_and_rounded(dtype: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(1)
    base = (torch.randn(256, 200, generator=noise) * 0.02).to(dtype)
    lefts = [torch.randn(256, 8, generator=noise) * 0.03 for _ in range(2)]
    models = [(base + x @ (torch.randn(8, 200, generator=noise) * 0.03)).to(dtype) for x in lefts]
    rounded = (models[0].double() - base.double()) + (models[1].double() - base.double())
    assert torch.linalg.matrix_rank(rounded) == 200, "rounding fills all directions"
    got = merge("iso_c", models, base, dtype=torch.float32).double() - base.double()
    assert outside(got, torch.cat(lefts, 1).double()) < 0.02


def test_a_full_delta_follows_the_formula_however_small() -> None:
    """A fine-tune that moved weights by less than a rounding step is no low-rank one."""
    noise = torch.Generator().manual_seed(2)
    base = (torch.randn(128, 96, generator=noise) * 0.02).bfloat16()
    models = [(base + torch.randn(128, 96, generator=noise) * 5e-5).bfloat16() for _ in range(2)]
    case = Case(models, base)
    got = merge("iso_c", models, base, dtype=torch.float32)
    assert close(got, isotropic(case.double(), 1.0), 1.0, 1e-8)


def test_experts_are_matrices_of_their_own() -> None:
    noise = torch.Generator().manual_seed(3)
    base = torch.randn(5, 12, 9, generator=noise).double()
    models = [base + torch.randn(5, 12, 9, generator=noise) for _ in range(2)]
    got = merge("iso_c", models, base)
    for expert in range(5):
        assert got[expert].equal(merge("iso_c", [x[expert] for x in models], base[expert]))


def test_kernels_of_convolutions_are_no_matrices() -> None:
    noise = torch.Generator().manual_seed(4)
    for shape in ((16, 12, 4), (16, 1, 4), (4, 3, 12, 12)):
        base = torch.randn(shape, generator=noise).double()
        models = [base + torch.randn(shape, generator=noise) for _ in range(2)]
        assert torch.allclose(merge("iso_c", models, base), (models[0] + models[1]) / 2)
