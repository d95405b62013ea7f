"""The algorithm of methods that compute each output element from the same element of the inputs."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..method import Algorithm, Block, MergePass, Method, StatisticsPass, Task, Tensor
from .weighted_sum import WeightedSum


class Elementwise(Algorithm):
    """The algorithm of a method function `method(*models, base, spare, *, parameters) -> Tensor`.

    All tensors have the working dtype and one shape. The function may overwrite any of them and
    return one. A source that is alone in its slice is copied.
    """

    def scratch_bytes(self, method: Method, sources: int) -> int:
        return 8 * (sources + 1)

    def check(self, method: Method, task: Task) -> None:
        if task.models + task.has_base > 1:
            method.check_sources(task)

    def begin(self, method: Method, task: Task) -> StatisticsPass | MergePass:
        if task.models + task.has_base == 1:
            return WeightedSum([1.0], task.work)
        return _CallPerBlock(method, task)


ELEMENTWISE = Elementwise()


@dataclass
class _CallPerBlock(MergePass):
    """The merge pass that calls the method's function on every block."""

    method: Method
    task: Task

    def merge(self, block: Block, out: Tensor) -> None:
        sources = [converted_source(block, i, self.task.work) for i in range(len(block.tensors))]
        spare = block.scratch.take("spare", out.numel(), self.task.work).view(out.shape)
        merged = self.method.call(self.task.values, *sources, spare)
        if getattr(merged, "shape", None) != out.shape:
            raise UsageError(
                f"method '{self.method.name}' must return a tensor of the shape of its inputs, "
                f"{list(out.shape)}, got {getattr(merged, 'shape', merged)!r:.60}"
            )
        out.copy_(merged)


def converted_source(block: Block, source: int, dtype: str) -> Tensor:
    """Return a copy of one source of a block as `dtype`, in scratch memory and its own shape."""
    values = block.tensors[source]
    into = block.scratch.take(f"source{source}", values.numel(), dtype)
    return into.view(values.shape).copy_(values)
