"""DARE with and without sign election: masks and rescaling."""

import pytest
import torch
from torch import Tensor

from support.method_driver import merge


def t(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_share_norm_and_expectation() -> None:
    n, density = 1 << 18, 0.3
    x = torch.linspace(0.5, 1.5, n)
    sums = torch.zeros(n, dtype=torch.float64)
    for seed in range(8):
        got = merge("dare_ties", [x], torch.zeros(n), weight=1, density=density, seed=seed)
        share = float(got.ne(0).double().mean())
        assert abs(share - density) < 5 * (density * (1 - density) / n) ** 0.5
        assert float(got.double().sum()) == pytest.approx(float(x.double().sum()), rel=1e-6)
        sums += got.double()
    # Every region of the tensor keeps its mean.
    means = (sums / 8).view(16, -1).mean(1) / x.double().view(16, -1).mean(1)
    assert float((means - 1).abs().max()) < 5 * (0.7 / 0.3 / (n / 16 * 8)) ** 0.5


def test_masks_depend_on_seed_tensor_and_model_alone() -> None:
    x = torch.ones(70_000)

    def kept(dtype: torch.dtype, **more: object) -> Tensor:
        models, base = [x.to(dtype)], torch.zeros(70_000, dtype=dtype)
        return merge("dare_ties", models, base, weight=1, density=0.4, **more).ne(0)  # type: ignore[arg-type]  # options

    plain = kept(torch.float32)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert kept(dtype).equal(plain)
    for block in (1000, 4096, 65_536):
        assert kept(torch.bfloat16, block=block).equal(plain)
    assert not kept(torch.float32, seed=1).equal(plain)
    assert not kept(torch.float32, tensor="other").equal(plain)
    two = merge("dare_ties", [x, x], x * 0, weight=[1, 10], density=0.4, rescale=False)
    assert float(two.eq(11).double().mean()) == pytest.approx(0.16, abs=0.01)


def test_density_one_drops_and_rescales_nothing() -> None:
    got = merge("dare_ties", [t(1, 2, 4)], t(0, 0, 0), weight=1)
    assert got.tolist() == [1, 2, 4]
    got = merge("dare_ties", [t(1, 2, 4)], t(1, 1, 1), weight=1, density=0)
    assert got.tolist() == [1, 1, 1]


def test_rescaling_of_half_precision_stays_finite() -> None:
    x = torch.full((100_000,), 2.0, dtype=torch.float16)
    got = merge("dare_ties", [x], torch.zeros_like(x), weight=1, density=0.5)
    assert bool(got.isfinite().all())
    assert float(got.double().mean()) == pytest.approx(2, rel=1e-3)


def test_blocks_change_no_bit() -> None:
    noise = torch.Generator().manual_seed(4)
    base = (torch.randn(200_000, generator=noise) * 0.02).bfloat16()
    models = [
        (base.float() + torch.randn(200_000, generator=noise) * 1e-3).bfloat16() for _ in range(2)
    ]
    whole = merge("dare_ties", models, base, weight=[0.6, 0.4], density=0.3)
    for block in (4096, 65_536):
        got = merge("dare_ties", models, base, weight=[0.6, 0.4], density=0.3, block=block)
        assert got.equal(whole)


def test_sum_without_votes() -> None:
    noise = torch.Generator().manual_seed(0)
    first, second = (torch.randn(5000, generator=noise) for _ in range(2))
    zero = torch.zeros(5000)
    both = merge("dare_linear", [first, second], zero, weight=[2, -1], density=0.4)
    first_alone = merge("dare_ties", [first, second], zero, weight=[2, 0], density=0.4)
    second_alone = merge("dare_ties", [first, second], zero, weight=[0, -1], density=0.4)
    assert torch.allclose(both, first_alone + second_alone, rtol=1e-6, atol=1e-6)


def test_divisor_by_hand() -> None:
    models, zero = [t(1, 2, 4), t(3, -2, 0)], t(0, 0, 0)
    assert merge("dare_linear", models, zero, weight=[1, 2]).tolist() == [7, -2, 4]
    got = merge("dare_linear", models, zero, weight=[1, 3], normalize=True)
    assert got.tolist() == [2.5, -1, 1]
    # Weights that add up to nothing are not divided by.
    got = merge("dare_linear", models, zero, weight=[1, -1], normalize=True)
    assert got.tolist() == [-2, 4, 4]


def test_l1_norm_is_restored() -> None:
    x = torch.linspace(0.5, 1.5, 100_000)
    got = merge("dare_linear", [x], x * 0, weight=1, density=0.1)
    assert float(got.double().sum()) == pytest.approx(float(x.double().sum()), rel=1e-6)
    plain = merge("dare_linear", [x], x * 0, weight=1, density=0.1, rescale=False)
    assert plain.equal(torch.where(got != 0, x, 0.0))
    assert float(plain.ne(0).double().mean()) == pytest.approx(0.1, abs=0.005)
