"""Keep of a merged delta what serves enough models (TALL masks)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ._define import Block

if TYPE_CHECKING:
    from torch import Tensor


def keep_agreed(
    part: Block, merged: Tensor, deltas: Sequence[Tensor], mask_lambda: float, least: int
) -> Tensor:
    """`merged`, zero where fewer than `least` models have |τ_m| > mask_lambda · |merged − τ_m|.

    `deltas` are overwritten.
    """
    import torch

    count, work = merged.numel(), str(merged.dtype).removeprefix("torch.")
    votes = part.scratch.take("sign", count, work).zero_()
    term = part.scratch.take("mask", count, work)
    for delta in deltas:
        torch.sub(merged, delta, out=term).abs_().mul_(mask_lambda)
        votes.add_(torch.gt(delta.abs_(), term, out=term))
    return merged.mul_(torch.ge(votes, least, out=term))
