"""Family of the methods that select elements of the deltas, agree on signs, and add.

A method's function gives a rule: what is selected, and how it is combined. The rules shared by
many are in `_vote` and `_sparsify`; others stand in the file of their method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..method import Block, Granularity, MergePass, Method, StatisticsPass, Task
from .rank_search import bits, dtype_name

if TYPE_CHECKING:
    from torch import Tensor


# MERGED Keep of a merged delta what serves enough models (TALL masks).


def keep_agreed(
    part: Block, merged: Tensor, deltas: Sequence[Tensor], mask_lambda: float, least: int
) -> Tensor:
    """`merged`, zero where fewer than `least` models have |τ_m| > mask_lambda · |merged − τ_m|.

    `deltas` are overwritten.
    """
    import torch

    count, work = merged.numel(), str(merged.dtype).removeprefix("torch.")
    votes = part.scratch.take("sign", count, work).zero_()
    term = part.scratch.take("mask", count, work)
    for delta in deltas:
        torch.sub(merged, delta, out=term).abs_().mul_(mask_lambda)
        votes.add_(torch.gt(delta.abs_(), term, out=term))
    return merged.mul_(torch.ge(votes, least, out=term))


class Rule(ABC):
    """What the function of a method of this family returns."""

    granularity: Granularity = Granularity.ELEMENT

    @property
    def reads(self) -> int:
        """How often the sources are read as a rule, the final pass included."""
        return 1

    @abstractmethod
    def begin(self, task: Task) -> StatisticsPass | MergePass:
        """The first pass over a tensor that is not empty, with at least one model."""


class Select:
    """`method(*, parameters) -> Rule`."""

    def granularity(self, method: Method, values: Mapping[str, Any]) -> Granularity:
        return _rule(method, values).granularity

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return _rule(method, values).reads

    def scratch_bytes(self, method: Method, sources: int) -> int:
        # The deltas and the base, and at most ten other numbers, at most float64.
        return (sources + 10) * 8

    def check(self, method: Method, task: Task) -> None:
        _rule(method, task.values)

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if not task.models:
            return Unchanged()
        return _rule(method, task.values).begin(task)


SELECT = Select()


def _rule(method: Method, values: Mapping[str, Any]) -> Rule:
    named = {"lambda_" if name == "lambda" else name: value for name, value in values.items()}
    rule: Rule = method.function(**named)
    return rule


DENSITY: Any = 1.0
"""The default of every model, which selects all; typed so for parameters of one value per model."""


class Unchanged(MergePass):
    """The base alone: its values, rounded if the result is narrower."""

    def merge(self, block: Block, out: Tensor) -> None:
        out.copy_(block.tensors[-1])


def base_of(block: Block, work: str) -> Tensor:
    """The base of a block, flat, in scratch."""
    return converted(block, -1, "base", work)


RUN = 4096


class Deltas(NamedTuple):
    """x_m − b of some models, in scratch: all [model, element], each, and both as whole numbers.

    `runs` has [model, run, element] where the elements are runs of 4096.
    """

    all: Tensor
    each: tuple[Tensor, ...]
    all_bits: Tensor
    bits: tuple[Tensor, ...]
    runs: Tensor | None


def deltas_of(block: Block, base: Tensor, models: Sequence[int]) -> Deltas:
    count = base.numel()
    flat = block.scratch.take("deltas", len(models) * count, dtype_name(base))
    # Views cost as much as operations: they are kept with the memory that they show.
    found: Deltas | None = getattr(flat, "deltas", None)
    if found is None or found.all.shape != (len(models), count):
        shown = flat.view(-1, count)
        runs = shown.view(len(shown), -1, RUN) if count % RUN == 0 else None
        found = Deltas(shown, shown.unbind(), bits(shown), bits(shown).unbind(), runs)
        flat.deltas = found  # type: ignore[attr-defined]
    for delta, model in zip(found.each, models, strict=True):
        _copied(block.tensors[model], delta)
    found.all.sub_(base)
    return found


def converted(block: Block, source: int, slot: str, dtype: str) -> Tensor:
    """The values of one source, flat, in the scratch of `slot`."""
    values = block.tensors[source]
    return _copied(values, block.scratch.take(slot, values.numel(), dtype))


def _copied(values: Tensor, into: Tensor) -> Tensor:
    (into if values.ndim == 1 else into.view(values.shape)).copy_(values)
    return into


def run_sums(deltas: Deltas) -> list[Tensor]:
    """Sums for every model over runs of RUN: exact enough in float32, to be added in float64."""
    if deltas.runs is not None:
        return [deltas.runs.sum(2)]
    rows, count = deltas.all.shape
    whole = count // RUN * RUN
    sums = [deltas.all[:, :whole].reshape(rows, -1, RUN).sum(2)] if whole else []
    return [*sums, deltas.all[:, whole:].sum(1, keepdim=True)]


def numbers(sums: list[Tensor]) -> list[list[float]]:
    """All sums of a block, by row."""
    import torch

    found: list[list[float]] = torch.cat(sums, 1).tolist()
    return found
