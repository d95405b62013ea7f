"""`merge_state_dicts`: models that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..dtypes import from_torch_name
from ..errors import UsageError
from ..messages import counted
from ..method import Method
from ..planning.options import PlanOptions
from ..planning.plan import plan_document
from ..planning.stages import PlannedCheckpoint
from ..recipe import parse
from ..recipe.schema import find_method
from ..registry import OWN
from ..tensors.source import DerivedTensor, Reader
from .plans import Plan, recipe_text
from .streams import DType, stream

if TYPE_CHECKING:
    from torch import Tensor


def merge_state_dicts(
    models: Mapping[str, Mapping[str, Tensor]] | Sequence[Mapping[str, Tensor]],
    method: str | Method = "linear",
    base: str | Mapping[str, Tensor] | None = None,
    *,
    dtype: DType | None = None,
    seed: int = 0,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge models that are in memory, on the CPU; return the state dict of the result.

    `models` are state dicts by name, or in order. `base` is the name of one of them, or a state
    dict of its own. A parameter of the method that each model has is a list in the order of the
    models without the base, or a mapping of names; a number is for all. The result has the dtypes
    of the first model unless `dtype` is given. Raises UsageError or InputError as `plan` does.
    """
    named = dict(models) if isinstance(models, Mapping) else _numbered(models)
    if isinstance(base, Mapping):
        named, base = {**named, "base": base}, "base"
    if base is not None and base not in named:
        raise UsageError(f"base '{base}' is not one of the models ({', '.join(named)})")
    methods = OWN.with_methods([method]) if isinstance(method, Method) else OWN
    name = method.name if isinstance(method, Method) else method
    known = {p.name: p.per_model for p in find_method(name, "method", methods).parameters}
    merged = [model for model in named if model != base]
    entries: dict[str, dict[str, Any]] = {model: {} for model in merged}
    shared: dict[str, Any] = {"weight": 1.0} if known.get("weight") else {}
    for word, value in parameters.items():
        parameter = "lambda" if word == "lambda_" else word
        if parameter not in known:
            raise UsageError(f"{name} takes no '{parameter}'; it takes {', '.join(known)}")
        if known[parameter] and isinstance(value, Mapping | list | tuple):
            for model, own in _by_model(parameter, value, merged).items():
                entries[model][parameter] = own
        else:
            shared[parameter] = value
    recipe: dict[str, Any] = {
        "merge_method": name,
        "models": [{"model": model, "parameters": own} for model, own in entries.items()],
        "parameters": shared,
        **({"base_model": base} if base else {}),
    }
    text, _ = recipe_text(recipe, methods)
    results = {model: _checkpoint(model, state) for model, state in named.items()}
    options = PlanOptions(dtype=dtype, seed=seed)
    inner = plan_document(parse(text, "merge_state_dicts", methods=methods), options, results)
    return dict(stream(Plan(inner, "cpu")))


def _numbered(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Mapping[str, Tensor]]:
    return {f"model {number}": model for number, model in enumerate(models, 1)}


def _by_model(parameter: str, value: Any, models: Sequence[str]) -> dict[str, Any]:
    if isinstance(value, Mapping):
        if set(value) != set(models):
            raise UsageError(f"{parameter}: give a value for each of {', '.join(models)}")
        return dict(value)
    if len(value) != len(models):
        raise UsageError(
            f"{parameter} has {counted(len(value), 'values')} for {counted(len(models), 'models')}"
        )
    return dict(zip(models, value, strict=True))


@dataclass(frozen=True)
class InMemory(DerivedTensor):
    """A tensor of a program."""

    kind = "memory"

    values: Tensor = field(kw_only=True, compare=False, repr=False)

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        out.copy_(self.values[start:stop])

    def fingerprint(self) -> object:
        return [self.name]


def _checkpoint(name: str, state: Mapping[str, Tensor]) -> PlannedCheckpoint:
    """Return a state dict as a model."""
    tensors = {}
    for key, tensor in state.items():
        dtype, shape = from_torch_name(str(tensor.dtype)), tuple(tensor.shape)
        flat = tensor.detach().contiguous().view(-1)
        tensors[key] = InMemory(key, dtype, shape, (), values=flat)
    return PlannedCheckpoint(Path(name), (), dict(tensors), key=name)
