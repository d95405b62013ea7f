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

from ._bracket import scalar
from ._define import Block, Cut, Final, Reduce, Task
from ._order import READS, Threshold, order_statistics, parts
from ._select import Rule, Unchanged, base_of, delta_of, elements, numbers, run_sums
from ._sparsify import KEEP_ALL, KEEP_NONE, Mask, Sparsifier, Trim, magnitudes

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
    def cut(self) -> Cut:  # type: ignore[override]
        return Cut.ROW if any(k.cut is Cut.ROW for k in self.keep) else Cut.ELEMENT

    @property
    def reads(self) -> int:
        ordered = any(isinstance(keep, Trim) for keep in self.keep)
        return 1 + READS * ordered + bool(self._rescaled())

    def begin(self, task: Task) -> Reduce | Final:
        used = [m for m, w in enumerate(self.weight) if w != 0 and self.keep[m] is not KEEP_NONE]
        count = elements(task)
        if not used or not count:
            return Unchanged()

        def masked(thresholds: list[list[Threshold]]) -> Reduce | Final:
            found = zip(used, thresholds, strict=True)
            again = self._rescaled()
            masks = {m: self.keep[m].mask(task, m, limits, m in again) for m, limits in found}
            rescaled = {m: masks[m] for m in again if m in masks}
            if rescaled:
                return Norms(rescaled, task.work, lambda factors: self.final(task, masks, factors))
            return self.final(task, masks, {})

        ranks = [self.keep[m].ranks(count) for m in used]
        return order_statistics(magnitudes(task.work, used), count, ranks, masked)

    def _rescaled(self) -> list[int]:
        if not self.rescale:
            return []
        return [m for m, k in enumerate(self.keep) if k is not KEEP_ALL and k is not KEEP_NONE]

    def final(self, task: Task, masks: dict[int, Mask], factors: dict[int, float]) -> Final:
        """The last pass, with the factors of those models that are rescaled."""
        by_model = {m: self.weight[m] * factors.get(m, 1.0) for m in masks}
        return Combine(self, task.work, masks, by_model)


@dataclass
class Norms(Reduce):
    """‖δ‖₁/‖masked δ‖₁ of every model with a mask; 1 where either is below 1e-7."""

    masks: dict[int, Mask]
    work: str
    then: Callable[[dict[int, float]], Final]

    def look(self, block: Block) -> dict[int, tuple[list[float], list[float]]]:
        apply = {m: mask.on(block) for m, mask in self.masks.items()}
        whole: dict[int, list[Tensor]] = {m: [] for m in apply}
        kept: dict[int, list[Tensor]] = {m: [] for m in apply}
        for part in parts(block):
            base = base_of(part, self.work)
            for m, draw in apply.items():
                size = delta_of(part, m, base, "y0").abs_()
                whole[m] += run_sums(size)
                draw(part, size)
                kept[m] += run_sums(size)
        return {m: (numbers(whole[m]), numbers(kept[m])) for m in apply}

    def finish(
        self, partials: Sequence[dict[int, tuple[list[float], list[float]]]]
    ) -> Reduce | Final:
        factors = {}
        for m in self.masks:
            whole, kept = (math.fsum(x for p in partials for x in p[m][i]) for i in (0, 1))
            factors[m] = 1.0 if whole < 1e-7 or kept < 1e-7 else whole / kept
        return self.then(factors)


class Combine(Final):
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
        apply = {m: mask.on(block) for m, mask in self.masks.items()}
        flat = out.view(-1)
        for part in parts(block):
            base = base_of(part, self.work)
            kept = []
            for m in self.factors:
                kept.append(delta_of(part, m, base, f"y{m}"))
                apply[m](part, kept[-1])
            base.add_(self.combine(part, base, kept), alpha=self.scale)
            first = part.start - block.start
            flat[first : first + base.numel()].copy_(base)

    def combine(self, part: Block, base: Tensor, kept: list[Tensor]) -> Tensor:
        """num (/ den) of one part in units of `unit`; the s_m in `kept` are overwritten."""
        how, factors = self.rule.consensus, list(self.factors.values())
        if how is None:
            for number, y in enumerate(kept):
                gather(kept[0], y, number, factors)
            return kept[0]
        for y, factor in zip(kept, factors, strict=True):
            if factor != 1.0:
                y.mul_(scalar(factor, self.work))
        total, divisor = elect(part, kept, how, Shares(None, self.divide))
        return total if divisor is None else _divide(part, total, divisor, self.divide or ())


class Shares(NamedTuple):
    """Factors of the models in the sum after the vote, and in the divisor."""

    total: Sequence[float] | None
    divisor: Sequence[float] | None


def elect(
    part: Block, kept: list[Tensor], how: str, shares: Shares
) -> tuple[Tensor, Tensor | None]:
    """The sum of those y_m whose sign is elected, and that of their shares in the divisor."""
    import torch

    count, work = kept[0].numel(), str(kept[0].dtype).removeprefix("torch.")
    scratch = part.scratch
    term = scratch.take("mask", count, work)
    sign = _sign_bits(_ballot(scratch.take("sign", count, work), term, kept, how))
    total = scratch.take("total", count, work)
    divisor = scratch.take("divisor", count, work) if shares.divisor else None
    for number, y in enumerate(kept):
        # Turned by the elected sign, agreeing terms are positive and the others are not.
        bits(y).bitwise_xor_(sign)
        agreeing = torch.clamp_min(y, 0, out=term if number else total)
        if divisor is not None and shares.divisor:
            signs = torch.sign(agreeing, out=y if number else divisor)
            gather(divisor, signs, number, shares.divisor)
        gather(total, agreeing, number, shares.total)
    bits(total).bitwise_xor_(sign)
    return total, divisor


def gather(total: Tensor, term: Tensor, number: int, factors: Sequence[float] | None) -> None:
    """total += factor · term; the first term is the total itself."""
    factor = factors[number] if factors else 1.0
    if number:
        total.add_(term, alpha=factor)
    elif factor != 1.0:
        total.mul_(scalar(factor, str(total.dtype).removeprefix("torch.")))


def _divide(part: Block, total: Tensor, divisor: Tensor, weights: Sequence[float]) -> Tensor:
    """total / divisor; a divisor of zero divides nothing."""
    import torch

    least = min(abs(weight) for weight in weights)
    if min(weights) > 0:
        # Nothing agrees only where nothing was kept: 0 over anything.
        divisor.clamp_min_(least / 2)
    else:
        # Weights that cancel do so up to rounding.
        work = str(total.dtype).removeprefix("torch.")
        term = part.scratch.take("mask", total.numel(), work)
        torch.lt(torch.abs(divisor, out=term), 1e-6 * least, out=term)
        divisor.add_(term)
    return total.div_(divisor)


def _ballot(out: Tensor, term: Tensor, kept: list[Tensor], how: str) -> Tensor:
    """Σ y_m or Σ sign(y_m); never −0 unless all of them are zero."""
    import torch

    if how == "count":
        torch.sign(kept[0], out=out)
        for y in kept[1:]:
            out.add_(torch.sign(y, out=term))
    elif len(kept) == 1:
        out.copy_(kept[0])
    else:
        torch.add(kept[0], kept[1], out=out)
        for y in kept[2:]:
            out.add_(y)
    return out


def bits(values: Tensor) -> Tensor:
    """The same memory as whole numbers."""
    import torch

    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int64)


def _sign_bits(values: Tensor) -> Tensor:
    """The sign bit of each value, in place; zero otherwise."""
    word = bits(values)
    narrow = word.element_size() == 4
    return word.bitwise_and_(scalar(-(1 << 31), "int32") if narrow else scalar(-(1 << 63), "int64"))
