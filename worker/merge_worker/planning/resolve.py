"""Gives every output tensor its values: which scope of the recipe speaks, for which layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from .. import methods
from ..dtypes import DType, Kind, from_torch_name
from ..errors import UsageError
from ..messages import first_names
from ..method import (
    LINES,
    SCALED_SCRATCH,
    SCHEDULE,
    BaseRole,
    ComputeBound,
    Granularity,
    Method,
    Parameter,
    Task,
)
from ..recipe.parameters import Found, Scalar, convert, look_up
from ..recipe.schedules import schedule_weights
from ..recipe.schema import Recipe, plays_base
from ..structure.layers import depths, fraction, layer_of
from ..tensors.source import TensorSource
from .groups import SliceInputs
from .matching import Match, Matches
from .options import PlanOptions
from .shards import Output
from .step import CPU_BLOCK, MULTIPASS_FACTOR, Step, block_grid

MOST_FAULTS = 10


@dataclass(frozen=True, slots=True)
class UnplacedStep:
    """A step before its place in the output is known."""

    output: Output
    sources: tuple[TensorSource, ...]
    task: Task | None
    method: Method

    def step(self, shard: int, offset: int, block: int) -> Step:
        out, task, family = self.output, self.task, self.method.algorithm
        cut = family.granularity(self.method, task.values) if task else Granularity.ELEMENT
        reads = family.reads(self.method, task.values) if task else 1
        scratch = family.scratch_bytes(self.method, len(self.sources)) if task else 0
        if reads > 1 and block == CPU_BLOCK:
            block *= MULTIPASS_FACTOR
        flops = 0
        if task and _is_heavy(type(family)):
            flops, scratch = cast(ComputeBound, family).cost(self.method, task)
        if task and task.scale != 1.0:
            scratch += SCALED_SCRATCH
        return Step(
            out.name, out.dtype, out.shape, self.sources, task, self.method if task else None,
            block_grid(out.shape, cut, block), reads, scratch, shard, offset, flops,
        )  # fmt: skip


@cache
def _is_heavy(family: type) -> bool:
    """Remembered, since asking a protocol costs more than all else about a step."""
    return issubclass(family, ComputeBound)


class _NoValueError(ValueError):
    """A parameter that must be given is not."""


def _told(faults: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """The first faults, each group of the same tensors with their names once."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for text, names in list(faults.items())[:MOST_FAULTS]:
        groups.setdefault(tuple(names), []).append(text)
    for names, texts in groups.items():
        yield "\n".join([*texts, f"  for {first_names(names)}"])
    if len(faults) > MOST_FAULTS:
        yield f"  and {len(faults) - MOST_FAULTS} more like these"


class Resolver:
    """Gives every matched tensor the values that the recipe's scopes hold for it."""

    def __init__(self, recipe: Recipe, method: Method, options: PlanOptions) -> None:
        self.recipe = recipe
        self.method = method
        self.options = options
        self.restacked: Mapping[str, int] = {}  # how deep the stacks of sliced layers become

    def drafts(self, matches: Matches) -> Iterator[UnplacedStep]:
        """All output tensors in order. UsageError names a value that is missing or wrong."""
        faults: dict[str, list[str]] = {}
        self.restacked = depths(m.name for m in matches.tensors if m.group.stacks is None)
        for match in matches.tensors:
            try:
                yield self._draft(match)
            except (ValueError, ZeroDivisionError) as error:
                for text in dict.fromkeys(error.args):
                    own = text.startswith(f"{self.recipe.where}:")
                    told = text if own else f"{self.recipe.where}: {text}"
                    faults.setdefault(told, []).append(match.name)
        if faults:
            raise UsageError("\n".join(_told(faults)))

    def _draft(self, match: Match) -> UnplacedStep:
        part = match.group.slice
        lone = part.sliced and len(part.sources) == 1
        if not match.merged or match.group.copied or (lone and not self._takes_one(part)):
            return self._copy(match)
        number = part.base if plays_base(self.method) else None
        base = [pair for pair in match.sources if pair[0] == number]
        models = [pair for pair in match.sources if pair[0] != number]
        try:
            values = self._values(match, models)
        except _NoValueError:
            if lone:
                return self._copy(match)
            raise
        dtype = self._out_dtype(match.first)
        infos = tuple(info for _, info in (*models, *base))
        task = self._task(match, dtype, len(models), bool(base), values)
        task = replace(task, scale=self._scale(match))
        self.method.algorithm.check(self.method, task)
        return UnplacedStep(Output(match.name, dtype, match.first.shape), infos, task, self.method)

    def _takes_one(self, part: SliceInputs) -> bool:
        """Whether the method makes something of a single source, which then is no base."""
        alone = part.base is not None and plays_base(self.method)
        return (
            self.method.base is not BaseRole.REQUIRED and self.method.min_models <= 1 and not alone
        )

    def _copy(self, match: Match) -> UnplacedStep:
        """The first source's tensor as it is, but for the dtype."""
        first, dtype = match.first, match.first.dtype
        if dtype.kind is Kind.FLOAT and self._out_dtype(first) != dtype:
            dtype, converter = self._out_dtype(first), methods.get("linear")
            values = {"weight": (1.0,), "normalize": False}
            task = self._task(match, dtype, 1, False, values)
            return UnplacedStep(Output(match.name, dtype, first.shape), (first,), task, converter)
        # The others are compared with it: what differs is reported.
        rest = tuple(info for _, info in match.sources if info is not first)
        return UnplacedStep(
            Output(match.name, dtype, first.shape), (first, *rest), None, self.method
        )

    def _task(
        self, match: Match, dtype: DType, models: int, has_base: bool, values: Mapping[str, Any]
    ) -> Task:
        work = "float64" if dtype.bits > 16 else "float32"
        seed = self.options.seed
        return Task(match.name, match.first.shape, dtype, models, has_base, values, seed, work)

    def _values(self, match: Match, models: Sequence[tuple[int, TensorSource]]) -> dict[str, Any]:
        """Every parameter of the method; a schedule speaks for the weights."""
        schedule = self._modifier(SCHEDULE, match)
        scheduled: tuple[float, ...] | None = None
        if schedule is not None:
            try:
                scheduled = schedule_weights(str(schedule), len(models))
            except UsageError as error:
                raise ValueError(str(error)) from None
        values: dict[str, Any] = {}
        faults: list[ValueError] = []

        def value(parameter: Parameter, pair: tuple[int, TensorSource] | None = None) -> Scalar:
            try:
                return self._value(parameter, match, pair)
            except ValueError as error:
                faults.append(error)
                return 0

        for parameter in self.method.parameters:
            if not parameter.per_model:
                values[parameter.name] = value(parameter)
            elif parameter.name == "weight" and scheduled:
                for pair in models:
                    if found := self._find(parameter, match, pair):
                        raise ValueError(f"{found.place}: a weight beside a schedule; keep one")
                values[parameter.name] = scheduled
            else:
                values[parameter.name] = tuple(value(parameter, pair) for pair in models)
        if faults:
            missing = all(isinstance(fault, _NoValueError) for fault in faults)
            raise (_NoValueError if missing else ValueError)(*map(str, faults))
        return values

    def _scale(self, match: Match) -> float:
        """LiNeS: alpha at the first layer of a stack and outside of layers, to alpha + beta."""
        given = [self._modifier(parameter, match) for parameter in LINES]
        if given == [None, None]:
            return 1.0
        if None in given:
            raise ValueError("lines_alpha and lines_beta go together; give both")
        alpha, beta = (float(value or 0) for value in given)
        if match.group.stacks is not None:
            return alpha + beta * match.group.position(match.name)
        layer = layer_of(match.name)
        return (
            alpha + beta * fraction(layer.number, self.restacked[layer.stack]) if layer else alpha
        )

    def _modifier(self, parameter: Parameter, match: Match) -> Scalar | None:
        found = self._find(parameter, match, None) if parameter in self.method.modifiers else None
        return self._converted(parameter, found) if found else None

    def _find(
        self, parameter: Parameter, match: Match, pair: tuple[int, TensorSource] | None
    ) -> Found | None:
        """What the recipe says. Values of a model see the name that the tensor has there."""
        part = match.group.slice
        scopes = (part.sources[pair[0]].parameters, *part.shared) if pair else part.shared
        name = pair[1].name if pair else match.name
        return look_up(scopes, parameter.name, name, match.group.position(match.name))

    def _value(
        self, parameter: Parameter, match: Match, pair: tuple[int, TensorSource] | None
    ) -> Scalar:
        """The value for a tensor; the default where the recipe is silent."""
        found = self._find(parameter, match, pair)
        if found is None and parameter.required:
            source = match.group.slice.sources[pair[0]] if pair else None
            of = f" of {source.model}" if source else ""
            place = source.place if source else self.recipe.where
            raise _NoValueError(
                f"{place}: {self.method.name} needs a value of '{parameter.name}'{of}"
                + (", which joins the models as the base" if source and source.implied else "")
            )
        default = Found(parameter.default, parameter.name)  # type: ignore[arg-type]
        return self._converted(parameter, found or default)

    def _converted(self, parameter: Parameter, found: Found) -> Scalar:
        try:
            value = convert(found.value, parameter.type)
        except ValueError as error:
            raise ValueError(f"{found.place}: {error}") from None
        if parameter.name == "density" and not 0 <= float(value) <= 1:
            raise ValueError(
                f"{found.place}: {value} is no share; give 0 to 1 of the values to keep"
            )
        return value

    def _out_dtype(self, first: TensorSource) -> DType:
        asked = self.options.dtype or self.recipe.out_dtype or self.recipe.dtype or "same"
        if asked == "same":
            return first.declared_dtype or first.dtype
        dtype = from_torch_name(asked)
        return dtype if dtype.kind is Kind.FLOAT else first.dtype
