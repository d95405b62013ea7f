"""The algorithm of methods that compute with task vectors δ_m = x_m − base, element by element.

A method's function returns a Rule. Rules that several methods share are in `sign_consensus` and
`ram`; others are in the file of their method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from ..method import (
    Algorithm,
    BaseRole,
    Block,
    Granularity,
    MergePass,
    Method,
    StatisticsPass,
    Task,
    Tensor,
    merge_method,
)
from .modifiers import BALANCED_SCRATCH, balance_bytes, balanced
from .rank_search import as_integers, dtype_name


class Rule(ABC):
    """The passes over a tensor that follow from the parameters of a method."""

    granularity: Granularity = Granularity.ELEMENT

    @property
    def reads(self) -> int:
        """How many times the sources are usually read, the merge pass included."""
        return 1

    @abstractmethod
    def begin(self, task: Task) -> StatisticsPass | MergePass:
        """Return the first pass over a tensor; the task has models and elements."""

    def held_bytes(self, task: Task, block: int) -> int:
        """See `Algorithm.held_bytes`."""
        return 0


class TaskVectorAlgorithm(Algorithm):
    """The algorithm of a method function `method(*, parameters) -> Rule`."""

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return _rule(method, values).granularity

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return _rule(method, values).reads

    def scratch_bytes(self, method: Method, sources: int) -> int:
        # Task vectors, the base, and at most ten other numbers per element, at most float64.
        return (sources + 10) * 8

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        return _rule(method, task.values).held_bytes(task, block) if task.models else 0

    def check(self, method: Method, task: Task) -> None:
        method.call(task.values)

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if not task.models or not math.prod(task.shape):
            return CopyBase()
        return _rule(method, task.values).begin(task)


class BalancedAlgorithm(TaskVectorAlgorithm):
    """The algorithm of methods that scale all task vectors to their mean length before the rule."""

    balances = True

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return 1 + super().reads(method, values)

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return super().scratch_bytes(method, sources) + BALANCED_SCRATCH * sources

    def held_bytes(self, method: Method, task: Task, block: int) -> int:
        return super().held_bytes(method, task, block) + balance_bytes(task, block)

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if task.models < 2 or not math.prod(task.shape):
            return super().begin(method, task)
        return balanced(task, partial(super().begin, method, task))


def task_vector_method(
    reference: str, *, experimental: bool = False, balance: bool = False
) -> Callable[[Callable[..., Rule]], Method]:
    """Make a Method of a function that returns a Rule. Without models the result is the base."""
    return merge_method(
        BalancedAlgorithm() if balance else TaskVectorAlgorithm(),
        reference=reference,
        base=BaseRole.REQUIRED,
        models=(0, None),
        experimental=experimental,
    )


def _rule(method: Method, values: Mapping[str, Any]) -> Rule:
    rule: Rule = method.call(values)
    return rule


class CopyBase(MergePass):
    """The merge pass that writes the base, rounded if the result is narrower."""

    def merge(self, block: Block, out: Tensor) -> None:
        out.copy_(block.tensors[-1])


def flat_base(block: Block, work: str) -> Tensor:
    """Return the base of a block as `work`, flat, in scratch memory."""
    values = block.tensors[-1]
    return _copy_flat(values, block.scratch.take("base", values.numel(), work))


def _copy_flat(values: Tensor, into: Tensor) -> Tensor:
    (into if values.ndim == 1 else into.view(values.shape)).copy_(values)
    return into


RUN = 4096  # elements that are summed in float32 before float64 takes over; see run_sums


class TaskVectors(NamedTuple):
    """Task vectors of some models in scratch memory: floats, and the same memory as integers.

    `runs` is [model, run, element] if the elements divide into runs of RUN, else None.
    """

    all: Tensor  # [model, element]
    by_model: tuple[Tensor, ...]
    all_bits: Tensor
    bits: tuple[Tensor, ...]
    runs: Tensor | None


def task_vectors(block: Block, base: Tensor, models: Sequence[int]) -> TaskVectors:
    """Return x_m − base of `models` in scratch memory, in the dtype of `base`."""
    rows, count = len(models), base.numel()
    flat = block.scratch.take("task vectors", rows * count, dtype_name(base.dtype))

    def make_views() -> TaskVectors:
        floats = flat.view(-1, count)
        integers = as_integers(floats)
        runs = floats.view(rows, -1, RUN) if count % RUN == 0 else None
        return TaskVectors(floats, floats.unbind(), integers, integers.unbind(), runs)

    # Making these views takes as long as the arithmetic on them.
    key = ("task vectors", flat.dtype, rows, count)
    views: TaskVectors = block.scratch.cached(key, make_views)
    for vector, model in zip(views.by_model, models, strict=True):
        _copy_flat(block.tensors[model], vector)
    views.all.sub_(base)
    return views


def run_sums(vectors: TaskVectors) -> list[Tensor]:
    """Sum every model's vector over runs of RUN: float32 is exact enough there.

    Returns tensors [model, run], to be added up in float64.
    """
    if vectors.runs is not None:
        return [vectors.runs.sum(2)]
    rows, count = vectors.all.shape
    whole = count // RUN * RUN
    sums = [vectors.all[:, :whole].reshape(rows, -1, RUN).sum(2)] if whole else []
    return [*sums, vectors.all[:, whole:].sum(1, keepdim=True)]


def sums_by_model(sums: list[Tensor]) -> list[float]:
    """Return the sum of each model over a block, from its run sums, rounded once."""
    import torch

    return [math.fsum(runs) for runs in torch.cat(sums, 1).tolist()]


SUMS = 64
"""Bytes of such a sum in a list: a Python number and two references, rounded up."""


def apply_consensus_mask(
    part: Block, merged: Tensor, vectors: Sequence[Tensor], mask_lambda: float, threshold: int
) -> Tensor:
    """Zero `merged` where fewer than `threshold` models have |τ_m| > mask_lambda · |merged − τ_m|.

    One model's mask is its TALL mask (arXiv:2405.07813). `vectors` (the τ_m) are overwritten.
    """
    import torch

    count, work = merged.numel(), dtype_name(merged.dtype)
    votes = part.scratch.take("sign", count, work).zero_()
    term = part.scratch.take("mask", count, work)
    for vector in vectors:
        torch.sub(merged, vector, out=term).abs_().mul_(mask_lambda)
        votes.add_(torch.gt(vector.abs_(), term, out=term))
    return merged.mul_(torch.ge(votes, threshold, out=term))
