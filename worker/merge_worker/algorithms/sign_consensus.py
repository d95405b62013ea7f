"""The rule of the task-vector methods: sparsify, weigh, elect signs, add.

    s_m = sparsify(x_m − b) · rescale_m;  y_m = w_m s_m
    without consensus:  num = Σ y_m;  den = Σ w_m, or 1 if |den| < 1e-8
    with:  σ = sign of the vote, + if tied;  num = Σ y_m over sign(y_m) = σ;  den = Σ of their w_m,
           or 1 if that is 0
    out = b + lambda · num (/ den if normalize)

Everything is in float32 (float64 where the result is 32 bits wide) and rounded once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..method import Block, Granularity, MergePass, StatisticsPass, Task
from .order_statistics import READS, Threshold, order_statistics, parts, parts_into
from .rank_search import dtype_name, scalar
from .sparsify import KEEP_ALL, KEEP_NONE, Mask, Sparsifier, Trim, magnitudes
from .task_vectors import Deltas, Rule, Unchanged, base_of, deltas_of, numbers, run_sums

if TYPE_CHECKING:
    from torch import Tensor


CONSENSUS = ("sum", "count")


@dataclass(frozen=True)
class Vote(Rule):
    """`consensus` is how signs are elected: by sums, by counts, or (None) not at all."""

    weight: Sequence[float]
    keep: Sequence[Sparsifier]
    consensus: str | None
    normalize: bool
    rescale: bool
    scale: float

    def __post_init__(self) -> None:
        if self.consensus not in (None, *CONSENSUS):
            raise ValueError(
                f"consensus_method is '{self.consensus}'; it is one of {', '.join(CONSENSUS)}"
            )

    @property
    def granularity(self) -> Granularity:  # type: ignore[override]
        return (
            Granularity.ROW
            if any(k.granularity is Granularity.ROW for k in self.keep)
            else Granularity.ELEMENT
        )

    @property
    def reads(self) -> int:
        ordered = any(isinstance(keep, Trim) for keep in self.keep)
        return 1 + READS * ordered + bool(self._rescaled())

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        used = [m for m, w in enumerate(self.weight) if w != 0 and self.keep[m] is not KEEP_NONE]
        count = math.prod(task.shape)
        if not used or not count:
            return Unchanged()

        def masked(limits: dict[int, list[Threshold]]) -> StatisticsPass | MergePass:
            again = self._rescaled()
            masks = {m: self.keep[m].mask(task, m, limits.get(m, ()), m in again) for m in used}
            rescaled = {m: masks[m] for m in again if m in masks}
            if rescaled:
                return Norms(rescaled, task.work, lambda factors: self.final(task, masks, factors))
            return self.final(task, masks, {})

        ranks = {m: self.keep[m].ranks(count) for m in used}
        sought = [m for m in used if ranks[m]]

        def then(found: list[list[Threshold]]) -> StatisticsPass | MergePass:
            return masked(dict(zip(sought, found, strict=True)))

        values = magnitudes(task.work, sought)
        return order_statistics(values, count, [ranks[m] for m in sought], then)

    def _rescaled(self) -> list[int]:
        if not self.rescale:
            return []
        return [m for m, k in enumerate(self.keep) if k is not KEEP_ALL and k is not KEEP_NONE]

    def final(self, task: Task, masks: dict[int, Mask], factors: dict[int, float]) -> MergePass:
        """The last pass, with the factors of those models that are rescaled."""
        by_model = {m: self.weight[m] * factors.get(m, 1.0) for m in masks}
        return Combine(self, task.work, masks, by_model)


@dataclass
class Norms(StatisticsPass):
    """‖δ‖₁/‖masked δ‖₁ of every model with a mask; 1 where either is below 1e-7."""

    masks: dict[int, Mask]
    work: str
    then: Callable[[dict[int, float]], MergePass]

    def collect(self, block: Block) -> tuple[list[list[float]], list[list[float]]]:
        models = list(self.masks)
        apply = [mask.on(block) for mask in self.masks.values()]
        whole: list[Tensor] = []
        kept: list[Tensor] = []
        for part in parts(block):
            sizes = deltas_of(part, base_of(part, self.work), models)
            sizes.all.abs_()
            whole += run_sums(sizes)
            for draw, size, bits in zip(apply, sizes.each, sizes.bits, strict=True):
                draw(part, size, bits)
            kept += run_sums(sizes)
        return numbers(whole), numbers(kept)

    def next_pass(
        self, partials: Sequence[tuple[list[list[float]], list[list[float]]]]
    ) -> StatisticsPass | MergePass:
        factors = {}
        for number, m in enumerate(self.masks):
            whole, kept = (math.fsum(x for p in partials for x in p[i][number]) for i in (0, 1))
            factors[m] = 1.0 if whole < 1e-7 or kept < 1e-7 else whole / kept
        return self.then(factors)


class Combine(MergePass):
    """The last pass of a vote; `factors`: weight times rescaling of models that take part."""

    def __init__(
        self, rule: Vote, work: str, masks: dict[int, Mask], factors: dict[int, float]
    ) -> None:
        self.rule = rule
        self.work = work
        self.masks = masks
        self.divide = [rule.weight[m] for m in factors] if rule.normalize else None
        # In units of the first factor, which saves a product; not where a divisor may be replaced.
        self.unit = 1.0
        if not self.divide or min(self.divide) > 0:
            self.unit = abs(next(iter(factors.values())))
        self.factors = {m: factor / self.unit for m, factor in factors.items()}
        if self.divide and rule.consensus and min(self.divide) > 0:
            own = self.divide[0]
            self.divide = [weight / own for weight in self.divide]
            self.unit /= own
        if rule.normalize and not rule.consensus:
            total = math.fsum(rule.weight)
            self.unit /= total if abs(total) >= 1e-8 else 1.0
        self.scale = rule.scale * self.unit

    def merge(self, block: Block, out: Tensor) -> None:
        models = list(self.factors)
        apply = [self.masks[m].on(block) for m in models]
        for part, here in parts_into(block, out):
            base = base_of(part, self.work)
            kept = deltas_of(part, base, models)
            for select, delta, bits in zip(apply, kept.each, kept.bits, strict=True):
                select(part, delta, bits)
            here.copy_(base.add_(self.combine(part, base, kept), alpha=self.scale))

    def combine(self, part: Block, base: Tensor, kept: Deltas) -> Tensor:
        """num (/ den) of one part in units of `unit`; the s_m in `kept` are overwritten."""
        how, factors = self.rule.consensus, list(self.factors.values())
        if how is None:
            return gather(kept.each[0], kept.each, factors)
        if min(factors) <= 0:
            for y, factor in zip(kept.each, factors, strict=True):
                y.mul_(scalar(factor, self.work))
            factors = [1.0] * len(factors)
        total, divisor = elect(part, kept, how, Shares(factors, factors, self.divide))
        return total if divisor is None else _divide(part, total, divisor, self.divide or ())


class Shares(NamedTuple):
    """Factors of the models in the sum that is voted on, in that after the vote, in the divisor."""

    vote: Sequence[float] | None
    total: Sequence[float] | None
    divisor: Sequence[float] | None


def elect(part: Block, kept: Deltas, how: str, shares: Shares) -> tuple[Tensor, Tensor | None]:
    """The sum of those y_m whose sign is elected, and that of their shares in the divisor.

    Factors are positive. `kept` is overwritten.
    """
    import torch

    count, work = kept.all.shape[1], dtype_name(kept.all)
    whole = "int32" if work == "float32" else "int64"
    _ballot(part, kept, how, shares.vote)
    sign = part.scratch.take("sign", count, whole).bitwise_and_(_sign_bit(whole))
    # Turned by the elected sign, agreeing terms are positive and the others are not.
    kept.all_bits.bitwise_xor_(sign)
    kept.all.relu_()
    if shares.divisor is None:
        total = gather(kept.each[0], kept.each, shares.total)
        kept.bits[0].bitwise_xor_(sign)
        return total, None
    total = gather(part.scratch.take("total", count, work), kept.each, shares.total)
    part.scratch.take("total", count, whole).bitwise_xor_(sign)
    torch.sign(kept.all, out=kept.all)
    return total, gather(kept.each[0], kept.each, shares.divisor)


def gather(out: Tensor, terms: tuple[Tensor, ...], factors: Sequence[float] | None) -> Tensor:
    """Σ factor · term; `out` may be the first term."""
    import torch

    shares = list(factors or [1.0] * len(terms))
    rest = list(zip(terms, shares, strict=True))[1:]
    if shares[0] != 1.0:
        torch.mul(terms[0], scalar(shares[0], dtype_name(out)), out=out)
    elif rest:
        term, factor = rest.pop(0)
        torch.add(terms[0], term, alpha=factor, out=out)
    elif out is not terms[0]:
        out.copy_(terms[0])
    for term, factor in rest:
        out.add_(term, alpha=factor)
    return out


def _divide(part: Block, total: Tensor, divisor: Tensor, weights: Sequence[float]) -> Tensor:
    """total / divisor; a divisor of zero divides nothing."""
    import torch

    least = min(abs(weight) for weight in weights)
    if min(weights) > 0:
        # Nothing agrees only where nothing was kept: 0 over anything.
        divisor.clamp_min_(least / 2)
    else:
        # Weights that cancel do so up to rounding.
        term = part.scratch.take("mask", total.numel(), dtype_name(total))
        torch.lt(torch.abs(divisor, out=term), 1e-6 * least, out=term)
        divisor.add_(term)
    return total.div_(divisor)


def _ballot(part: Block, kept: Deltas, how: str, factors: Sequence[float] | None) -> None:
    """Σ y_m or Σ sign(y_m) in scratch "sign"; never −0 unless all of them are zero."""
    import torch

    count, work = kept.all.shape[1], dtype_name(kept.all)
    out = part.scratch.take("sign", count, work)
    if how == "sum":
        gather(out, kept.each, factors)
        return
    term = part.scratch.take("mask", count, work)
    torch.sign(kept.each[0], out=out)
    for y in kept.each[1:]:
        out.add_(torch.sign(y, out=term))


def _sign_bit(whole: str) -> Tensor:
    return scalar(-(1 << 31) if whole == "int32" else -(1 << 63), whole)
