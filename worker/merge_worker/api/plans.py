"""`plan` and `average`: a merge as it is known from headers, before any weights are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from ..commands.check import describe
from ..commands.merge import plan_file
from ..errors import input_errors
from ..method import Method
from ..planning.options import PlanOptions, stage_folder
from ..planning.plan import final_config, make_plan
from ..recipe import parse
from ..recipe.shorthand import recipe_from_values
from ..recipe.yaml_document import COMMAND
from ..registry import OWN, Registry, read_registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..planning.plan import Plan as InnerPlan

StrPath = str | os.PathLike[str]
Recipe = StrPath | Mapping[str, Any]
Methods = Iterable[StrPath | Method]


class PlanChoices(TypedDict, total=False):
    """Options of a plan: those of the command line, with the same meaning and defaults."""

    relative_to: StrPath
    methods: Methods
    device: str
    dtype: Literal["same", "bfloat16", "float16", "float32", "float64"]
    seed: int
    shard_size: int | str
    memory: int | str
    threads: int
    missing: Literal["error", "copy"]
    surplus: Literal["error", "drop"]
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    dequantize: bool
    strict: bool


class TensorPlan(NamedTuple):
    """A tensor of the result; `merged` is false where the first model's bytes are copied."""

    dtype: str
    shape: tuple[int, ...]
    merged: bool


@dataclass(frozen=True)
class Plan:
    """A merge as it is known from headers. `str(plan)` is the report of `merge-worker check`.

    `reads` and `writes` are bytes, `memory` is the bound on the buffers in bytes, `tensors` has
    every tensor of the result by name, `config` is the result's config.json, `key` is a digest of
    all that the result depends on, and `warnings` are those of the command line.
    """

    inner: InnerPlan = field(repr=False)
    device: str = "auto"

    @property
    def key(self) -> str:
        return self.inner.key

    @property
    def method(self) -> str:
        return self.inner.method.name

    @property
    def models(self) -> tuple[str, ...]:
        return self.inner.labels

    @property
    def reads(self) -> int:
        return self.inner.input_bytes

    @property
    def writes(self) -> int:
        return self.inner.output_bytes

    @property
    def memory(self) -> int:
        return max(plan.memory.bound for plan in (self.inner, *self.inner.stages))

    @property
    def tensors(self) -> Mapping[str, TensorPlan]:
        steps = self.inner.steps_in_files()
        return MappingProxyType(
            {s.name: TensorPlan(s.dtype.torch_name, s.shape, s.task is not None) for s in steps}
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.inner.warnings

    @property
    def config(self) -> dict[str, Any]:
        return final_config(self.inner)

    def __str__(self) -> str:
        return describe(self.inner)


def plan(recipe: Recipe, **options: Unpack[PlanChoices]) -> Plan:
    """Plan a merge from headers: a recipe as a path, as YAML text or as a dict.

    The manifest of a finished merge is a recipe too. Relative paths of models start at
    `relative_to` (default: the current folder). `methods` are files or functions with more merge
    methods; a dict may also have the function as `merge_method`. `device` is where the merge will
    run. Raises UsageError or InputError, whose `faults` has every mistake.
    """
    values: dict[str, Any] = dict(options)
    methods = _registry(values.pop("methods", ()))
    if isinstance(recipe, Mapping):
        recipe, methods = recipe_text(recipe, methods)
    chosen = _options(values)
    with input_errors("recipe"):
        if isinstance(recipe, str) and ("\n" in recipe or recipe.lstrip().startswith("{")):
            inner = make_plan(parse(recipe, "recipe", chosen.relative_to, methods), chosen)
        else:
            inner = plan_file(Path(recipe), chosen, methods)
    return Plan(inner, values.get("device", "auto"))


def average(
    models: Sequence[StrPath],
    *,
    weights: Sequence[float] | None = None,
    schedule: str | None = None,
    **options: Unpack[PlanChoices],
) -> Plan:
    """Plan the weighted average of models, as `merge-worker average` does.

    `weights` are one for each model, divided by their sum; default: equal weights. `schedule` gives
    the weights of checkpoints, from the oldest to the newest, such as "ema:0.9". Raises as `plan`.
    """
    values: dict[str, Any] = dict(options)
    methods, chosen = _registry(values.pop("methods", ())), _options(values)
    words = ",".join(repr(float(weight)) for weight in weights) if weights is not None else None
    given = {"weights": words, "schedule": schedule, "dtype": chosen.dtype}
    text = recipe_from_values([os.fspath(model) for model in models], given, methods)
    inner = make_plan(parse(text, COMMAND, chosen.relative_to, methods), chosen)
    return Plan(inner, values.get("device", "auto"))


def changed(plan: Plan, **changes: Any) -> Plan:
    """Return the plan of the same recipe with other options of the planner."""
    options = replace(plan.inner.options, **changes)
    if options == plan.inner.options:
        return plan
    return replace(plan, inner=make_plan(plan.inner.recipe, options))


def beside(plan: Plan, out: Path) -> Plan:
    """Return the plan with its intermediate results and gates, if any, beside `out`."""
    inner = plan.inner
    stored = inner.stages or any(item.mixture for item in (inner, *inner.lazy))
    return changed(plan, stages_folder=stage_folder(str(out))) if stored else plan


def _registry(given: Methods) -> Registry:
    """Return our methods, those of files, and those of the program."""
    listed = [given] if isinstance(given, str | os.PathLike | Method) else list(given)
    own = [method for method in listed if isinstance(method, Method)]
    files = [os.fspath(file) for file in listed if not isinstance(file, Method)]
    return (read_registry(files) if files else OWN).with_methods(own)


def _options(values: Mapping[str, Any]) -> PlanOptions:
    sizes = {name: str(values[name]) for name in ("shard_size", "memory") if name in values}
    start = {"relative_to": Path(values.get("relative_to", "."))}
    return PlanOptions.from_values({**values, **sizes, **start}, None)


def recipe_text(recipe: Mapping[str, Any], methods: Registry) -> tuple[str, Registry]:
    """Return a recipe as YAML, and the methods with one that it holds as a function."""
    import yaml

    method = recipe.get("merge_method")
    if isinstance(method, Method):
        recipe, methods = {**recipe, "merge_method": method.name}, methods.with_methods([method])
    return yaml.safe_dump(_plain(recipe), sort_keys=False, allow_unicode=True), methods


def _plain(value: Any) -> Any:
    """Return a value with lists, dicts, and paths as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value
