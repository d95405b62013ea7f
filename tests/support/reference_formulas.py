"""Formulas of the task-vector methods, element by element in float64 and plain Python."""

import math
from collections.abc import Sequence
from hashlib import blake2b, shake_128

import torch
from torch import Tensor

DENSITIES = [0.0, 1e-9, 0.2, 0.29, 0.5, 0.77, 1.0, 1.5]


def delta(x: Tensor, base: Tensor) -> Tensor:
    """Return x − base, computed in the precision that methods work in, as float64."""
    work = torch.float64 if base.dtype in (torch.float32, torch.float64) else torch.float32
    return (x.to(work) - base.to(work)).double()


def order(values: Tensor) -> list[int]:
    """Return indices by descending magnitude, the first of equal ones first."""
    flat = values.reshape(-1).abs().tolist()
    return sorted(range(len(flat)), key=lambda i: (-flat[i], i))


def keep(values: Tensor, indices: Sequence[int]) -> Tensor:
    kept = torch.zeros_like(values).reshape(-1)
    for i in indices:
        kept[i] = values.reshape(-1)[i]
    return kept.reshape(values.shape)


def largest(values: Tensor, density: float) -> Tensor:
    if density >= 1:
        return values
    if density <= 0:
        return torch.zeros_like(values)
    return keep(values, order(values)[: max(1, int(density * values.numel()))])


def inner(values: Tensor, density: float, gamma: float) -> Tensor:
    if density >= 1:
        return values
    n = values.numel()
    count = int(density * n)
    first = min(int(gamma * n), n - count)
    return keep(values, order(values)[first : first + count])


def rescaled(values: Tensor, kept: Tensor) -> Tensor:
    whole, part = float(values.abs().sum()), float(kept.abs().sum())
    return kept if whole < 1e-7 or part < 1e-7 else kept * (whole / part)


def vote(
    kept: Sequence[Tensor], weights: Sequence[float], how: str | None, normalize: bool
) -> Tensor:
    """Return the sum (or mean, if `normalize`) of the agreeing elements."""
    columns = [k.reshape(-1).tolist() for k in kept]
    result = []
    for values in zip(*columns, strict=True):
        terms = [w * v for w, v in zip(weights, values, strict=True)]
        if how is None:
            total = sum(weights)
            divisor = 1.0 if abs(total) < 1e-8 else total
            result.append(sum(terms) / (divisor if normalize else 1.0))
            continue
        ballot = sum(terms) if how == "sum" else sum((t > 0) - (t < 0) for t in terms)
        # Terms that cancel except for rounding are ties.
        sign = 1 if ballot >= -1e-13 * sum(map(abs, terms)) else -1
        agreeing = [i for i, t in enumerate(terms) if t * sign > 0]
        divisor = sum(weights[i] for i in agreeing)
        divisor = 1.0 if abs(divisor) < 1e-12 else divisor
        result.append(sum(terms[i] for i in agreeing) / (divisor if normalize else 1.0))
    return torch.tensor(result, dtype=torch.float64).reshape(kept[0].shape)


def draws(seed: int, tensor: str, model: int, count: int) -> Tensor:
    """Return the random words of a model's elements by their definition, one by one, as int64."""
    key = blake2b(f"{seed}\0{model}\0{tensor}".encode(), digest_size=16).digest()
    places = shake_128(b"places").digest(4 << 13)
    words = []
    for index in range(count):
        run, place = divmod(index, 1 << 13)
        group, number = divmod(run, 1 << 10)
        runs = shake_128(key + group.to_bytes(8, "little")).digest(4 << 10)
        word = (_odd(places, place) * _odd(runs, number)) % (1 << 32)
        words.append(word - (1 << 32) if word >> 31 else word)
    return torch.tensor(words, dtype=torch.int64)


def _odd(words: bytes, number: int) -> int:
    return int.from_bytes(words[4 * number : 4 * number + 4], "little") | 1


def kept_by_chance(values: Tensor, density: float, seed: int, tensor: str, model: int) -> Tensor:
    """Keep every element with the probability `density`."""
    if density >= 1:
        return values
    words = draws(seed, tensor, model, values.numel()).view(values.shape)
    keep = (2**31 - words).double() / 2**32 <= density
    return torch.where(keep, values, torch.zeros_like(values))


def rows_of(shape: tuple[int, ...], index: int) -> int:
    """Return the row of an element: along axis 1, or the only one; along K in [C, 1, K]."""
    if len(shape) < 2:
        return 0
    inner = list(shape[1:])
    while len(inner) > 1 and inner[0] == 1:
        inner.pop(0)
    first, rest = divmod(index, math.prod(inner))
    return first * math.prod(inner[1:]) + rest % math.prod(inner[1:])


def kept_by_rank(
    values: Tensor, density: float, epsilon: float, seed: int, tensor: str, model: int
) -> Tensor:
    """Keep elements by rank, counted in plain Python; equal ones count as first or last of them."""
    if density >= 1 or density <= 0:
        return values if density >= 1 else torch.zeros_like(values)
    sizes = values.reshape(-1).abs().tolist()
    words = draws(seed, tensor, model, len(sizes)).tolist()
    rows: dict[int, list[int]] = {}
    for i in range(len(sizes)):
        rows.setdefault(rows_of(tuple(values.shape), i), []).append(i)
    kept = torch.zeros_like(values).reshape(-1)
    for row in rows.values():
        for i in row:
            u = (2.0**31 - words[i]) / 2.0**32
            if len(row) == 1 or epsilon == 0:
                keep = u <= density
            else:
                t = (u - density + epsilon) * (len(row) - 1) / (2 * epsilon)
                less = sum(sizes[j] < sizes[i] for j in row)
                upto = sum(sizes[j] <= sizes[i] for j in row)
                rank = upto - 1 if t - math.floor(t) >= 0.5 else less
                keep = t < rank
            if keep:
                kept[i] = values.reshape(-1)[i]
    return kept.reshape(values.shape)
