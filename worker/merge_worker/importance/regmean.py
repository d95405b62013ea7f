"""RegMean with whole Gram matrices, layer by layer, none of which is ever stored.

All models run on their own texts at the same time, one layer of one model in memory. The Gram
matrices of a layer are solved for its merged matrices as soon as the last model has passed, then
freed:

    Wᵀ = W₀ᵀ + (Σ λ_m Ĝ_m)⁻¹ Σ λ_m Ĝ_m (W_m − W₀)ᵀ,  Ĝ_m = XᵀX / tokens, with the elements beside
    the diagonal times `reduction`

W₀ is the base, or the mean of the models. In this form a channel that is 0 in all texts keeps W₀,
and models that are equal are the result exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ResultError
from ..inference.layerwise import Call
from ..inference.model import Model
from ..output.files import write_file
from .inputs import Inputs, Place
from .layout import DiskLayout
from .samples import Run
from .scratch import Result, Scratch, StateFile

WIDEST = 8192
"""Channels from which an accelerator solves in float32."""
UNSAFE = 1e10
"""Square of the ratio of the largest to the smallest pivot from which the ridge is added."""

Group = tuple[Place, ...]
"""Matrices that share their input."""


@dataclass
class Gram:
    """XᵀX of the inputs of one group of matrices in one model."""

    sum: Tensor  # [channels, channels]
    tokens: int

    def reduced(self, reduction: float) -> Tensor:
        """Return the mean over tokens with the elements beside the diagonal made smaller."""
        mean = self.sum / max(1, self.tokens)
        diagonal = mean.diagonal().clone()
        mean.mul_(reduction).diagonal().copy_(diagonal)
        return mean


@dataclass
class Solver:
    """The normal equations of one group: `left` Δᵀ = `right` for the change Δ of each matrix."""

    reduction: float
    ridge: float
    left: Tensor | None = None
    right: dict[Place, Tensor] = field(default_factory=dict)

    def add(self, gram: Gram, weight: float, changes: dict[Place, Tensor]) -> None:
        """Add a model, given W_m − W₀ (outputs, channels) of its matrices."""
        reduced = gram.reduced(self.reduction).mul_(weight)
        for place, change in changes.items():
            product = reduced @ change.to(reduced).T
            self.right[place] = product + self.right[place] if place in self.right else product
        self.left = reduced if self.left is None else self.left.add_(reduced)

    def solve(self) -> dict[Place, Tensor]:
        """Return W − W₀ (outputs, channels) of each matrix. One factor serves all of them."""
        assert self.left is not None
        left = self.left
        diagonal = left.diagonal()
        dead = diagonal <= 0
        if bool(dead.all()):
            return {place: torch.zeros_like(right.T) for place, right in self.right.items()}
        # A channel without input has an equation of its own: no change.
        diagonal[dead] = diagonal[~dead].mean()
        if int(left.count_nonzero()) == len(left):  # exactly what the formula says, unrounded
            return {p: (right / left.diagonal()[:, None]).T for p, right in self.right.items()}
        factor = self._factor(left)
        return {place: torch.cholesky_solve(right, factor).T for place, right in self.right.items()}

    def _factor(self, left: Tensor) -> Tensor:
        factor: Tensor
        factor, fault = torch.linalg.cholesky_ex(left)
        pivots = factor.diagonal()
        if not int(fault) and float(pivots.max() / pivots.min()) ** 2 < UNSAFE:
            return factor
        scale, ridge = float(left.diagonal().mean()), self.ridge
        for _ in range(12):
            added = left.clone()
            added.diagonal().add_(ridge * scale)
            factor, fault = torch.linalg.cholesky_ex(added)
            if not int(fault):
                break
            ridge *= 10
        return factor


@dataclass(frozen=True)
class Part:
    """One model: opened, its samples, and its weight λ."""

    run: Run
    weight: float

    @property
    def model(self) -> Model:
        return self.run.model


@dataclass
class RegMean:
    """One solution. `result` gets the merged tensors by the names of `layout`'s disk.

    `base` is None for the mean of the models; only tensors in `wanted` are written. `few` are the
    experts that were left to the mean. Raises Stopped by `tick`, after which the same call
    continues with the layer after the last finished one.
    """

    parts: Sequence[Part]
    base: Model | None
    layout: DiskLayout
    result: Result
    scratch: Scratch
    tick: Callable[[str], None]
    wanted: set[str]
    reduction: float = 0.9
    ridge: float = 1e-6
    few: list[str] = field(default_factory=list)
    solved: set[str] = field(default_factory=set)
    """Names on disk of the tensors that were written."""

    def solve(self) -> None:
        """Write the merged matrices of all layers."""
        states = [self._states(number) for number in range(len(self.parts))]
        for part, (first, _) in zip(self.parts, states, strict=True):
            # Of a solution that continues, the file holds the input of a later layer.
            part.run.begin(first.write if not self.scratch.done else None)
        for call in self.parts[0].run.calls:
            stage, file = f"layer {call.number}", self.scratch.folder / f"facts-{call.number}.json"
            if stage not in self.scratch.done:
                few, solved = self._layer(call, states)
                write_file(file, json.dumps([few, sorted(solved)]))
                self.scratch.finished(stage)
            few, names = json.loads(file.read_text(encoding="utf-8"))
            self.few += few
            self.solved.update(names)
        for pair in states:
            for side in pair:
                side.close()

    def _states(self, number: int) -> tuple[StateFile, StateFile]:
        run, folder = self.parts[number].run, self.scratch.folder
        first, second = (
            StateFile(folder / f"states-{number}-{side}", run.shapes, run.model.dtype)
            for side in (0, 1)
        )
        return first, second

    def _layer(
        self, call: Call, states: Sequence[tuple[StateFile, StateFile]]
    ) -> tuple[list[str], set[str]]:
        """Solve a layer; return experts that saw few tokens, and names that were written."""
        few: list[str] = []
        solvers: dict[Group, Solver] = {}
        seen: dict[Group, int] = {}
        for part, pair in zip(self.parts, states, strict=True):
            entering, leaving = pair[call.number % 2], pair[1 - call.number % 2]
            grams = self._grams(part, call, entering, leaving)
            for group, gram in grams.items():
                seen[group] = seen.get(group, 0) + self._is_enough(group, gram)
                solver = solvers.setdefault(group, Solver(self.reduction, self.ridge))
                changes = {place: self._change(part, call, place) for place in group}
                solver.add(gram, part.weight, changes)
            del grams
        solved: dict[str, dict[int | None, Tensor]] = {}
        for group in list(solvers):
            solver = solvers.pop(group)
            if seen[group] < len(self.parts):
                few += [f"{call.layer}.{place.name}[{place.entry}]" for place in group]
                continue
            for place, change in solver.solve().items():
                merged = self._base(call, place) + change.cpu()
                solved.setdefault(place.name, {})[place.entry] = (
                    merged.T if place.transposed else merged
                )
        return few, self._write(call, solved)

    def _is_enough(self, group: Group, gram: Gram) -> bool:
        """Return whether an expert saw as many tokens as it has channels; all else has enough."""
        return group[0].entry is None or gram.tokens >= len(gram.sum)

    def _grams(
        self, part: Part, call: Call, entering: StateFile, leaving: StateFile
    ) -> dict[Group, Gram]:
        """Run a model's samples through a layer; return the Gram matrices of its inputs."""
        grams: dict[Group, Gram] = {}

        def add(group: Group, x: Tensor) -> None:
            x = x.to(_work(x.device, x.shape[-1]))
            if group in grams:
                grams[group].sum.addmm_(x.T, x)
                grams[group].tokens += len(x)
            else:
                grams[group] = Gram(x.T @ x, len(x))

        device = part.model.device
        with torch.no_grad(), part.model.loaded(call.layer) as layer:
            for sample in part.run:
                self.tick(f"layer {call.layer} of {part.model.label}")
                hidden = entering.read(sample).to(device)
                with Inputs(layer, add) as inputs:
                    output = part.run.apply(call, sample, hidden)
                    inputs.flush()
                leaving.write(sample, output)
        if not all(bool(gram.sum.isfinite().all()) for gram in grams.values()):
            raise ResultError(f"{part.model.label}: NaN or Inf in the inputs of layer {call.layer}")
        return grams

    def _change(self, part: Part, call: Call, place: Place) -> Tensor:
        """Return W_m − W₀ (outputs, channels) of a model, float64 on the host."""
        return _matrix(part.model, call.layer, place).sub_(self._base(call, place))

    def _base(self, call: Call, place: Place) -> Tensor:
        if self.base is not None:
            return _matrix(self.base, call.layer, place)
        return self._mean(call, place)

    def _mean(self, call: Call, place: Place) -> Tensor:
        total = sum(part.weight for part in self.parts)
        parts = (_matrix(p.model, call.layer, place).mul_(p.weight / total) for p in self.parts)
        first = next(parts)
        for other in parts:
            first += other
        return first

    def _write(self, call: Call, solved: dict[str, dict[int | None, Tensor]]) -> set[str]:
        written: set[str] = set()
        model = self.base or self.parts[0].model
        begin = f"{model.layers_name}.{call.layer}."
        # What other tensors of the layer share with one that is not solved stays the mean.
        all_names = {n.removeprefix(begin) for n in model.names_of_layer(call.layer)}
        others = {
            disk
            for name in all_names - solved.keys()
            for disk in self.layout.names(model.targets[begin + name].source)
        }
        for name, entries in solved.items():
            target = model.targets[begin + name]
            names = set(self.layout.names(target.source))
            if names & others or not names <= self.wanted:
                continue
            written |= names
            shape = model.weights.shape(target.source)
            size = shape[-2] * shape[-1]
            for entry in range(shape[0]) if len(shape) == 3 else [None]:
                merged = entries.get(entry)
                if merged is None:
                    merged = self._mean(call, Place(name, entry, False))
                start = 0 if entry is None else entry * size
                flat = merged.float().reshape(-1)
                self.layout.write(target.source, flat, self.result.put, self.result.get, start)
        return written


def solved_names(layout: DiskLayout, model: Model) -> dict[str, tuple[int, ...]]:
    """Return names and shapes on disk of the tensors that may be solved: matrices of layers."""
    found: dict[str, tuple[int, ...]] = {}
    for number in range(len(model.layers)):
        for full in model.names_of_layer(number):
            source = model.targets[full].source
            if len(model.weights.shape(source)) in (2, 3):
                found |= {name: layout.shape(name) for name in layout.names(source)}
    return found


def _matrix(model: Model, layer: int, place: Place) -> Tensor:
    """Return a matrix (outputs, channels) of a model, float64 on the host."""
    source = model.targets[f"{model.layers_name}.{layer}.{place.name}"].source
    if place.entry is None:
        whole = model.weights.tensor(source)
    else:
        whole = model.weights.rows(source, place.entry, place.entry + 1)[0]
    matrix = whole.double()
    return matrix.T.contiguous() if place.transposed else matrix


def _work(device: torch.device, channels: int) -> torch.dtype:
    wide = device.type != "cpu" and channels > WIDEST
    return torch.float32 if wide or device.type == "mps" else torch.float64
