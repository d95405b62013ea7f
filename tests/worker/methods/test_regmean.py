"""RegMean from the diagonals of Gram matrices."""

import torch
from torch import Tensor

from support.method_driver import merge_by_importance

ZERO = torch.zeros(2, 2)


def rows(*values: float) -> Tensor:
    """Return a matrix of two equal rows: numbers of channels, spread to a weight."""
    return torch.tensor([values, values])


def test_one_channel_by_hand() -> None:
    models, grams = [torch.tensor([[2.0]]), torch.tensor([[4.0]])], [[[1.0]], [[3.0]]]
    got = merge_by_importance("regmean", models, [torch.tensor(g) for g in grams])
    assert got.tolist() == [[3.5]]
    weighted = merge_by_importance(
        "regmean", models, [torch.tensor(g) for g in grams], weight=[3.0, 1.0]
    )
    assert weighted.tolist() == [[3.0]]


def test_disjoint_channels_give_both_tasks_exactly() -> None:
    noise = torch.Generator().manual_seed(3)
    first, second, base = (torch.randn(2, 2, generator=noise) for _ in range(3))
    for start in (None, base):
        got = merge_by_importance("regmean", [first, second], [rows(1, 0), rows(0, 1)], start)
        assert torch.allclose(got[:, 0], first[:, 0], rtol=1e-7)
        assert torch.allclose(got[:, 1], second[:, 1], rtol=1e-7)


def test_dead_channels_keep_the_base() -> None:
    first, second, base = rows(1, 2), rows(3, 4), rows(7, 8)
    grams = [rows(0, 1), rows(0, 1)]
    assert merge_by_importance("regmean", [first, second], grams, base).equal(rows(7, 3))
    assert merge_by_importance("regmean", [first, second], grams).equal(rows(2, 3))


def test_tensors_without_inputs_are_plain_means() -> None:
    first, second, base = rows(1, 2), rows(3, 4), rows(7, 8)
    for grams in ([None, None], [rows(1, 1), None]):
        assert merge_by_importance("regmean", [first, second], grams, base).equal(rows(2, 3))


def test_equal_models_are_the_result() -> None:
    noise = torch.Generator().manual_seed(3)
    model, base = (torch.randn(40, 30, generator=noise).bfloat16() for _ in range(2))
    grams = [torch.rand(40, 30, generator=noise) for _ in range(2)]
    assert merge_by_importance("regmean", [model, model.clone()], grams, base).equal(model)
