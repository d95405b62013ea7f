"""Several adapters merged into one, as defined by PEFT's `add_weighted_adapter`.

`cat` concatenates ranks and `svd` keeps the best rank of the weighted sum: both act on the deltas.
Other methods act on A and B separately, each with the root of the weight; NAME_svd acts on the
dense deltas, then keeps the best rank. https://arxiv.org/abs/2306.01708 (TIES),
https://arxiv.org/abs/2311.03099 (DARE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithms.spectral import spectrum
from ..system import torch_startup

torch_startup.complete()


@dataclass(frozen=True)
class CombineOptions:
    """The name of a method and its parameters."""

    method: str
    density: float = 1.0
    rank: int = 1  # of svd
    majority: str = "total"  # or "frequency": votes by value, or one each
    seed: int = 0


class WeightedFactors(NamedTuple):
    """The float64 factors a (rank, in) and b (out, rank) of one adapter, with scale and share."""

    a: Tensor
    b: Tensor
    scale: float
    share: float

    @property
    def weight(self) -> float:
        return self.scale * self.share


def combine(
    adapters: Sequence[WeightedFactors], options: CombineOptions, name: str
) -> tuple[Tensor, Tensor]:
    """Return the merged factors (a, b) of one module in float64.

    `name` seeds random draws. ValueError if the method needs equal ranks and they differ.
    """
    if options.method == "cat":
        return torch.cat([g.a * g.weight for g in adapters]), torch.cat([g.b for g in adapters], 1)
    if options.method == "svd":
        return _best_of_sum(adapters, options.rank)
    draw = _generator(options.seed, name)
    if options.method.endswith("_svd"):
        deltas = [g.b @ g.a * g.scale for g in adapters]
        merged = _merged(deltas, [g.share for g in adapters], options, draw)
        return _truncated(merged, options.rank)
    if len({len(g.a) for g in adapters}) > 1:
        ranks = ", ".join(str(len(g.a)) for g in adapters)
        raise ValueError(
            f"ranks {ranks} differ; {options.method} needs equal ones (cat and svd do not)"
        )
    roots = [math.sqrt(abs(g.weight)) for g in adapters]
    # With the sign on both sides, it would cancel.
    signed = [math.copysign(root, g.weight) for root, g in zip(roots, adapters, strict=True)]
    a = _merged([g.a for g in adapters], signed, options, draw)
    return a, _merged([g.b for g in adapters], roots, options, draw)


def _merged(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    options: CombineOptions,
    draw: torch.Generator,
) -> Tensor:
    """Thin and weight the tensors, then add all values, or only those with the elected sign."""
    method = options.method.removesuffix("_svd")
    thin: Callable[[Tensor], Tensor] = partial(_keep_largest, density=options.density)
    if method.startswith("dare"):
        thin = partial(_keep_random, density=options.density, draw=draw)
    kept = torch.stack(
        [thin(x) if options.density < 1 and method != "linear" else x for x in tensors]
    )
    scaled = kept * torch.tensor(weights, dtype=kept.dtype).view(-1, *[1] * tensors[0].dim())
    if not method.endswith("ties"):
        return scaled.sum(0)
    votes = kept.sum(0) if options.majority == "total" else kept.sign().sum(0)
    agree = kept.sign() == torch.where(votes >= 0, 1, -1)
    return (scaled * agree).sum(0) / agree.sum(0).clamp(min=1)


def _keep_largest(x: Tensor, density: float) -> Tensor:
    count = int(density * x.numel())
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[x.abs().view(-1).topk(count).indices] = 1
    return x * mask.view(x.shape)


def _keep_random(x: Tensor, density: float, draw: torch.Generator) -> Tensor:
    return x * (torch.rand(x.shape, generator=draw, dtype=x.dtype) < density) / density


def _generator(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _best_of_sum(adapters: Sequence[WeightedFactors], rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of `rank` of the weighted sum, without computing the dense sum."""
    a = torch.cat([g.a * g.weight for g in adapters])
    b = torch.cat([g.b for g in adapters], 1)
    right, small_right = torch.linalg.qr(a.mT)
    left, small_left = torch.linalg.qr(b)
    u, values, v = torch.linalg.svd(small_left @ small_right.mT, full_matrices=False)
    return v[:rank] @ right.mT, (left @ u[:, :rank]) * values[:rank]


def _truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    transposed = delta.shape[0] < delta.shape[1]
    tall = delta.mT if transposed else delta
    right = spectrum(tall).right[:, :rank]
    if not right.shape[1]:
        return delta.new_zeros(1, delta.shape[1]), delta.new_zeros(delta.shape[0], 1)
    left = tall @ right
    return (left.mT, right) if transposed else (right.mT, left)
