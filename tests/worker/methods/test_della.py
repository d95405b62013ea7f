"""DELLA with and without sign election: probabilities by rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from merge_worker.algorithms import magprune
from support.method_driver import merge


def share(x: Tensor, **more: object) -> Tensor:
    """How often each element is kept, over 200 seeds."""
    total = torch.zeros(x.shape, dtype=torch.float64)
    for seed in range(200):
        got = merge("della", [x], torch.zeros_like(x), weight=1, seed=seed, **more)  # type: ignore[arg-type]  # options
        total += got.ne(0)
    return total / 200


def test_probability_grows_with_rank() -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.stack([(torch.randperm(50, generator=noise) + 1).float() for _ in range(64)])
    by_rank = share(x, density=0.5, epsilon=0.3).gather(1, x.argsort(1)).mean(0)
    want = torch.linspace(0.2, 0.8, 50, dtype=torch.float64)
    assert float((by_rank - want).abs().max()) < 5 * (0.25 / (200 * 64)) ** 0.5


def test_equal_magnitudes_share_their_ranks() -> None:
    """Four ones and four twos: the probabilities of ranks 1.5 and 5.5 of 0 to 7."""
    x = torch.tensor([[1.0, -2.0, 2.0, 1.0, -1.0, 2.0, 1.0, -2.0]]).repeat(200, 1)
    chances = share(x, density=0.5, epsilon=0.3).mean(0)
    want = 0.2 + 0.6 * torch.where(x[0].abs() == 1, 1.5 / 7, 5.5 / 7).double()
    assert float((chances - want).abs().max()) < 5 * (0.25 / 40_000) ** 0.5
    # Nothing but equal ones: the density itself.
    chances = share(torch.full((50, 40), 3.0), density=0.4, epsilon=0.3)
    assert float(chances.mean()) == pytest.approx(0.4, abs=5 * (0.24 / 400_000) ** 0.5)


@pytest.mark.parametrize("shape", [(3000, 1, 4), (3000, 1), (3000, 1, 1), (1,), ()])
def test_rows_of_convolutions_and_of_one(shape: tuple[int, ...]) -> None:
    """mergekit divides zero by zero here."""
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=noise) + 1
    got = merge("della", [x], torch.zeros_like(x), weight=1, density=0.6, epsilon=0.3)
    assert bool(got.isfinite().all())
    if x.numel() > 1:
        assert float(got.ne(0).double().mean()) == pytest.approx(0.6, abs=0.05)
    if shape == (3000, 1, 4):
        by_rank = got.ne(0).double().view(-1, 4).gather(1, x.view(-1, 4).argsort(1)).mean(0)
        assert by_rank.tolist() == pytest.approx([0.3, 0.5, 0.7, 0.9], abs=0.05)


def test_probabilities_outside_0_and_1_are_refused() -> None:
    x = torch.ones(4, 4)
    for density in (0.1, 0.15, 0.85, 0.99):
        for method in ("della", "della_linear"):
            with pytest.raises(ValueError, match="epsilon must be smaller than"):
                merge(method, [x], x, weight=1, density=density)
    merge("della", [x], x, weight=1, density=1)


def test_same_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.Generator().manual_seed(1)
    base = (torch.randn(64, 700, generator=noise) * 0.02).bfloat16()
    model = (base.float() + torch.randn(64, 700, generator=noise) * 1e-3).bfloat16()
    values = {"weight": 1, "density": 0.5, "epsilon": 0.2}
    fast = merge("della", [model], base, **values)  # type: ignore[arg-type]  # values
    monkeypatch.setattr(magprune, "has_numpy", lambda: False)
    assert merge("della", [model], base, **values).equal(fast)  # type: ignore[arg-type]  # values


def test_blocks_change_no_mask() -> None:
    noise = torch.Generator().manual_seed(4)
    base = (torch.randn(300, 640, generator=noise) * 0.02).bfloat16()
    models = [
        (base.float() + torch.randn(300, 640, generator=noise) * 1e-3).bfloat16() for _ in range(2)
    ]
    for rescale in (False, True):
        values = {"weight": [0.6, 0.4], "density": 0.5, "rescale": rescale}
        whole = merge("della", models, base, **values)  # type: ignore[arg-type]  # values
        for block in (640, 10_000):
            got = merge("della", models, base, block=block, **values)  # type: ignore[arg-type]  # values
            # Norms are sums over blocks, rounded to a part in 10^8: not a change of the mask.
            assert int(got.ne(whole).sum()) <= (3 if rescale else 0)


def test_draws_are_kept_between_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bit each; the largest tensors draw again, with the same result."""
    noise = torch.Generator().manual_seed(4)
    for shape in ((70, 1003), (7,), (5, 1, 3)):
        base = torch.randn(shape, generator=noise)
        model = base + torch.randn(shape, generator=noise)
        kept = merge("della", [model], base, weight=1, density=0.5)
        monkeypatch.setattr(magprune, "REMEMBERED", 0)
        assert merge("della", [model], base, weight=1, density=0.5).equal(kept)
        monkeypatch.undo()


@given(st.lists(st.booleans(), max_size=64))
def test_flags_as_bits(flags: list[bool]) -> None:
    whole = torch.tensor(flags, dtype=torch.bool)
    bits = magprune.pack_flags(whole)
    assert bits.numel() == -(-whole.numel() // 8)
    back = magprune.unpack_flags(bits, whole.numel())
    assert back.equal(whole)
    assert set(back.view(torch.uint8).tolist()) <= {0, 1}


def test_sum_without_votes() -> None:
    noise = torch.Generator().manual_seed(0)
    first, second = (torch.randn(40, 60, generator=noise) for _ in range(2))
    zero, values = torch.zeros(40, 60), {"density": 0.5, "epsilon": 0.2}
    both = merge("della_linear", [first, second], zero, weight=[2, -1], **values)  # type: ignore[arg-type]  # values
    first_alone = merge("della", [first, second], zero, weight=[2, 0], normalize=False, **values)  # type: ignore[arg-type]  # values
    second_alone = merge("della", [first, second], zero, weight=[0, -1], normalize=False, **values)  # type: ignore[arg-type]  # values
    assert torch.allclose(both, first_alone + second_alone, rtol=1e-6, atol=1e-6)
    mean = merge("della_linear", [first, second], zero, weight=[2, 2], normalize=True)
    assert torch.allclose(mean, (first + second) / 2, rtol=1e-6, atol=1e-6)


def test_a_negative_epsilon_is_refused() -> None:
    x = torch.ones(4, 4)
    with pytest.raises(ValueError, match="0 or more"):
        merge("della_linear", [x], x, weight=1, density=0.5, epsilon=-0.1)
