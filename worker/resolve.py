"""Gives every output tensor its values: which scope of the recipe speaks, for which layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cut import CPU_BLOCK, grid
from .dtypes import DType, Kind, from_torch_name
from .errors import UsageError
from .header import TensorInfo
from .layers import depth_fraction, depths
from .layout import Output
from .match import Match, Matches, Rules
from .methods._define import Base, Cut, Method, Parameter, Task
from .recipe import Recipe, Slice, Source
from .settings import Parameters, Scalar, convert, look_up
from .step import Step


@dataclass(frozen=True)
class PlanOptions:
    """What the command line adds to a recipe; all of it has defaults."""

    relative_to: Path = field(default_factory=Path.cwd)
    dtype: str | None = None  # None: the recipe decides; "same": that of the first model
    shard_bytes: int = 5_000_000_000
    memory_bytes: int | None = None
    threads: int | None = None
    seed: int = 0
    strict: bool = False
    rules: Rules = field(default_factory=Rules)
    block: int = CPU_BLOCK


@dataclass(frozen=True, slots=True)
class Draft:
    """A step before its place in the output is known."""

    output: Output
    sources: tuple[TensorInfo, ...]
    task: Task | None
    method: Method

    def step(self, shard: int, offset: int, block: int) -> Step:
        out, task, family = self.output, self.task, self.method.family
        cut = family.cut(self.method, task.values) if task else Cut.ELEMENT
        reads = family.reads(self.method, task.values) if task else 1
        scratch = family.scratch_bytes(self.method, len(self.sources)) if task else 0
        return Step(
            out.name, out.dtype, out.shape, self.sources, task,
            grid(out.shape, cut, block), reads, scratch, shard, offset,
        )  # fmt: skip


class Resolver:
    """Gives every matched tensor the values that the recipe's scopes hold for it."""

    def __init__(
        self,
        recipe: Recipe,
        part: Slice,
        method: Method,
        sources: tuple[Source, ...],
        options: PlanOptions,
    ) -> None:
        self.recipe = recipe
        self.method = method
        self.sources = sources
        self.options = options
        self.shared: tuple[Parameters, ...] = (part.parameters, recipe.parameters)
        # A base that plays its own part is exempt from values per model.
        base = recipe.base if method.base is not Base.IGNORED else None
        self.base = next((i for i, s in enumerate(sources) if s.model == base), None)

    def drafts(self, matches: Matches) -> Iterator[Draft]:
        """All output tensors in order. UsageError names a value that is missing or wrong."""
        stacks = depths(match.name for match in matches.tensors)
        faults: dict[str, None] = {}
        for match in matches.tensors:
            try:
                yield self._draft(match, depth_fraction(match.name, stacks))
            except (ValueError, ZeroDivisionError) as error:
                faults.setdefault(f"{self.recipe.where}: {error}")
        if faults:
            raise UsageError("\n".join(faults))

    def _draft(self, match: Match, t: float) -> Draft:
        first = match.sources[0][1]
        if not match.merged:
            infos = tuple(info for _, info in match.sources)
            return Draft(Output(match.name, first.dtype, first.shape), infos, None, self.method)
        base = [pair for pair in match.sources if pair[0] == self.base]
        models = [pair for pair in match.sources if pair[0] != self.base]
        infos = tuple(info for _, info in (*models, *base))
        dtype = self._out_dtype(first)
        values: dict[str, Any] = {
            parameter.name: (
                tuple(self._value(parameter, match.name, t, self.sources[i]) for i, _ in models)
                if parameter.per_model
                else self._value(parameter, match.name, t, None)
            )
            for parameter in self.method.parameters
        }
        wide = dtype.bits > 16
        task = Task(
            match.name, first.shape, dtype, len(models), bool(base), values, self.options.seed,
            "float64" if wide else "float32",
        )  # fmt: skip
        self.method.family.check(self.method, task)
        return Draft(Output(match.name, dtype, first.shape), infos, task, self.method)

    def _value(self, parameter: Parameter, name: str, t: float, source: Source | None) -> Scalar:
        scopes = (source.parameters, *self.shared) if source else self.shared
        value = look_up(scopes, parameter.name, name, t)
        where = f" of {source.model}" if source else ""
        if value is None and parameter.required:
            raise ValueError(
                f"parameter '{parameter.name}'{where} has no value for tensor '{name}'; "
                f"{self.method.name} needs one"
            )
        if value is None:
            value = parameter.default  # type: ignore[assignment]
        try:
            return convert(value, parameter.type)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"parameter '{parameter.name}'{where}: {error}") from None

    def _out_dtype(self, first: TensorInfo) -> DType:
        asked = self.options.dtype or self.recipe.out_dtype or self.recipe.dtype or "same"
        if asked == "same":
            return first.dtype
        dtype = from_torch_name(asked)
        return dtype if dtype.kind is Kind.FLOAT else first.dtype
