"""Values of parameters for every output tensor, by the scopes of the recipe and its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import methods
from ..algorithms.modifiers import balance_bytes, scratch_bytes
from ..dtypes import DType, Kind, from_torch_name
from ..errors import UsageError
from ..messages import first_names
from ..method import (
    AIM,
    BALANCE,
    LINES,
    SCHEDULE,
    BaseRole,
    Granularity,
    Method,
    Parameter,
    Task,
    working_dtype,
)
from ..recipe.parameters import Scalar, Value, convert, look_up
from ..recipe.schedules import schedule_weights
from ..recipe.schema import Recipe, plays_base
from ..recipe.yaml_document import COMMAND
from ..structure.layers import depths as stack_depths
from ..structure.layers import fraction, layer_of
from ..tensors.importance import Importance
from ..tensors.source import TensorSource, declared_dtype
from .dcp_layout import DcpLayout
from .groups import SliceInputs
from .importance import ImportanceInputs
from .matching import Match, Matches
from .options import PlanOptions
from .shards import Output, ShardLayout
from .step import CPU_BLOCK, MULTIPASS_FACTOR, Step, block_grid

MOST_FAULTS = 10

_Numbered = tuple[int, TensorSource]
"""A tensor of a source, and the source's number in its slice."""


@dataclass(frozen=True, slots=True)
class UnplacedStep:
    """A step whose position in the output is not known yet."""

    output: Output
    sources: tuple[TensorSource, ...]
    task: Task | None
    method: Method

    def place(self, shard: int, offset: int, block: int) -> Step:
        """Return the step with its result at `offset` of `shard`, cut into blocks of `block`."""
        output, task, algorithm = self.output, self.task, self.method.algorithm
        cut, reads, scratch, flops, held = Granularity.ELEMENT, 1, 0, 0, 0
        if task is not None:
            cut = algorithm.granularity(self.method, task.values)
            reads = algorithm.reads(self.method, task.values)
            scratch = algorithm.scratch_bytes(self.method, len(self.sources))
            cost = algorithm.cost(self.method, task)
            if cost is not None:
                flops, scratch = cost
            if task.balance:
                reads += 1
            scratch += scratch_bytes(task, len(self.sources))
        if reads > 1 and block == CPU_BLOCK:
            block *= MULTIPASS_FACTOR
        grid = block_grid(output.shape, cut, block)
        if task is not None and grid.count:
            held = algorithm.held_bytes(self.method, task, min(grid.block, grid.count))
            held += balance_bytes(task, min(grid.block, grid.count)) if task.balance else 0
        return Step(
            name=output.name,
            dtype=output.dtype,
            shape=output.shape,
            sources=self.sources,
            task=task,
            method=self.method if task else None,
            grid=grid,
            reads=reads,
            scratch=scratch,
            shard=shard,
            offset=offset,
            flops=flops,
            held=held,
        )


def resolve_parameters(
    recipe: Recipe,
    method: Method,
    options: PlanOptions,
    matches: Matches,
    importance: ImportanceInputs,
) -> list[UnplacedStep]:
    """Return the steps that make all output tensors, in order.

    Raises UsageError with every value that is missing or wrong.
    """
    steps: list[UnplacedStep] = []
    faults: dict[str, list[str]] = {}
    depths = stack_depths(m.name for m in matches.tensors if m.group.stack_depths is None)
    resolver = _Resolver(recipe, method, options, depths, importance)
    for match in matches.tensors:
        try:
            steps.append(resolver.resolve(match))
        except (ValueError, ZeroDivisionError) as error:
            for text in dict.fromkeys(error.args):
                place = "" if text.startswith(f"{recipe.where}:") else f"{recipe.where}: "
                faults.setdefault(place + text, []).append(match.name)
    if faults:
        raise UsageError("\n".join(_grouped(faults)))
    return steps


def place_steps(
    unplaced: Sequence[UnplacedStep], layout: ShardLayout, block: int
) -> tuple[Step, ...]:
    """Return the steps with their positions in the shards of `layout`."""
    pairs = zip(unplaced, layout.places, strict=True)
    steps = [step.place(shard, offset, block) for step, (shard, offset) in pairs]
    if not isinstance(layout, DcpLayout):
        return tuple(steps)
    return tuple(replace(step, blocks=own) for step, own in zip(steps, layout.blocks, strict=True))


def _grouped(faults: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield the first faults; those of the same tensors share one line with their names."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for text, names in list(faults.items())[:MOST_FAULTS]:
        groups.setdefault(tuple(names), []).append(text)
    for names, texts in groups.items():
        yield "\n".join([*texts, f"  for {first_names(names)}"])
    if len(faults) > MOST_FAULTS:
        yield f"  and {len(faults) - MOST_FAULTS} more like these"


class _MissingValueError(ValueError):
    """A required parameter without a value."""


@dataclass(frozen=True)
class _Resolver:
    """Finds the values that the scopes of a recipe give to each matched tensor."""

    recipe: Recipe
    method: Method
    options: PlanOptions
    depths: Mapping[str, int]  # of stacks of layers in the result, by prefix
    importance: ImportanceInputs

    def resolve(self, match: Match) -> UnplacedStep:
        """Return the step of one tensor. Raises ValueError, ZeroDivisionError for its values."""
        inputs = match.group.slice
        single = inputs.sliced and len(inputs.sources) == 1
        if not match.merged or match.group.copied or (single and not self._merges_one(inputs)):
            return self._copy(match)
        number = inputs.base if plays_base(self.method) else None
        base = [pair for pair in match.sources if pair[0] == number]
        models = [pair for pair in match.sources if pair[0] != number]
        try:
            values = self._values(match, models)
        except _MissingValueError:
            if single:
                return self._copy(match)
            raise
        dtype = self._out_dtype(match.first)
        sources = tuple(source for _, source in (*models, *base))
        task = self._task(match, dtype, len(models), bool(base), values)
        scale = self._scale(match)
        balance = self._balance(match, len(models), bool(base))
        work = working_dtype(dtype, values, scale)
        task = replace(task, scale=scale, balance=balance, work=work)
        task, sources = self._with_importance(match, task, sources, models, base)
        self.method.algorithm.check(self.method, task)
        output = Output(match.name, dtype, match.first.shape)
        return UnplacedStep(output, sources, task, self.method)

    def _merges_one(self, inputs: SliceInputs) -> bool:
        """Return whether the method applies to a single source, which then is not the base."""
        if self.method.base is BaseRole.REQUIRED or self.method.min_models > 1:
            return False
        return inputs.base is None or not plays_base(self.method)

    def _copy(self, match: Match) -> UnplacedStep:
        """Return a step that copies the first source's tensor, converted to the output dtype."""
        first, dtype = match.first, match.first.dtype
        kept = match.group.keeps_dtype
        if dtype.kind is Kind.FLOAT and self._out_dtype(first) != dtype and not kept:
            dtype, converter = self._out_dtype(first), methods.get("linear")
            values = {"weight": (1.0,), "normalize": False}
            task = self._task(match, dtype, 1, False, values)
            return UnplacedStep(Output(match.name, dtype, first.shape), (first,), task, converter)
        # The other sources are read too: a difference between them is reported.
        others = tuple(source for _, source in match.sources if source is not first)
        output = Output(match.name, dtype, first.shape)
        return UnplacedStep(output, (first, *others), None, self.method)

    def _task(
        self, match: Match, dtype: DType, models: int, has_base: bool, values: Mapping[str, Any]
    ) -> Task:
        work, seed = working_dtype(dtype, values), self.options.seed
        return Task(match.name, match.first.shape, dtype, models, has_base, values, seed, work)

    def _values(self, match: Match, models: Sequence[_Numbered]) -> dict[str, Any]:
        """Return every parameter of the method; a schedule stands in for the weights."""
        scheduled = self._scheduled_weights(match, len(models))
        values: dict[str, Any] = {}
        faults: list[ValueError] = []

        def value(parameter: Parameter, pair: _Numbered | None = None) -> Scalar:
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
                    if given := self._look_up(parameter, match, pair):
                        raise ValueError(f"{given.place}: a weight beside a schedule; keep one")
                values[parameter.name] = scheduled
            else:
                values[parameter.name] = tuple(value(parameter, pair) for pair in models)
        if faults:
            missing = all(isinstance(fault, _MissingValueError) for fault in faults)
            raise (_MissingValueError if missing else ValueError)(*map(str, faults))
        return values

    def _scheduled_weights(self, match: Match, models: int) -> tuple[float, ...] | None:
        schedule = self._modifier(SCHEDULE, match)
        if schedule is None:
            return None
        try:
            return schedule_weights(str(schedule), models)
        except UsageError as error:
            raise ValueError(str(error)) from None

    def _scale(self, match: Match) -> float:
        """Return the factor of LiNeS, from alpha (also outside of layers) to alpha + beta."""
        given = [self._modifier(parameter, match) for parameter in LINES]
        if given == [None, None]:
            return 1.0
        if None in given:
            raise ValueError("lines_alpha and lines_beta go together; give both")
        alpha, beta = (float(value or 0) for value in given)
        if match.group.stack_depths is not None:
            return alpha + beta * match.group.position(match.name)
        layer = layer_of(match.name)
        return alpha + beta * fraction(layer.number, self.depths[layer.stack]) if layer else alpha

    def _balance(self, match: Match, models: int, has_base: bool) -> bool:
        """Return whether to balance the task vectors: as the recipe says, where there are two."""
        asked = bool(self._modifier(BALANCE, match))
        if asked and not has_base:
            raise ValueError("balance scales task vectors and needs a base_model")
        return asked and models > 1

    def _with_importance(
        self,
        match: Match,
        task: Task,
        sources: tuple[TensorSource, ...],
        models: Sequence[_Numbered],
        base: Sequence[_Numbered],
    ) -> tuple[Task, tuple[TensorSource, ...]]:
        """Return the task and its sources with the importance that the method and AIM read."""
        inputs, found = match.group.slice, self.importance
        named = [(inputs.sources[n], inputs.models[n], tensor) for n, tensor in (*models, *base)]
        if self.method.importance:
            lacking = [s for s, number, _ in named[: len(models)] if not found.has(s, number)]
            entries: list[Importance | None] = []
            for source, number, tensor in [] if lacking else named:
                own = found.has(source, number) and found.role(source, number) != "activation"
                importance = found.find(source, number, tensor) if own else None
                if importance is None:
                    entries.append(None)
                    continue
                entries.append(found.figures(source, number, len(sources)))
                sources = (*sources, importance)
            task = replace(task, importance=tuple(entries))
        omega = self._modifier(AIM, match)
        if omega is None:
            return task, sources
        if not 0 <= float(omega) <= 1:
            raise ValueError(f"aim_omega must be between 0 and 1, got {omega}")
        aimed = [n for n in named[len(models) :] if found.role(n[0], n[1]) == "activation"]
        if not aimed:
            raise ValueError(
                "aim_omega needs the activations of the base; add 'importance: FILE' beside "
                "base_model, of kind activation (merge-worker importance makes one)"
            )
        activations = found.find(*aimed[0])
        if activations is None or float(omega) == 1:
            return task, sources
        task = replace(task, omega=float(omega), activations=len(sources))
        return task, (*sources, activations)

    def _modifier(self, parameter: Parameter, match: Match) -> Scalar | None:
        if parameter not in self.method.modifiers:
            return None
        given = self._look_up(parameter, match, None)
        return self._converted(parameter, given) if given else None

    def _look_up(self, parameter: Parameter, match: Match, pair: _Numbered | None) -> Value | None:
        """Look a parameter up, with the tensor's own name in a model for values of that model."""
        inputs = match.group.slice
        own = (inputs.sources[pair[0]].parameters,) if pair else ()
        scopes = (*own, *inputs.shared)
        name = pair[1].name if pair else match.name
        return look_up(scopes, parameter.name, name, match.group.position(match.name))

    def _value(self, parameter: Parameter, match: Match, pair: _Numbered | None) -> Scalar:
        """Return the value for a tensor: the recipe's, or the default."""
        given = self._look_up(parameter, match, pair)
        if given is None and parameter.required:
            source = match.group.slice.sources[pair[0]] if pair else None
            of = f" of {source.model}" if source else ""
            place = source.place if source else self.recipe.where
            key = f"'parameters: {{{parameter.name}: …}}'"
            if self.recipe.where == COMMAND:
                key = f"--param {parameter.name}=…"
            raise _MissingValueError(
                f"{place}: {self.method.name} needs a value of '{parameter.name}'{of}"
                + (", which joins the models as the base" if source and source.implied else "")
                + f"; add {key}"
            )
        default = Value(parameter.default, parameter.name)  # type: ignore[arg-type]
        return self._converted(parameter, given or default)

    def _converted(self, parameter: Parameter, given: Value) -> Scalar:
        try:
            value = convert(given.value, parameter.type)
        except ValueError as error:
            raise ValueError(f"{given.place}: {error}") from None
        if parameter.name == "density" and not 0 <= float(value) <= 1:
            raise ValueError(f"{given.place}: density must be between 0 and 1, got {value}")
        return value

    def _out_dtype(self, first: TensorSource) -> DType:
        asked = self.options.dtype or self.recipe.out_dtype or self.recipe.dtype or "same"
        if asked == "same":
            return declared_dtype(first)
        dtype = from_torch_name(asked)
        return dtype if dtype.kind is Kind.FLOAT else first.dtype
