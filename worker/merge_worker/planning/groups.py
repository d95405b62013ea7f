"""Recipe + names of the inputs → groups: which tensors, under which output names, from whom.

Whole models are one group. A sliced model is a group per output layer, renumbered from 0, one for
what stands before the layers (from the first slice) and one for what stands after them (from the
last slice, all of its sources).
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
    """A slice of the recipe at work: sources with the numbers of their models, and who speaks."""

    sources: tuple[Source, ...]
    models: tuple[int, ...]
    base: int | None  # number of the source that is the base
    shared: tuple[Parameters, ...]
    sliced: bool

    @property
    def reference(self) -> int:
        """The source whose names, shapes and dtypes the output has."""
        return self.base or 0


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors of one part by output name, per source; `stacks` are the depths for gradients."""

    slice: SliceInputs
    tensors: tuple[Named, ...]
    stacks: Mapping[str, int] | None = None
    t: float = 0.0
    copied: bool = False  # whatever the method

    def position(self, name: str) -> float:
        """Where on a gradient the output tensor `name` lies."""
        return self.t if self.stacks is None else depth_fraction(name, self.stacks)


@dataclass(frozen=True)
class Restacked:
    """What became of a stack of layers of the first model: which layers it now consists of."""

    stack: Stack
    picks: tuple[Pick, ...]
    depths: Mapping[int, int]  # before, by number of the model


@dataclass(frozen=True)
class Assembly:
    """All groups in output order, the stacks that changed, and what is to be told."""

    groups: tuple[Group, ...]
    restacked: tuple[Restacked, ...]
    notes: tuple[str, ...]


def group_sources(
    recipe: Recipe, models: Sequence[Checkpoint], numbers: Mapping[ModelRef, int]
) -> Assembly:
    """All groups of the recipe. UsageError for layers or modules that are not there."""
    return _Assembler(recipe, models, numbers).assembly()


@dataclass
class _Assembler:
    recipe: Recipe
    models: Sequence[Checkpoint]
    numbers: Mapping[ModelRef, int]
    faults: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    restacked: list[Restacked] = field(default_factory=list)

    def assembly(self) -> Assembly:
        groups: list[Group] = []
        for module in self.recipe.modules:
            parts = [self.part(module, part) for part in module.slices]
            tensors = {n: self.tensors(module, n) for part in parts for n in (*part.models, 0)}
            if module.sliced:
                groups += self.layers(module, parts, tensors)
            else:
                groups.append(self.whole(parts[0], tensors))
        groups += self.left_alone()
        if self.faults:
            raise UsageError("\n".join(self.faults))
        return Assembly(tuple(groups), tuple(self.restacked), tuple(self.notes))

    def part(self, module: Module, part: Slice) -> SliceInputs:
        sources = list(part.sources)
        models = [self.numbers[source.model] for source in sources]
        # The base that nobody listed, written in another way: `./base` beside `base`.
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

    def tensors(self, module: Module, number: int) -> Named:
        """The tensors of a model that belong to a module."""
        names = [m.name for m in self.recipe.modules]
        found = tensors_of(module.name, names, self.models[number].tensors)
        if not found:
            stacks = ", ".join(stack.rstrip(".") for stack in depths(self.models[number].tensors))
            self.faults[
                f"{module.place}: nothing in {self.label(number)} has this name; "
                f"its layers are in {stacks or 'no stack'}"
            ] = None
        return found

    def whole(self, part: SliceInputs, tensors: Mapping[int, Named]) -> Group:
        named = tuple(tensors[number] for number in part.models)
        config = self.models[part.models[part.reference]].config
        return Group(part, named, stacks=gradient_depths(named[part.reference], config))

    def layers(
        self, module: Module, parts: Sequence[SliceInputs], tensors: Mapping[int, Named]
    ) -> Iterator[Group]:
        """Groups of a sliced module: what stands before, every layer, what stands after."""
        stacks: dict[int, Stack] = {}
        for number, named in tensors.items():
            try:
                stacks[number] = find_stack(named, self.models[number].config)
            except UsageError as error:
                place = module.place or self.recipe.where
                self.faults[f"{place}: {self.label(number)}{error}"] = None
        if self.faults or not all([self.in_range(part, stacks) for part in parts]):
            return
        yield self.outer(parts[0], stacks, 0, before=True)
        picks: list[Pick] = []
        for part in parts:
            length = (part.sources[0].layers or (0, 0))[1] - (part.sources[0].layers or (0, 0))[0]
            for k in range(length):
                yield self.layer(part, stacks, k, len(picks), fraction(k, length))
                start = (part.sources[part.reference].layers or (0, 0))[0]
                picks.append(Pick(part.models[part.reference], start + k))
        yield self.outer(parts[-1], stacks, len(picks), before=False)
        depths_before = {number: stack.depth for number, stack in stacks.items()}
        self.restacked.append(Restacked(stacks[0], tuple(picks), depths_before))

    def in_range(self, part: SliceInputs, stacks: Mapping[int, Stack]) -> bool:
        """Whether every source has the layers that are asked of it."""
        good = True
        for source, number in zip(part.sources, part.models, strict=True):
            stack, layers = stacks[number], source.layers or (0, 0)
            if layers[1] > stack.depth:
                good = False
                self.faults[
                    f"{source.place}.layer_range: {list(layers)}, but {source.model} has "
                    f"{counted(stack.depth, 'layers')} ({stack.prefix}0 to {stack.depth - 1})"
                ] = None
        return good

    def layer(
        self, part: SliceInputs, stacks: Mapping[int, Stack], k: int, number: int, t: float
    ) -> Group:
        prefix = f"{stacks[0].prefix}{number}"
        found = []
        for source, model in zip(part.sources, part.models, strict=True):
            taken = stacks[model].layers.get((source.layers or (0, 0))[0] + k, {})
            found.append({prefix + rest: info for rest, info in taken.items()})
        return Group(part, tuple(found), t=t)

    def outer(
        self, part: SliceInputs, stacks: Mapping[int, Stack], depth: int, *, before: bool
    ) -> Group:
        """What stands before or after the layers; layers beyond the depth (MTP) move along."""
        found: list[Named] = []
        for number in part.models:
            stack = stacks[number]
            named = {n: i for n, i in stack.loose.items() if is_input(n) is before}
            for layer, rests in {} if before else stack.beyond.items():
                prefix = f"{stacks[0].prefix}{depth + layer - stack.depth}"
                named |= {prefix + rest: info for rest, info in rests.items()}
            found.append(named)
        own = {s: d for s, d in depths(found[part.reference]).items() if s != stacks[0].prefix}
        own |= {stacks[0].prefix: 1}
        return Group(part, tuple(found), stacks=own)

    def left_alone(self) -> Iterator[Group]:
        """What no module names is copied from the first model; mergekit would not write it."""
        names = [module.name for module in self.recipe.modules]
        if names == ["default"]:
            return
        taken: set[str] = set()
        for name in names:
            taken |= tensors_of(name, names, self.models[0].tensors).keys()
        left = {n: info for n, info in self.models[0].tensors.items() if n not in taken}
        if left:
            self.notes.append(
                f"{counted(len(left), 'tensors are in none of the modules')} "
                f"{', '.join(names)}; copied from "
                f"{self.label(0)}: {first_names(left)}"
            )
            ref = next(ref for ref, number in self.numbers.items() if number == 0)
            part = SliceInputs((Source(ref, None, {}),), (0,), 0, (), False)
            yield Group(part, (left,), copied=True)

    def label(self, number: int) -> str:
        return next(str(ref) for ref, n in self.numbers.items() if n == number)
