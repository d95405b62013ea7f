"""The algorithm of OTA merging: task vectors masked and weighted by second moments of gradients.

    v_m compressed if asked → mask_m: v_m δ_m² large → W_m = (v_m^p · s_m / N_m + ε) · mask_m
    out = base + Σ W_m δ_m / Σ W_m, with δ_m = x_m − base

Second moments are 1e-19 and less, so they are multiplied by a power of two for each model, and the
weights by another one for all models; products with squares of differences stay in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from ..method import (
    Algorithm,
    Block,
    Cost,
    Granularity,
    MergePass,
    Method,
    StatisticsPass,
    Task,
    Tensor,
)
from ..tensors.importance import Importance
from .curvature_parts import Curvature, is_vocabulary, norms_of
from .importance_average import multiply
from .order_statistics import READS, Threshold, held_bytes, order_statistics, parts, parts_into
from .tree_sum import MOST_HEIGHTS, TreeSum

SPECTRAL_FLOPS = 20
"""Operations of singular values for each element and row or column, whichever are fewer."""


class OtaAlgorithm(Algorithm):
    """The algorithm of a method function `method(*, parameters) -> Curvature`."""

    floor_name = "epsilon"

    def granularity(self, method: Method, values: Any) -> Granularity:
        rule: Curvature = method.call(values)
        if rule.rescale or any(rule.rank):
            return Granularity.TENSOR
        return Granularity.ROW if any(rule.rank1_approx) else Granularity.ELEMENT

    def reads(self, method: Method, values: Any) -> int:
        rule: Curvature = method.call(values)
        compressed = any(rule.rank) or any(rule.rank1_approx)
        searches = any(d < 1 for d in rule.density), rule.trims
        return 1 + compressed + rule.normalizes + READS * sum(searches) + rule.rescale

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 8 * (2 * sources + 14)

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        rule: Curvature = method.call(task.values)
        count = math.prod(task.shape)
        searched = [1] * max(sum(d < 1 for d in rule.density), task.models * rule.trims)
        held = held_bytes(count, block, searched, "float64")
        if len(task.shape) == 2 and any(rule.rank1_approx):
            held += 8 * task.models * (MOST_HEIGHTS + 2) * sum(task.shape)
        return held

    def cost(self, method: Method, task: Task) -> Cost | None:
        rule: Curvature = method.call(task.values)
        if len(task.shape) < 2 or not (rule.rescale or any(rule.rank)):
            return None
        narrow = min(task.shape[-2:])
        each = 10 if rule.approximate_norm and not any(rule.rank) else SPECTRAL_FLOPS * narrow
        flops = 2 * task.models * math.prod(task.shape) * each
        sources = task.models + task.has_base + len(task.importance)
        return Cost(flops, self.scratch_bytes(method, sources) + 64)

    def check(self, method: Method, task: Task) -> None:
        method.check_sources(task)
        rule: Curvature = method.call(task.values)
        if not task.has_base:
            rule.refuse_without_base()

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        return _Passes(method.call(task.values), task).after(0)

    def floor_share(self, method: Method, task: Task) -> float | None:
        """Return the share of sampled elements in which epsilon outweighs half of all weights."""
        rule: Curvature = method.call(task.values)
        known = [(n, e.figures.sample) for n, e in enumerate(task.importance[: task.models]) if e]
        if rule.normalizes or not rule.epsilon or not known or not len(known[0][1]):
            return None
        total = sum(sample**rule.power * rule.scaling_factor[n] for n, sample in known)
        return float((total < 2 * rule.epsilon).double().mean())


@dataclass
class _Passes:
    """The passes over one tensor, and what they have found so far."""

    rule: Curvature
    task: Task
    factors: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    means: list[float] = field(default_factory=list)  # of v'^p
    kept: dict[int, Threshold | None] = field(default_factory=dict)  # None: nothing
    trimmed: list[Threshold] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)  # per matrix

    def after(self, stage: int) -> StatisticsPass | MergePass:
        """Return the first pass that is needed from a stage on."""
        stages = (self._compress, self._average, self._mask, self._trim, self._measure)
        for number, start in enumerate(stages[stage:], stage):
            pass_ = start(partial(self.after, number + 1))
            if pass_ is not None:
                return pass_
        return _Merge(self)

    @property
    def compressed(self) -> list[int]:
        """The models whose v is replaced by a product of factors."""
        shape, rule = self.task.shape, self.rule
        matrices = len(shape) in (2, 3) and min(shape) > 1
        ranked = matrices and not is_vocabulary(self.task.name)
        return [
            m
            for m in range(self.task.models)
            if (rule.rank[m] and ranked) or (rule.rank1_approx[m] and len(shape) == 2)
        ]

    @cached_property
    def whole(self) -> bool:
        """Whether blocks are not cut further, since rows are multiplied or the tensor is whole."""
        return bool(self.compressed) or self.rule.rescale

    @cached_property
    def scales(self) -> tuple[list[float], float]:
        """Factor of v'^p of each model, and ε, in units of the largest weight."""
        rule, gains = self.rule, list[float]()
        exponents = [self.exponent(m) for m in range(self.task.models)]
        for m, exponent in enumerate(exponents):
            gain = 2.0 ** (exponent * rule.power) * rule.scaling_factor[m]
            if rule.normalizes:
                below = self.means[m] * gain + rule.epsilon
                gain = gain / below if below > 0 else 0.0
            gains.append(gain)
        common = math.frexp(max(gains))[1] if max(gains) > 0 else 0
        common = max(common, math.frexp(rule.epsilon)[1] - 100)  # which float32 still holds
        return [math.ldexp(gain, -common) for gain in gains], math.ldexp(rule.epsilon, -common)

    def entry(self, model: int) -> Importance | None:
        """Return the importance of a model; None if its file has none of this tensor."""
        entries = self.task.importance
        return entries[model] if entries else None

    def exponent(self, model: int) -> int:
        """Return e for which v' = v · 2^−e is below 1."""
        entry = self.entry(model)
        return math.frexp(entry.figures.largest)[1] if entry else 0

    def work(self, block: Block) -> str:
        first = block.tensors[0]
        wide = self.task.dtype.bits > 16 or any(x.dtype.itemsize > 4 for x in block.tensors)
        return "float64" if wide and first.device.type != "mps" else "float32"

    def split(self, block: Block) -> Iterator[Block]:
        if not self.whole:
            yield from parts(block)
            return
        yield Block([x.reshape(-1) for x in block.tensors], block.start, block.scratch)

    # Values of one part.

    def take(self, part: Block, slot: str) -> Tensor:
        return part.scratch.take(slot, part.tensors[0].numel(), self.work(part))

    def moments(self, part: Block, model: int, slot: str = "moments") -> Tensor:
        """Return v' of a model, in units of its largest value."""
        out, entry = self.take(part, slot), self.entry(model)
        if entry is None:
            return out.zero_()
        if model in self.factors:
            return self._product(part, model, out)
        out.copy_(part.tensors[entry.index].reshape(-1))
        return multiply(out, math.ldexp(1.0, -self.exponent(model)))

    def _product(self, part: Block, model: int, out: Tensor) -> Tensor:
        rows, columns = (factor.to(out.dtype) for factor in self.factors[model])
        if rows.dim() == 2:  # whole rows of a matrix
            width = columns.shape[-1]
            first = part.start // width
            rows = rows[first : first + out.numel() // width]
        return out.copy_((rows @ columns).clamp_(min=0).reshape(-1))

    def delta(self, part: Block, model: int, slot: str = "delta", x0: Any = None) -> Tensor:
        """Return x_m − base, or − the first model without a base; `x0` is either, if it is read."""
        out = self.take(part, slot).copy_(part.tensors[model].reshape(-1))
        return out.sub_(self.reference(part) if x0 is None else x0)

    def reference(self, part: Block) -> Tensor:
        """Return the base, or the first model without a base."""
        reference = part.tensors[self.task.models if self.task.has_base else 0]
        return self.take(part, "reference").copy_(reference.reshape(-1))

    def score(self, part: Block, model: int, slot: str) -> Tensor:
        """Return v' δ² (v' without a base), or |δ|, by which elements are kept."""
        if self.rule.metric == "magnitude":
            return self.delta(part, model, slot).abs_()
        score = self.moments(part, model, slot)
        if self.task.has_base:
            score.mul_(self.delta(part, model).square_())
        return score

    def mask(self, part: Block, model: int, lead: int | None) -> Tensor | None:
        """Return 1 where a model is kept and 0 elsewhere; None if it is kept everywhere.

        Of elements equal to the threshold of a density, the first `lead` of the part are kept.
        """
        import torch

        rule, out = self.rule, None
        if model in self.kept:
            threshold, out = self.kept[model], self.take(part, "mask")
            if threshold is None:
                return out.zero_()
            score = self.score(part, model, "score")
            torch.gt(score, threshold.value, out=out)
            if lead:
                torch.ge(score[:lead], threshold.value, out=out[:lead])
        if rule.precond_threshold[model] > 0:
            score = self.moments(part, model, "score")
            if self.task.has_base:
                score.mul_(self.delta(part, model).square_())
            least = math.ldexp(rule.precond_threshold[model], -self.exponent(model))
            if out is None:
                return torch.ge(score, least, out=self.take(part, "mask"))
            out.mul_(torch.ge(score, least, out=score))
        return out

    def lead(self, block: Block, part: Block, model: int) -> int | None:
        """Return how many leading elements of a part are kept at the threshold."""
        threshold = self.kept.get(model)
        if threshold is None:
            return None
        edge = block.start + threshold.leading_ties(block) - part.start
        return min(max(edge, 0), part.tensors[0].numel())

    # Stages: each returns a pass, or None if there is nothing to find.

    def _compress(self, then: Then) -> StatisticsPass | None:
        return _Compress(self, then) if self.compressed else None

    def _average(self, then: Then) -> StatisticsPass | None:
        return _Average(self, then) if self.rule.normalizes else None

    def _mask(self, then: Then) -> StatisticsPass | MergePass | None:
        count = math.prod(self.task.shape)
        limited = [m for m, d in enumerate(self.rule.density) if d < 1 and count]
        if not limited:
            return None
        sizes = {m: int(self.rule.density[m] * count) for m in limited}
        self.kept |= {m: None for m in limited if not sizes[m]}
        searched = [m for m in limited if sizes[m]]

        def values(block: Block) -> Sequence[Tensor]:
            return [self.score(block, m, f"score {m}") for m in searched]

        def found(thresholds: list[list[Threshold]]) -> StatisticsPass | MergePass:
            pairs = zip(searched, thresholds, strict=True)
            self.kept |= {m: threshold for m, (threshold,) in pairs}
            return then()

        ranks = [[count - sizes[m]] for m in searched]
        return order_statistics(values, count, ranks, found, whole=self.whole)

    def _trim(self, then: Then) -> StatisticsPass | MergePass | None:
        count = math.prod(self.task.shape)
        keep = int(self.rule.ties_density * count)
        if not self.rule.trims or not 0 < keep < count:
            return None

        def values(block: Block) -> Sequence[Tensor]:
            return [x.abs_() for x in self.masked(block, block)]

        def found(thresholds: list[list[Threshold]]) -> StatisticsPass | MergePass:
            self.trimmed = [threshold for (threshold,) in thresholds]
            return then()

        ranks = [[count - keep]] * self.task.models
        # Masks of a density take the place in the block, which a sample does not have.
        return order_statistics(values, count, ranks, found, whole=True)

    def _measure(self, then: Then) -> StatisticsPass | None:
        return _Measure(self, then) if self.rule.rescale else None

    def masked(self, block: Block, part: Block, x0: Tensor | None = None) -> list[Tensor]:
        """Return the masked task vectors of all models, rescaled once that is known."""
        result = []
        for m in range(self.task.models):
            mask = self.mask(part, m, self.lead(block, part, m))
            delta = self.delta(part, m, f"vector {m}", x0)
            if mask is not None:
                delta.mul_(mask)
            if self.ratios:
                ratio = self.ratios[m].to(delta.dtype)
                delta.view(ratio.numel(), -1).mul_(ratio.view(-1, 1))
            result.append(delta)
        return result


Then = Callable[[], "StatisticsPass | MergePass"]


@dataclass
class _Compress(StatisticsPass):
    """The pass that finds the factors of v: sums of rows and columns, or singular vectors."""

    state: _Passes
    then: Then

    def __post_init__(self) -> None:
        count = math.prod(self.state.task.shape)
        self.columns = {m: TreeSum(count) for m in self.state.compressed}

    def collect(self, block: Block) -> tuple[int, dict[int, Any]]:
        import torch

        state, found = self.state, dict[int, Any]()
        (part,) = state.split(block)
        for m in state.compressed:
            v = state.moments(part, m).double()
            rank = state.rule.rank[m]
            if rank and not is_vocabulary(state.task.name):
                u, s, vh = torch.linalg.svd(v.view(state.task.shape), full_matrices=False)
                root = s[..., :rank].sqrt()
                columns = root.unsqueeze(-1) * vh[..., :rank, :]
                found[m] = (u[..., :rank] * root.unsqueeze(-2), columns)
                continue
            rows = v.view(-1, state.task.shape[-1])
            self.columns[m].add(block, rows.sum(0))
            found[m] = rows.sum(1)
        return block.start, found

    def next_pass(self, partials: Sequence[tuple[int, dict[int, Any]]]) -> Any:
        import torch

        for m in self.state.compressed:
            if isinstance(partials[0][1][m], tuple):
                self.state.factors[m] = partials[0][1][m]
                continue
            rows = torch.cat([found[m] for _, found in partials])
            columns, total = self.columns[m].total(), float(rows.sum())
            assert columns is not None
            share = columns / total if total > 0 else columns
            self.state.factors[m] = (rows.view(-1, 1), share.view(1, -1))
        return self.then()


@dataclass
class _Average(StatisticsPass):
    """The pass that finds the mean of v'^p of every model."""

    state: _Passes
    then: Then

    def collect(self, block: Block) -> list[float]:
        state = self.state
        sums = [0.0] * state.task.models
        for part in state.split(block):
            for m in range(state.task.models):
                powers = state.moments(part, m).pow_(state.rule.power)
                sums[m] += float(powers.double().sum())
        return sums

    def next_pass(self, partials: Sequence[list[float]]) -> Any:
        count = max(1, math.prod(self.state.task.shape))
        self.state.means = [math.fsum(part) / count for part in zip(*partials, strict=True)]
        return self.then()


@dataclass
class _Measure(StatisticsPass):
    """The pass that finds by how much masking has shortened each task vector."""

    state: _Passes
    then: Then

    def collect(self, block: Block) -> list[Tensor]:
        import torch

        state, rule, name = self.state, self.state.rule, self.state.task.name
        (part,) = state.split(block)
        ratios = []
        for m, masked in enumerate(state.masked(block, part)):
            shape = state.task.shape
            whole = norms_of(state.delta(part, m).view(shape), name, rule.approximate_norm)
            left = norms_of(masked.view(shape), name, rule.approximate_norm)
            enough = (left > 0) & (left >= rule.rescale_relative_threshold * whole)
            ratios.append(torch.where(enough, whole / left, torch.zeros_like(left)).cpu())
        return ratios

    def next_pass(self, partials: Sequence[list[Tensor]]) -> Any:
        self.state.ratios = list(partials[0]) if partials else []
        return self.then()


@dataclass
class _Merge(MergePass):
    """The merge pass."""

    state: _Passes

    def merge(self, block: Block, out: Tensor) -> None:
        state = self.state
        # Finding them takes the memory of the vectors.
        edges = [block.start + t.leading_ties(block) for t in state.trimmed]
        if state.whole:
            (part,) = state.split(block)
            out.copy_(self._merged(block, part, edges).view(out.shape))
            return
        for part, target in parts_into(block, out):
            target.copy_(self._merged(block, part, edges))

    def _merged(self, block: Block, part: Block, edges: Sequence[int]) -> Tensor:
        import torch

        state, rule, models = self.state, self.state.rule, self.state.task.models
        divisor = state.take(part, "divisor").zero_()
        total = state.take(part, "total").zero_()
        reference = state.reference(part)
        vectors = self._vectors(block, part, edges, reference)
        for m in range(models):
            weight = self._weight(block, part, m)
            divisor.add_(weight)
            if rule.merges == "precond":
                total.add_(weight.mul_(vectors[m]))
        least = 1.1 * models * state.scales[1]
        # Masks cost more than all else, so they are made where the minimum asks for them.
        nothing = None if float(divisor.amin()) > least else divisor <= least
        if rule.merges == "precond":
            total.div_(divisor if nothing is None else divisor.masked_fill_(nothing, 1.0))
        elif rule.merges == "linear":
            for vector in vectors:
                total.add_(vector, alpha=1 / models)
        else:
            total = self._elected(vectors, total)
        if nothing is not None:
            total = torch.where(nothing, self._fallback(part), total)
        return total.add_(reference)

    def _fallback(self, part: Block) -> Tensor:
        """Return what is added to the reference where no model is kept."""
        state, models = self.state, self.state.task.models
        fallback = state.take(part, "fallback").zero_()
        if not (state.rule.fallback_to_base and state.task.has_base):
            for m in range(models):
                fallback.add_(state.delta(part, m), alpha=1 / models)
        return fallback

    def _weight(self, block: Block, part: Block, model: int) -> Tensor:
        """Return W_m, in units common to all models."""
        state, rule = self.state, self.state.rule
        gains, epsilon = state.scales
        # Before the moments, whose memory the mask takes as well.
        mask = state.mask(part, model, state.lead(block, part, model))
        weight = state.moments(part, model)
        if rule.power == 0.5:
            weight.sqrt_()
        elif rule.power != 1.0:
            weight.pow_(rule.power)
        weight.mul_(gains[model]).add_(epsilon)
        return weight if mask is None else weight.mul_(mask)

    def _vectors(self, block: Block, part: Block, edges: Sequence[int], x0: Tensor) -> list[Tensor]:
        """Return the task vectors that are added up: of `ties`, the largest elements only."""
        import torch

        state, rule = self.state, self.state.rule
        if not state.task.has_base:
            return [state.delta(part, m, f"vector {m}", x0) for m in range(state.task.models)]
        vectors = state.masked(block, part, x0)
        for vector, threshold, edge in zip(vectors, state.trimmed, edges, strict=False):
            lead = min(max(edge - part.start, 0), vector.numel())
            keep = torch.gt(vector.abs(), threshold.value)
            keep[:lead] = torch.ge(vector[:lead].abs(), threshold.value)
            vector.mul_(keep)
        if rule.trims and not int(rule.ties_density * math.prod(state.task.shape)):
            for vector in vectors:
                vector.zero_()
        return vectors

    def _elected(self, vectors: Sequence[Tensor], total: Tensor) -> Tensor:
        """Return the mean over all models of what has the sign of the sum; + where it is 0."""
        for vector in vectors:
            total.add_(vector)
        positive = total >= 0
        total.zero_()
        for vector in vectors:
            agrees = (vector > 0) == positive
            total.add_(vector.masked_fill_(~agrees & vector.isfinite(), 0.0))
        return total.div_(len(vectors))
