"""`merge_method`: a function of a program or a package as a merge method."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, overload

from .. import method as methods
from ..algorithms.elementwise import ELEMENTWISE
from ..algorithms.weighted_sum import LinearCombination
from ..method import Algorithm, BaseRole, Method

Base = Literal["ignored", "optional", "required"]
Function = Callable[..., Any]


@overload
def merge_method(function: Function) -> Method: ...
@overload
def merge_method(
    *,
    base: Base = "ignored",
    models: tuple[int, int | None] = (1, None),
    reference: str = "",
    algorithm: Algorithm | None = None,
) -> Callable[[Function], Method]: ...
def merge_method(
    function: Function | None = None,
    *,
    base: Base = "ignored",
    models: tuple[int, int | None] = (1, None),
    reference: str = "",
    algorithm: Algorithm | None = None,
) -> Method | Callable[[Function], Method]:
    """Make a merge method of a function, which gives the method its name.

    Keyword-only parameters of the function are those of recipes: `list[float]` is one value per
    model, a scalar (float, int, bool, str) is shared. A function without other parameters returns
    one coefficient per model: the result is their weighted sum. A function `(*tensors, …)` gets
    blocks of the models in recipe order, then of the base, then one that it may overwrite, all of
    one shape and in float32 or float64; it returns the merged block, and each element of it depends
    on the same element of the inputs only.

    `base` is the role of `base_model`, `models` the least and the most number of models beside it,
    `reference` a link. `algorithm` is one of `merge_worker.algorithms`, for other kinds of methods.
    Raises TypeError if a parameter has a type that is none of these.
    """

    def define(function: Function) -> Method:
        chosen = algorithm or (ELEMENTWISE if _takes_tensors(function) else LinearCombination())
        role = BaseRole(base)
        return methods.merge_method(chosen, reference=reference, base=role, models=models)(function)

    return define if function is None else define(function)


def _takes_tensors(function: Function) -> bool:
    """Return whether a function has parameters for tensors. TypeError for other types of them."""
    parameters = inspect.signature(function).parameters.values()
    tensors = [p for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    for parameter in tensors:
        hint = str(getattr(parameter.annotation, "__name__", parameter.annotation))
        if hint not in ("_empty", "Tensor", "torch.Tensor"):
            raise TypeError(
                f"{function.__name__}: '{parameter.name}' is for a tensor; write (*tensors, "
                f"weight: list[float]), or (*, weight: list[float]) without tensors"
            )
    return bool(tensors)
