"""Several adapters → one, by the definitions of PEFT's `add_weighted_adapter`.

`cat` puts ranks side by side and `svd` keeps the best rank of the weighted sum: both act on the
deltas. The others act on A and on B by themselves, each with the root of the weight; NAME_svd acts
on the dense deltas, then keeps the best rank. https://arxiv.org/abs/2306.01708 (TIES),
https://arxiv.org/abs/2311.03099 (DARE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..algorithms.spectral import spectrum
from ..system import torch_startup

if TYPE_CHECKING:
    from torch import Tensor


torch_startup.complete()


@dataclass(frozen=True)
class How:
    """What is merged by: the name of a method, and its parameters."""

    method: str
    density: float = 1.0
    rank: int = 1  # of svd
    majority: str = "total"  # or "frequency": votes by value, or one each
    seed: int = 0

    @property
    def dense(self) -> bool:
        return self.method.endswith("_svd")


class Weighted(NamedTuple):
    """Factors of one adapter in float64, a (rank, in) and b (out, rank); its scale and weight."""

    a: Tensor
    b: Tensor
    scale: float
    share: float

    @property
    def weight(self) -> float:
        return self.scale * self.share


def combine(given: Sequence[Weighted], how: How, name: str) -> tuple[Tensor, Tensor]:
    """The factors (a, b) of one module; `name` seeds what is random. ValueError if ranks differ."""
    if how.method == "cat":
        return torch.cat([g.a * g.weight for g in given]), torch.cat([g.b for g in given], 1)
    if how.method == "svd":
        return _best(given, how.rank)
    draw = _generator(how.seed, name)
    if how.dense:
        deltas = [g.b @ g.a * g.scale for g in given]
        merged = _merged(deltas, [g.share for g in given], how, draw)
        return _truncated(merged, how.rank)
    if len({len(g.a) for g in given}) > 1:
        ranks = ", ".join(str(len(g.a)) for g in given)
        raise ValueError(
            f"ranks {ranks} differ; {how.method} needs equal ones (cat and svd do not)"
        )
    roots = [math.sqrt(abs(g.weight)) for g in given]
    # The sign on one side only, or it would be lost.
    signed = [math.copysign(root, g.weight) for root, g in zip(roots, given, strict=True)]
    a = _merged([g.a for g in given], signed, how, draw)
    return a, _merged([g.b for g in given], roots, how, draw)


def _merged(
    tensors: Sequence[Tensor], weights: Sequence[float], how: How, draw: torch.Generator
) -> Tensor:
    """Thinned, weighted, and summed: all of them, or those that agree with the elected sign."""
    method = how.method.removesuffix("_svd")
    thin: Callable[[Tensor], Tensor] = partial(_largest, density=how.density)
    if method.startswith("dare"):
        thin = partial(_some, density=how.density, draw=draw)
    kept = torch.stack([thin(x) if how.density < 1 and method != "linear" else x for x in tensors])
    scaled = kept * torch.tensor(weights, dtype=kept.dtype).view(-1, *[1] * tensors[0].dim())
    if not method.endswith("ties"):
        return scaled.sum(0)
    votes = kept.sum(0) if how.majority == "total" else kept.sign().sum(0)
    agree = kept.sign() == torch.where(votes >= 0, 1, -1)
    return (scaled * agree).sum(0) / agree.sum(0).clamp(min=1)


def _largest(x: Tensor, density: float) -> Tensor:
    count = int(density * x.numel())
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[x.abs().view(-1).topk(count).indices] = 1
    return x * mask.view(x.shape)


def _some(x: Tensor, density: float, draw: torch.Generator) -> Tensor:
    return x * (torch.rand(x.shape, generator=draw, dtype=x.dtype) < density) / density


def _generator(seed: int, name: str) -> torch.Generator:
    digest = blake2b(f"{seed}\0{name}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _best(given: Sequence[Weighted], rank: int) -> tuple[Tensor, Tensor]:
    """The best rank of the weighted sum, which is never made: its factors tell all."""
    a = torch.cat([g.a * g.weight for g in given])
    b = torch.cat([g.b for g in given], 1)
    right, small_right = torch.linalg.qr(a.mT)
    left, small_left = torch.linalg.qr(b)
    u, values, v = torch.linalg.svd(small_left @ small_right.mT, full_matrices=False)
    return v[:rank] @ right.mT, (left @ u[:, :rank]) * values[:rank]


def _truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    turned = delta.shape[0] < delta.shape[1]
    tall = delta.mT if turned else delta
    right = spectrum(tall).right[:, :rank]
    if not right.shape[1]:
        return delta.new_zeros(1, delta.shape[1]), delta.new_zeros(delta.shape[0], 1)
    left = tall @ right
    return (left.mT, right) if turned else (right.mT, left)
