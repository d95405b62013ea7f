"""Formulas of 13 methods in float64, for one tensor: models, base and parameters to the result.

`parameters` has the values of a task; `doubt` is set where rounding alone decides an election.
Refused merges raise ZeroDivisionError.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from support.reference_formulas import inner, largest, rescaled

Values = dict[str, Any]
Formula = Callable[[list[Tensor], Tensor, Values, Tensor], Tensor]


def linear(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    total = math.fsum(p["weight"]) if p["normalize"] else 1.0
    return _sum(xs, p["weight"]) / total


def passthrough(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    return xs[0] * p["scale"][0]


def task_arithmetic(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    return base + p["lambda"] * _sum([x - base for x in xs], p["weight"]) / _divisor(p)


def slerp(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    t, norms = p["t"], [float(v.norm()) for v in (xs[0], base)]
    a, b = (n if n > 1e-8 else 1.0 for n in norms)
    cosine = max(-1.0, min(1.0, float((xs[0] * base).sum()) / (a * b)))
    if abs(cosine) > 0.9995:
        return t * xs[0] + (1 - t) * base
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * base + math.sin(t * angle) * xs[0]) / math.sin(angle)


def nuslerp(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    w = p["weight"]
    t = w[1] / (w[0] + w[1]) if abs(w[0] + w[1]) >= 1e-6 else 0.5
    u, v = xs[0] - base, xs[1] - base
    axes: tuple[int, ...] = tuple(range(u.ndim))
    if not p["nuslerp_flatten"] and u.ndim:
        axes = (0,) if p["nuslerp_row_wise"] and u.ndim > 1 else (u.ndim - 1,)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(axes, keepdim=True) if axes else x * y

    a, b = (dot(x, x).sqrt().clamp(min=1e-7) for x in (u, v))
    cosine = (dot(u, v) / (a * b)).clamp(-1, 1)
    angle = cosine.acos()
    arc = (torch.sin((1 - t) * angle) * u + torch.sin(t * angle) * v) / torch.sin(angle)
    return base + torch.where(1 - cosine * cosine <= 1e-14, (1 - t) * u + t * v, arc)


def multislerp(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    if len(xs) == 1:
        return xs[0]
    w, eps = p["weight"], p["eps"]
    w = [x / math.fsum(w) for x in w] if p["normalize_weights"] else w
    deltas = [x - base for x in xs]
    lengths = [float(d.norm()) for d in deltas]
    mean = _sum([d / (n + eps) for d, n in zip(deltas, lengths, strict=True)], w)
    size = float(mean.norm())
    doubt |= torch.tensor(0.9 < size / eps < 1.1)
    if size >= eps:
        return base + mean / size * math.fsum(a * n for a, n in zip(w, lengths, strict=True))
    if len(xs) > 2 and any(lengths):
        raise ZeroDivisionError
    return base + _sum(deltas, w)


def karcher(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    tol, lengths = p["tol"], [float(x.norm()) for x in xs]
    units = [x / n for x, n in zip(xs, lengths, strict=True) if n > tol]
    if not units:
        return torch.zeros_like(xs[0])
    mean = _sum(units, [1 / len(units)] * len(units))
    mean = units[0] if mean.norm() < tol else mean / mean.norm()
    for _ in range(p["max_iter"]):
        step = torch.zeros_like(mean)
        for unit in units:
            c = max(-1.0, min(1.0, float((unit * mean).sum())))
            angle = math.acos(c)
            if tol <= angle <= math.pi - 1e-3:
                step = step + angle / math.sin(angle) * (unit - c * mean) / len(units)
        size = float(step.norm())
        if size < tol:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / mean.norm()
    return mean * math.fsum(lengths) / len(lengths)


def model_stock(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    k = len(xs)
    by_row = p["filter_wise"] and base.ndim > 0
    deltas = torch.stack([x - base for x in xs])
    deltas = deltas.reshape(k, -1, base.shape[-1] if by_row else base.numel())
    lengths = deltas.norm(dim=-1)
    cosines = [
        ((deltas[i] * deltas[j]).sum(-1) / (lengths[i] * lengths[j]).clamp(min=1e-6)).clamp(-1, 1)
        for i in range(k)
        for j in range(i + 1, k)
    ]
    c = torch.stack(cosines).mean(0)
    divisor = 1 + (k - 1) * c
    t = torch.where(divisor.abs() < 1e-6, 0.0, k * c / divisor)
    merged = t[:, None] * deltas.mean(0)
    return base + merged.reshape(base.shape)


def ties(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    return _sparse(xs, base, p, doubt, lambda d, m: largest(d, p["density"][m]), elect=True)


def breadcrumbs(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    return _sparse(xs, base, p, doubt, _crumbs(p), elect=False)


def breadcrumbs_ties(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    return _sparse(xs, base, p, doubt, _crumbs(p), elect=True)


def nearswap(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    w = (p["t"] / (xs[0] - base).abs().clamp(min=1e-6)).clamp(0, 1)
    return w * xs[0] + (1 - w) * base


def ram(xs: list[Tensor], base: Tensor, p: Values, doubt: Tensor) -> Tensor:
    deltas = torch.stack([x - base for x in xs])
    changed = deltas.abs() > p["epsilon"]
    return base + (deltas * changed).sum(0) / changed.sum(0).clamp(min=1)


def _sum(terms: Sequence[Tensor], factors: Sequence[float]) -> Tensor:
    return torch.stack([f * x for x, f in zip(terms, factors, strict=True)]).sum(0)


def _divisor(p: Values) -> float:
    total = math.fsum(p["weight"])
    return total if p["normalize"] and abs(total) >= 1e-8 else 1.0


def _crumbs(p: Values) -> Callable[[Tensor, int], Tensor]:
    def sparsify(delta: Tensor, model: int) -> Tensor:
        density = p["density"][model]
        kept = inner(delta, density, p["gamma"][model])
        return kept if density > 0 else torch.zeros_like(delta)

    return sparsify


def _sparse(
    xs: list[Tensor],
    base: Tensor,
    p: Values,
    doubt: Tensor,
    sparsify: Callable[[Tensor, int], Tensor],
    elect: bool,
) -> Tensor:
    deltas = [x - base for x in xs]
    kept = [sparsify(d, m) for m, d in enumerate(deltas)]
    trims = [p["rescale"] and 0 < density < 1 for density in p["density"]]
    kept = [rescaled(d, k) if trim else k for d, k, trim in zip(deltas, kept, trims, strict=True)]
    w = torch.tensor(p["weight"], dtype=torch.float64).view(-1, *[1] * base.ndim)
    terms = torch.stack(kept) * w
    if not elect:
        return base + p["lambda"] * terms.sum(0) / _divisor(p)
    votes = terms if p["consensus_method"] == "sum" else terms.sign()
    total, size = votes.sum(0), votes.abs().sum(0)
    doubt |= (total.abs() < 1e-5 * size) & (p["consensus_method"] == "sum")
    agree = terms.sign() == torch.where(total >= 0, 1.0, -1.0)
    merged = (terms * agree).sum(0)
    if p["normalize"]:
        divisor = (w * agree).sum(0)
        least = min((abs(x) for x in p["weight"] if x), default=1.0)
        merged = merged / torch.where(divisor.abs() < 1e-6 * least, 1.0, divisor)
    return base + p["lambda"] * merged


FORMULAS: dict[str, Formula] = {
    formula.__name__: formula
    for formula in (
        linear,
        passthrough,
        task_arithmetic,
        slerp,
        nuslerp,
        multislerp,
        karcher,
        model_stock,
        ties,
        breadcrumbs,
        breadcrumbs_ties,
        nearswap,
        ram,
    )
}
