"""Recipe + names of the inputs → groups: which tensors of which models, under which output names.

Whole models are one group. A sliced model is a group per output layer, renumbered from 0, one for
the tensors before the layers (from the first slice) and one for those after them (from the last
slice, all of its sources).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..checkpoint.folder import Checkpoint
from ..errors import UsageError
from ..messages import counted, first_names
from ..recipe.parameters import Parameters
from ..recipe.schema import ModelRef, Module, Recipe, Slice, Source
from ..structure.layers import (
    Pick,
    Restacked,
    Stack,
    depth_fraction,
    depths,
    find_stack,
    fraction,
    gradient_depths,
    is_input,
)
from ..structure.selection import tensors_of
from ..tensors.source import TensorSource

Named = dict[str, TensorSource]


@dataclass(frozen=True)
class SliceInputs:
    """A slice of the recipe: its sources, and the numbers of their models."""

    sources: tuple[Source, ...]
    models: tuple[int, ...]
    base: int | None  # number of the source that is the base
    shared: tuple[Parameters, ...]  # scopes that hold for all sources, the innermost first
    sliced: bool

    @property
    def reference(self) -> int:
        """Number of the source whose names, shapes and dtypes the output has."""
        return self.base or 0


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors of one slice, or of a layer of it, by output name, for each source."""

    slice: SliceInputs
    tensors: tuple[Named, ...]
    stack_depths: Mapping[str, int] | None = None  # for gradients; None: all at `gradient`
    gradient: float = 0.0
    copied: bool = False  # whatever the method
    keeps_dtype: bool = False  # whatever dtype is asked for

    def position(self, name: str) -> float:
        """Return where on a gradient the output tensor `name` lies, from 0 to 1."""
        if self.stack_depths is None:
            return self.gradient
        return depth_fraction(name, self.stack_depths)


@dataclass(frozen=True)
class Groups:
    """All groups in output order, the stacks of layers that changed, and notes for the user."""

    groups: tuple[Group, ...]
    restacked: tuple[Restacked, ...]
    notes: tuple[str, ...]


def group_sources(
    recipe: Recipe, models: Sequence[Checkpoint], numbers: Mapping[ModelRef, int]
) -> Groups:
    """Return all groups of a recipe. Raises UsageError for layers or modules that do not exist."""
    return _Grouper(recipe, models, numbers).group()


@dataclass
class _Grouper:
    """Collects groups, notes and faults over all modules of a recipe."""

    recipe: Recipe
    models: Sequence[Checkpoint]
    numbers: Mapping[ModelRef, int]
    faults: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    restacked: list[Restacked] = field(default_factory=list)

    def group(self) -> Groups:
        groups: list[Group] = []
        for module in self.recipe.modules:
            slices = [self._inputs(module, part) for part in module.slices]
            numbers = (n for inputs in slices for n in (*inputs.models, 0))
            tensors = {n: self._tensors(module, n) for n in numbers}
            if module.sliced:
                groups += self._layers(module, slices, tensors)
            else:
                groups.append(self._whole(slices[0], tensors))
        groups += self._outside_modules()
        if self.faults:
            raise UsageError("\n".join(self.faults))
        return Groups(tuple(groups), tuple(self.restacked), tuple(self.notes))

    def _inputs(self, module: Module, part: Slice) -> SliceInputs:
        sources = list(part.sources)
        models = [self.numbers[source.model] for source in sources]
        # The base was added to the listed models, but is one of them: `./base` and `base`.
        if sources[-1].implied and models[-1] in models[:-1]:
            del sources[-1], models[-1]
        seen = set()
        for source, model in zip(sources, models, strict=True):
            if (model, source.layers) in seen:
                self.faults[f"{source.place}: model '{source.model}' is listed twice"] = None
            seen.add((model, source.layers))
        ref = part.base or self.recipe.base
        base = self.numbers[ref] if ref else None
        shared = (part.parameters, module.parameters, self.recipe.parameters)
        number = models.index(base) if base in models else None
        return SliceInputs(tuple(sources), tuple(models), number, shared, part.length is not None)

    def _tensors(self, module: Module, number: int) -> Named:
        """Return the tensors of a model that belong to a module."""
        names = [m.name for m in self.recipe.modules]
        tensors = tensors_of(module.name, names, self.models[number].tensors)
        if not tensors:
            stacks = ", ".join(stack.rstrip(".") for stack in depths(self.models[number].tensors))
            self.faults[
                f"{module.place}: no tensor of {self._label(number)} has this prefix; "
                f"its layers are in {stacks or 'no stack'}"
            ] = None
        return tensors

    def _whole(self, inputs: SliceInputs, tensors: Mapping[int, Named]) -> Group:
        named = tuple(tensors[number] for number in inputs.models)
        config = self.models[inputs.models[inputs.reference]].config
        return Group(inputs, named, gradient_depths(named[inputs.reference], config))

    def _layers(
        self, module: Module, slices: Sequence[SliceInputs], models: Mapping[int, Named]
    ) -> Iterator[Group]:
        """Yield the groups of a sliced module: before the layers, every layer, after them."""
        stacks: dict[int, Stack] = {}
        for number, named in models.items():
            try:
                stacks[number] = find_stack(named, self.models[number].config)
            except UsageError as error:
                place = module.place or self.recipe.where
                self.faults[f"{place}: {self._label(number)}{error}"] = None
        for inputs in slices if not self.faults else ():
            self._check_layers(inputs, stacks)
        if self.faults:
            return
        yield self._outside_layers(slices[0], stacks, 0, before=True)
        picks: list[Pick] = []
        for inputs in slices:
            first, stop = _layer_range(inputs.sources[0])
            start, _ = _layer_range(inputs.sources[inputs.reference])
            for k in range(stop - first):
                prefix = f"{stacks[0].prefix}{len(picks)}"
                layers = [
                    stacks[model].layers.get(_layer_range(source)[0] + k, {})
                    for source, model in zip(inputs.sources, inputs.models, strict=True)
                ]
                tensors = tuple({prefix + rest: t for rest, t in layer.items()} for layer in layers)
                yield Group(inputs, tensors, gradient=fraction(k, stop - first))
                picks.append(Pick(inputs.models[inputs.reference], start + k))
        yield self._outside_layers(slices[-1], stacks, len(picks), before=False)
        self.restacked.append(Restacked(stacks, tuple(picks)))

    def _check_layers(self, inputs: SliceInputs, stacks: Mapping[int, Stack]) -> None:
        """Check that every source has the layers that the recipe takes from it."""
        for source, number in zip(inputs.sources, inputs.models, strict=True):
            stack, layers = stacks[number], _layer_range(source)
            if layers[1] > stack.depth:
                self.faults[
                    f"{source.place}.layer_range: {list(layers)}, but {source.model} has "
                    f"{counted(stack.depth, 'layers')} ({stack.prefix}0 to {stack.depth - 1})"
                ] = None

    def _outside_layers(
        self, inputs: SliceInputs, stacks: Mapping[int, Stack], depth: int, *, before: bool
    ) -> Group:
        """Return the tensors before or after the layers; extra layers (MTP) move along."""
        tensors: list[Named] = []
        for number in inputs.models:
            stack = stacks[number]
            named = {name: t for name, t in stack.loose.items() if is_input(name) is before}
            for layer, rests in {} if before else stack.beyond.items():
                prefix = f"{stacks[0].prefix}{depth + layer - stack.depth}"
                named |= {prefix + rest: tensor for rest, tensor in rests.items()}
            tensors.append(named)
        first = stacks[0].prefix
        others = {s: d for s, d in depths(tensors[inputs.reference]).items() if s != first}
        return Group(inputs, tuple(tensors), {**others, first: 1})

    def _outside_modules(self) -> Iterator[Group]:
        """Copy tensors outside of all modules from the first model; mergekit leaves them out."""
        names = [module.name for module in self.recipe.modules]
        if names == ["default"]:
            return
        tensors = self.models[0].tensors
        taken = {tensor for name in names for tensor in tensors_of(name, names, tensors)}
        rest = {name: tensor for name, tensor in tensors.items() if name not in taken}
        if rest:
            self.notes.append(
                f"{counted(len(rest), 'tensors are in none of the modules')} "
                f"{', '.join(names)}; copied from {self._label(0)}: {first_names(rest)}"
            )
            ref = next(ref for ref, number in self.numbers.items() if number == 0)
            inputs = SliceInputs((Source(ref, None, {}),), (0,), 0, (), False)
            yield Group(inputs, (rest,), copied=True)

    def _label(self, number: int) -> str:
        return next(str(ref) for ref, n in self.numbers.items() if n == number)


def _layer_range(source: Source) -> tuple[int, int]:
    return source.layers or (0, 0)
