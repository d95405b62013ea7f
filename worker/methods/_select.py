"""Family of the methods that select elements of the deltas, agree on signs, and add.

A method's function gives a rule: what is selected, and how it is combined. The rules shared by
many are in `_vote` and `_sparsify`; others stand in the file of their method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._define import Block, Cut, Final, Method, Reduce, Task

if TYPE_CHECKING:
    from torch import Tensor


class Rule(ABC):
    """What the function of a method of this family returns."""

    cut: Cut = Cut.ELEMENT

    @property
    def reads(self) -> int:
        """How often the sources are read as a rule, the final pass included."""
        return 1

    @abstractmethod
    def begin(self, task: Task) -> Reduce | Final:
        """The first pass over a tensor that is not empty, with at least one model."""


class Select:
    """`method(*, parameters) -> Rule`."""

    def cut(self, method: Method, values: Mapping[str, Any]) -> Cut:
        return _rule(method, values).cut

    def reads(self, method: Method, values: Mapping[str, Any]) -> int:
        return _rule(method, values).reads

    def scratch_bytes(self, method: Method, sources: int) -> int:
        # The deltas and the base, and at most ten other numbers, at most float64.
        return (sources + 10) * 8

    def check(self, method: Method, task: Task) -> None:
        _rule(method, task.values)

    def begin(self, method: Method, task: Task) -> Reduce | Final:
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


def elements(task: Task) -> int:
    count = 1
    for extent in task.shape:
        count *= extent
    return count


class Unchanged(Final):
    """The base alone: its values, rounded if the result is narrower."""

    def merge(self, block: Block, out: Tensor) -> None:
        out.copy_(block.tensors[-1])


def base_of(block: Block, work: str) -> Tensor:
    """The base of a block, flat, in scratch."""
    return converted(block, -1, "base", work)


def delta_of(block: Block, model: int, base: Tensor, slot: str) -> Tensor:
    """x_m − b of a block, flat, in the scratch of `slot`."""
    return converted(block, model, slot, str(base.dtype).removeprefix("torch.")).sub_(base)


def converted(block: Block, source: int, slot: str, dtype: str) -> Tensor:
    """The values of one source, flat, in the scratch of `slot`."""
    values = block.tensors[source]
    taken = block.scratch.take(slot, values.numel(), dtype)
    (taken if values.ndim == 1 else taken.view(values.shape)).copy_(values)
    return taken


def run_sums(values: Tensor) -> list[Tensor]:
    """Sums of flat values over runs of 4096: exact enough in float32, to be added in float64."""
    whole = values.numel() // 4096 * 4096
    sums = [values[:whole].view(-1, 4096).sum(1)] if whole else []
    return [*sums, values[whole:].sum()[None]] if whole < values.numel() else sums


def numbers(sums: list[Tensor]) -> list[float]:
    """All sums of a block."""
    import torch

    found: list[float] = torch.cat(sums).tolist()
    return found
