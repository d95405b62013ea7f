"""Normally distributed random numbers: a function of seed, tensor name and element index.

The numbers are quantiles of N(0, 1), looked up by the upper bits of the words of a RandomStream, so
that they are the same on every machine and device, in any blocks and any order.
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from ..method import Block, Tensor
from .random_masks import RandomStream

if TYPE_CHECKING:
    import torch

BITS = 16
SCRATCH_BYTES = 4 + 8
"""Bytes per element beside the result: words, and places in the table."""


def normal_numbers(stream: RandomStream, block: Block) -> Tensor:
    """Return a float32 number of mean 0 and variance 1 for each element of a block: [n]."""
    words = stream.words(block)
    places = block.scratch.take("places", words.numel(), "int64")
    places.copy_(words >> (32 - BITS)).add_(1 << (BITS - 1))
    numbers: Tensor = _quantiles(words.device)[places]
    return numbers


@cache
def _quantiles(device: torch.device) -> Tensor:
    """Return 2^BITS quantiles of N(0, 1), scaled to variance 1: float32 on the device."""
    import torch

    normal, count = NormalDist(), 1 << BITS
    half = [normal.inv_cdf((number + 0.5) / count) for number in range(count // 2)]
    scale = (sum(value * value for value in half) / len(half)) ** -0.5
    lower = torch.tensor(half, dtype=torch.float64) * scale
    return torch.cat([lower, -lower.flip(0)]).to(torch.float32).to(device)
