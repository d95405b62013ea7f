"""`stream`: merged tensors in memory, one after the other; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, overload

from ..errors import UsageError
from .plans import Plan, changed
from .torch_state import one_torch_thread

if TYPE_CHECKING:
    from torch import Tensor

DType = Literal["same", "bfloat16", "float16", "float32", "float64"]


@overload
def stream(
    plan: Plan, *, device: str = "cpu", dtype: DType | None = None, allow_nonfinite: bool = False
) -> Iterator[tuple[str, Tensor]]: ...
@overload
def stream(
    plan: Sequence[Plan],
    *,
    device: str = "cpu",
    dtype: DType | None = None,
    allow_nonfinite: bool = False,
) -> Iterator[tuple[str, tuple[Tensor | None, ...]]]: ...
def stream(
    plan: Plan | Sequence[Plan],
    *,
    device: str = "cpu",
    dtype: DType | None = None,
    allow_nonfinite: bool = False,
) -> Iterator[tuple[str, Tensor]] | Iterator[tuple[str, tuple[Tensor | None, ...]]]:
    """Yield name and tensor of every tensor of a merge, in the order of its files.

    Nothing is written. The bits are those that `merge` writes on the same kind of `device`, where
    the tensors are computed and yielded. Memory is bounded by `plan.memory` and one tensor, besides
    the tensors that the caller keeps. `dtype` replaces that of the plan, rounded once. Several
    plans share one pass over their inputs: each name comes with a tensor of each plan, None where a
    plan has none. Raises any class of `errors`; UsageError if an intermediate result must be
    stored.
    """
    plans = [plan] if isinstance(plan, Plan) else list(plan)
    changes = {} if dtype is None else {"dtype": dtype}
    plans = [changed(item, **changes) for item in plans]
    for item in plans:
        if item.inner.stages:
            names = ", ".join(str(stage.recipe.name) for stage in item.inner.stages)
            raise UsageError(
                f"{item.inner.recipe.where}: the intermediate result '{names}' must be stored, "
                f"since its method reads a tensor more than once; merge this recipe into a folder"
            )
        if any(inner.mixture for inner in (item.inner, *item.inner.lazy)):
            raise UsageError(
                f"{item.inner.recipe.where}: the gates of a mixture of experts are written to a "
                f"file before its tensors; merge this recipe into a folder"
            )
    tensors = _tensors(plans, device, allow_nonfinite)
    if isinstance(plan, Plan):
        return _single(tensors)
    return tensors


def _single(
    tensors: Iterator[tuple[str, tuple[Tensor | None, ...]]],
) -> Iterator[tuple[str, Tensor]]:
    for name, (tensor,) in tensors:
        if tensor is not None:
            yield name, tensor
        del tensor  # or it would stay until the next one is complete


def _tensors(
    plans: Sequence[Plan], device: str, allow_nonfinite: bool
) -> Iterator[tuple[str, tuple[Tensor | None, ...]]]:
    with one_torch_thread():
        from ..engine.tensor_stream import tensor_stream

        inner = [plan.inner for plan in plans]
        yield from tensor_stream(inner, device, allow_nonfinite)
