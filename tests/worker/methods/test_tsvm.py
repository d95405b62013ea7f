import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.method_cases import Case
from support.method_driver import merge


def tsv_merge(case: Case, alpha: float = 1.0) -> Tensor:
    """By SVDs throughout, as in the paper."""
    keep = min(case.base.shape) // len(case.models)
    parts = [torch.linalg.svd(x - case.base, full_matrices=False) for x in case.models]
    u = torch.cat([u[:, :keep] for u, _, _ in parts], 1)
    s = torch.cat([s[:keep] for _, s, _ in parts])
    v = torch.cat([v[:keep] for _, _, v in parts])
    a, _, b = torch.linalg.svd(u, full_matrices=False)
    c, _, d = torch.linalg.svd(v, full_matrices=False)
    return case.base + alpha * (a @ b) @ torch.diag(s) @ (c @ d)


def random_case(seed: int, shape: tuple[int, ...], count: int, size: float = 0.1) -> Case:
    noise = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64)

    base = random()
    return Case([base + size * random() for _ in range(count)], base)


def test_by_hand() -> None:
    """Directions at right angles already: the strongest of each model side by side."""
    base = torch.zeros(3, 2).double()
    first = torch.tensor([[5.0, 0], [0, 1], [0, 0]]).double()
    second = torch.tensor([[0.0, 0], [1, 0], [0, -4]]).double()
    assert merge("tsvm", [first, second], base).abs().round(decimals=12).tolist() == [
        [5, 0],
        [0, 0],
        [0, 4],
    ]
    assert float(merge("tsvm", [first, second], base, alpha=0.5)[2, 1]) == pytest.approx(-2)


def test_vectors_get_the_mean() -> None:
    models = [torch.tensor([3.0, 0, 1]).double(), torch.tensor([1.0, 2, 1]).double()]
    assert merge("tsvm", models, torch.ones(3).double(), alpha=2).tolist() == [3, 1, 1]


@given(
    st.integers(0, 1000),
    st.sampled_from([(12, 8), (8, 12), (9, 9), (30, 4), (64, 50)]),
    st.integers(1, 4),
    st.sampled_from([1.0, 0.3, -1.0, 0.0]),
)
def test_formula(seed: int, shape: tuple[int, int], count: int, alpha: float) -> None:
    case = random_case(seed, shape, count)
    got = merge("tsvm", case.models, case.base, alpha=alpha)
    assert torch.allclose(got, tsv_merge(case, alpha), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (64, 64)], ids=str)
def test_sixteen_bits(shape: tuple[int, int]) -> None:
    case = random_case(0, shape, 3, 0.3).to(torch.bfloat16)
    want = tsv_merge(case.double())
    got = merge("tsvm", case.models, case.base).double()
    assert ((got - want).abs() <= want.abs() * 2.0**-8 * 1.01 + 1e-5).all()


def test_more_models_than_rows() -> None:
    case = random_case(0, (2, 9), 3)
    want = torch.stack(case.models).mean(0)
    assert torch.allclose(merge("tsvm", case.models, case.base), want)


def test_one_model_is_itself() -> None:
    case = random_case(0, (20, 13), 1)
    assert torch.allclose(merge("tsvm", case.models, case.base), case.models[0], atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_twice_is_its_strongest_half(dtype: torch.dtype) -> None:
    """Directions in common to the last digit: an SVD would add as much noise as there is signal."""
    case = random_case(0, (20, 12), 1).to(dtype)
    double = case.double()
    u, s, v = torch.linalg.svd(double.models[0] - double.base, full_matrices=False)
    want = double.base + u[:, :6] @ torch.diag(s[:6]) @ v[:6]
    got = merge("tsvm", [case.models[0]] * 2, case.base, dtype=torch.float64)
    assert torch.allclose(got, want, atol=1e-9)


def test_low_rank_deltas_bring_no_other_directions() -> None:
    noise = torch.Generator().manual_seed(0)
    base = (torch.randn(256, 200, generator=noise) * 0.02).bfloat16()
    lefts = [torch.randn(256, 4, generator=noise) * 0.05 for _ in range(2)]
    models = [(base + x @ (torch.randn(4, 200, generator=noise) * 0.05)).bfloat16() for x in lefts]
    delta = merge("tsvm", models, base, dtype=torch.float64) - base.double()
    assert int((torch.linalg.svdvals(delta) > 1e-9).sum()) == 8


def test_some_of_the_models_are_the_base() -> None:
    case = random_case(0, (20, 12), 1)
    u, s, v = torch.linalg.svd(case.models[0] - case.base, full_matrices=False)
    want = case.base + u[:, :6] @ torch.diag(s[:6]) @ v[:6]
    got = merge("tsvm", [case.base, case.models[0]], case.base)
    assert torch.allclose(got, want, atol=1e-9)


def test_experts_are_matrices_of_their_own() -> None:
    case = random_case(0, (5, 12, 9), 2)
    got = merge("tsvm", case.models, case.base)
    for expert in range(5):
        alone = merge("tsvm", [x[expert] for x in case.models], case.base[expert])
        assert got[expert].equal(alone)
