"""Generalized task arithmetic: sparsify task vectors, weight them, elect signs, add.

    s_m = sparsify(x_m − base) · rescale_m;  y_m = w_m s_m
    without consensus:  sum = Σ y_m;  divisor = Σ w_m, or 1 if |Σ w_m| < 1e-8
    with consensus:  σ = elected sign, + if tied;  sum = Σ y_m over the models with sign(y_m) = σ;
                     divisor = Σ of their w_m, or 1 if that is 0
    out = base + lambda · sum (/ divisor if normalize)

Arithmetic is in float32 (float64 if the result is 32 bits wide), rounded once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..method import Block, Granularity, MergePass, StatisticsPass, Task, Tensor
from .order_statistics import READS, Threshold, held_bytes, order_statistics, parts, parts_into
from .rank_search import dtype_name, scalar
from .sparsify import KEEP_ALL, KEEP_NONE, Mask, Sparsifier, Trim
from .task_vectors import (
    SUMS,
    CopyBase,
    Rule,
    TaskVectors,
    flat_base,
    run_sums,
    sums_by_model,
    task_vectors,
)
from .weighted_sum import total_of

FLOAT32_MAX, FLOAT64_MAX = 3.4e38, 1.7e308

LEAST_SHARE = 1e-200
"""Weights are not told apart below this share of the largest; less would underflow in products."""

CONSENSUS = ("sum", "count")  # how a sign is elected: that of Σ y_m, or that of Σ sign(y_m)


@dataclass(frozen=True)
class GeneralizedTaskArithmetic(Rule):
    """The rule of ties, dare, breadcrumbs, della and their variants.

    One weight and one sparsifier per model. `consensus` is one of CONSENSUS, or None to add task
    vectors without electing signs.
    """

    weight: Sequence[float]
    sparsifiers: Sequence[Sparsifier]
    consensus: str | None
    normalize: bool
    lambda_: float
    rescale: bool = False

    def __post_init__(self) -> None:
        if self.consensus not in (None, *CONSENSUS):
            raise ValueError(
                f"consensus_method must be one of {', '.join(CONSENSUS)}, got '{self.consensus}'"
            )

    @property
    def granularity(self) -> Granularity:  # type: ignore[override]
        by_row = any(s.granularity is Granularity.ROW for s in self.sparsifiers)
        return Granularity.ROW if by_row else Granularity.ELEMENT

    @property
    def reads(self) -> int:
        trims = any(isinstance(sparsifier, Trim) for sparsifier in self.sparsifiers)
        return 1 + READS * trims + bool(self._rescaled_models())

    def begin(self, task: Task) -> StatisticsPass | MergePass:
        sparsifiers = self.sparsifiers
        used = [m for m, w in enumerate(self.weight) if w != 0 and sparsifiers[m] is not KEEP_NONE]
        if not used:
            return CopyBase()

        def mask_and_merge(thresholds: list[list[Threshold]]) -> StatisticsPass | MergePass:
            of_model = dict(zip(trimmed, thresholds, strict=True))
            twice = self._rescaled_models()
            masks = {m: sparsifiers[m].mask(task, m, of_model.get(m, ()), m in twice) for m in used}
            rescaled = {m: masks[m] for m in twice if m in masks}
            if rescaled:
                return L1Norms(rescaled, task.work, lambda f: self.merge_pass(task, masks, f))
            return self.merge_pass(task, masks, {})

        count = math.prod(task.shape)
        ranks = {m: sparsifiers[m].ranks(count) for m in used}
        trimmed = [m for m in used if ranks[m]]

        def magnitudes(block: Block) -> Sequence[Tensor]:
            vectors = task_vectors(block, flat_base(block, task.work), trimmed)
            vectors.all.abs_()
            return vectors.by_model

        return order_statistics(magnitudes, count, [ranks[m] for m in trimmed], mask_and_merge)

    def held_bytes(self, task: Task, block: int) -> int:
        count = math.prod(task.shape)
        ranks = [len(sparsifier.ranks(count)) for sparsifier in self.sparsifiers]
        twice = bool(self._rescaled_models())
        masks = sum(sparsifier.mask_bytes(task, block, twice) for sparsifier in self.sparsifiers)
        sums = 2 * SUMS * task.models * -(-count // block) if twice else 0
        return held_bytes(count, block, [n for n in ranks if n], task.work) + masks + sums

    def _rescaled_models(self) -> list[int]:
        if not self.rescale:
            return []
        return [m for m, s in enumerate(self.sparsifiers) if s not in (KEEP_ALL, KEEP_NONE)]

    def merge_pass(
        self, task: Task, masks: dict[int, Mask], rescale: dict[int, float]
    ) -> MergePass:
        """Return the last pass; `rescale` has the factors of the models that are rescaled."""
        return MergeTaskVectors(self, task.work, masks, rescale)


@dataclass
class L1Norms(StatisticsPass):
    """The pass that computes ‖δ‖₁/‖masked δ‖₁ of every model in `masks`.

    `then` receives the factors by model; a factor is 1 if either norm is below 1e-7.
    """

    masks: dict[int, Mask]
    work: str
    then: Callable[[dict[int, float]], MergePass]

    def collect(self, block: Block) -> tuple[list[float], list[float]]:
        models = list(self.masks)
        apply = [mask.on(block) for mask in self.masks.values()]
        whole: list[Tensor] = []
        kept: list[Tensor] = []
        for part in parts(block):
            sizes = task_vectors(part, flat_base(part, self.work), models)
            sizes.all.abs_()
            whole += run_sums(sizes)
            for apply_mask, size, bits in zip(apply, sizes.by_model, sizes.bits, strict=True):
                apply_mask(part, size, bits)
            kept += run_sums(sizes)
        return sums_by_model(whole), sums_by_model(kept)

    def next_pass(
        self, partials: Sequence[tuple[list[float], list[float]]]
    ) -> StatisticsPass | MergePass:
        factors = {}
        for number, m in enumerate(self.masks):
            whole, kept = (math.fsum(p[i][number] for p in partials) for i in (0, 1))
            factors[m] = 1.0 if whole < 1e-7 or kept < 1e-7 else whole / kept
        return self.then(factors)


@dataclass
class MergeTaskVectors(MergePass):
    """The merge pass over the models in `masks`; `rescale` has the factors of some of them.

    Weights are in units of the largest weight, and their products with `rescale` in units of the
    largest product: whatever they are, no sum overflows, and a factor of 1 saves a product.
    """

    rule: GeneralizedTaskArithmetic
    work: str
    masks: dict[int, Mask]
    rescale: dict[int, float]

    def __post_init__(self) -> None:
        rule = self.rule
        self.heaviest = max(map(abs, rule.weight))
        # A smaller share counts only where its model is alone, and then cancels.
        shares = [
            math.copysign(max(abs(weight / self.heaviest), LEAST_SHARE), weight) if weight else 0.0
            for weight in rule.weight
        ]
        factors = [shares[m] * self.rescale.get(m, 1.0) for m in self.masks]
        largest = max(map(abs, factors)) or 1.0
        self.factors = [factor / largest for factor in factors]
        self.divide = None
        self.unit = largest
        if rule.normalize and rule.consensus:
            self.divide = [shares[m] for m in self.masks]
        elif rule.normalize and abs(total_of(rule.weight)) >= 1e-8:
            self.unit /= math.fsum(shares)
        else:
            self.unit *= self.heaviest
        self.scale = rule.lambda_ * self.unit
        if not abs(self.scale) < FLOAT32_MAX:
            self.work = "float64"

    def merge(self, block: Block, out: Tensor) -> None:
        models = list(self.masks)
        apply = [self.masks[m].on(block) for m in models]
        for part, target in parts_into(block, out):
            base = flat_base(part, self.work)
            sparse = task_vectors(part, base, models)
            for apply_mask, vector, bits in zip(apply, sparse.by_model, sparse.bits, strict=True):
                apply_mask(part, vector, bits)
            target.copy_(base.add_(self.combine(part, base, sparse), alpha=self.scale))

    def combine(self, part: Block, base: Tensor, sparse: TaskVectors) -> Tensor:
        """Return sum (/ divisor) of one part in units of `unit`; overwrites the s_m in `sparse`."""
        consensus, factors = self.rule.consensus, self.factors
        if consensus is None:
            return weighted_total(sparse.by_model[0], sparse.by_model, factors)
        if min(factors) <= 0:
            for y, factor in zip(sparse.by_model, factors, strict=True):
                y.mul_(scalar(factor, self.work))
            factors = [1.0] * len(factors)
        total, divisor = disjoint_sum(part, sparse, consensus, factors, factors, self.divide)
        if divisor is None or self.divide is None:
            return total
        return _divide(part, total, divisor, self.divide, 1 / self.heaviest)


def disjoint_sum(
    part: Block,
    vectors: TaskVectors,
    consensus: str,
    votes: Sequence[float] | None,
    factors: Sequence[float],
    divisors: Sequence[float] | None,
) -> tuple[Tensor, Tensor | None]:
    """Elect signs; return the sum over the models that agree, and the sum of their divisors.

    `votes`, `factors` and `divisors` are the models' positive factors in the vote (None: 1 each),
    in the sum and in the divisor (None: no divisor). `vectors` are overwritten.
    """
    import torch

    count, work = vectors.all.shape[1], dtype_name(vectors.all.dtype)
    integer = "int32" if work == "float32" else "int64"
    _vote(part, vectors, consensus, votes)
    sign_bit = scalar(-(1 << 31) if integer == "int32" else -(1 << 63), integer)
    sign = part.scratch.take("sign", count, integer).bitwise_and_(sign_bit)
    # Multiplied by the elected sign, agreeing terms are positive and the others are not.
    vectors.all_bits.bitwise_xor_(sign)
    vectors.all.relu_()
    if divisors is None:
        total = weighted_total(vectors.by_model[0], vectors.by_model, factors)
        vectors.bits[0].bitwise_xor_(sign)
        return total, None
    total = weighted_total(part.scratch.take("total", count, work), vectors.by_model, factors)
    part.scratch.take("total", count, integer).bitwise_xor_(sign)
    torch.sign(vectors.all, out=vectors.all)
    return total, weighted_total(vectors.by_model[0], vectors.by_model, divisors)


def weighted_total(
    out: Tensor, terms: tuple[Tensor, ...], factors: Sequence[float] | None
) -> Tensor:
    """Write Σ factor · term to `out`, which may be the first term."""
    import torch

    given = list(factors or [1.0] * len(terms))
    rest = list(zip(terms, given, strict=True))
    first, own = rest.pop(given.index(1.0) if 1.0 in given else 0)
    if own != 1.0:
        torch.mul(first, scalar(own, dtype_name(out.dtype)), out=out)
    elif rest:
        term, factor = rest.pop(0)
        torch.add(first, term, alpha=factor, out=out)
    elif out is not first:
        out.copy_(first)
    for term, factor in rest:
        out.add_(term, alpha=factor)
    return out


def _divide(
    part: Block, total: Tensor, divisor: Tensor, weights: Sequence[float], one: float
) -> Tensor:
    """Return total / divisor, with `one` in place of a divisor of zero."""
    import torch

    least = min(abs(weight) for weight in weights if weight)
    if min(weights) > 0:
        # No model agrees only if all were dropped: the total is 0, over anything.
        divisor.clamp_min_(least / 2)
    else:
        # Weights that cancel do so up to rounding.
        term = part.scratch.take("mask", total.numel(), dtype_name(total.dtype))
        torch.lt(torch.abs(divisor, out=term), 1e-6 * least, out=term)
        divisor.add_(term, alpha=min(one, FLOAT64_MAX))
    return total.div_(divisor)


def _vote(
    part: Block, vectors: TaskVectors, consensus: str, factors: Sequence[float] | None
) -> None:
    """Write Σ y_m or Σ sign(y_m) to scratch "sign"; −0 only if all terms are zero."""
    import torch

    count, work = vectors.all.shape[1], dtype_name(vectors.all.dtype)
    out = part.scratch.take("sign", count, work)
    if consensus == "sum":
        weighted_total(out, vectors.by_model, factors)
        return
    term = part.scratch.take("mask", count, work)
    torch.sign(vectors.by_model[0], out=out)
    for y in vectors.by_model[1:]:
        out.add_(torch.sign(y, out=term))
