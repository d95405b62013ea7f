"""The diagonal of the Fisher matrix, layer by layer: squared gradients of each sample, averaged.

F = mean over samples of (Σ over tokens ∂ log p(y|x) / ∂w)², squared for each sample before samples
are added. A pass forward over the weights stores the input of every layer for all samples; a pass
backward computes each layer again with gradients. What is in memory is one layer, the sums of its
squares, and one sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.layerwise import Call
from ..inference.model import Model
from .layout import DiskLayout
from .samples import Run
from .scratch import Result, Scratch, StateFile
from .vocabulary import Vocabulary

Tick = Callable[[str], None]
"""Called for each sample of each stage with the name of the stage; raises Stopped."""


class Fisher:
    """One measurement. Its files lie in the folder of `scratch`, which lists finished stages."""

    def __init__(
        self, run: Run, layout: DiskLayout, scratch: Scratch, result: Result, tick: Tick
    ) -> None:
        self.run, self.layout, self.scratch, self.result = run, layout, scratch, result
        self.tick = tick
        self.model: Model = run.model
        self.device = self.model.device

    def measure(self, labels: str, seed: int) -> None:
        """Fill the result. Raises Stopped by `tick`, after which the same call continues.

        `labels`: `model`, tokens drawn from the model's own probabilities, or `data`, those of the
        samples.
        """
        first = self._states("input", 0)
        self.run.begin(first.write)
        first.close()
        calls = self.run.calls
        with self._outside(), _Tables(self.model):
            self.run.refuse_gradients_past_layers()
        for call in calls:
            self._stage(f"forward {call.number}", self._forward, call)
        with self._outside() as outside:
            vocabulary = Vocabulary(self.run, self.layout, self.scratch, self.result, self.tick)
            self._stage("head", self._head, vocabulary, outside, labels, seed)
            for call in reversed(calls):
                self._stage(f"backward {call.number}", self._backward, call)
                self._remove("input", call.number + 1 if call.number + 1 < len(calls) else -1)
                self._remove("gradient", call.number + 1)
            self._stage("embedding", self._embedding, vocabulary, outside)
            vocabulary.close()

    def _stage(self, name: str, do: Callable[..., None], *arguments: Any) -> None:
        if name not in self.scratch.done:
            do(*arguments)
            self.scratch.finished(name)

    def _path(self, kind: str, number: int) -> Path:
        return self.scratch.folder / f"{kind}-{number:05d}"

    def _states(self, kind: str, number: int) -> StateFile:
        return StateFile(self._path(kind, number), self.run.shapes, self.model.dtype)

    def _remove(self, kind: str, number: int) -> None:
        self._path(kind, number).unlink(missing_ok=True)

    def _forward(self, call: Call) -> None:
        entering, leaving = (self._states("input", call.number + i) for i in (0, 1))
        with torch.no_grad(), self.model.loaded(call.layer):
            for sample in self.run:
                self.tick(f"layer {call.layer} forward")
                hidden = entering.read(sample).to(self.device)
                leaving.write(sample, self.run.apply(call, sample, hidden))
        entering.close()
        leaving.close()

    def _head(
        self, vocabulary: Vocabulary, outside: Mapping[str, Tensor], labels: str, seed: int
    ) -> None:
        """Measure the head and what stands between it and the last layer."""
        count = len(self.run.calls)
        leaving, gradients = self._states("input", count), self._states("gradient", count)
        with torch.no_grad():
            vocabulary.finals(lambda sample: leaving.read(sample).to(self.device))
            vocabulary.choose(labels, seed)
            vocabulary.head()
        sums: dict[str, Tensor] = {}
        for sample in self.run:
            self.tick("norm backward")
            with torch.enable_grad():
                hidden = leaving.read(sample).to(self.device).requires_grad_()
                final = self.run.final(sample, hidden)
                found = torch.autograd.grad(
                    final,
                    [hidden, *outside.values()],
                    vocabulary.gradient(sample, final),
                    allow_unused=True,
                )
            gradients.write(sample, found[0])
            _add_squares(sums, outside, found[1:])
        self._write(sums)
        leaving.close()
        gradients.close()

    def _backward(self, call: Call) -> None:
        entering = self._states("input", call.number)
        above, below = (self._states("gradient", call.number + i) for i in (1, 0))
        sums: dict[str, Tensor] = {}
        begin = f"{self.model.layers_name}.{call.layer}."
        with self.model.loaded(call.layer, trainable=True) as layer, _squared(layer, sums, begin):
            for sample in self.run:
                self.tick(f"layer {call.layer} backward")
                with torch.enable_grad():
                    hidden = entering.read(sample).to(self.device).requires_grad_()
                    leaving = self.run.apply(call, sample, hidden)
                    torch.autograd.backward(leaving, above.read(sample).to(self.device))
                assert hidden.grad is not None
                below.write(sample, hidden.grad)
        self._write(sums)
        for states in (entering, above, below):
            states.close()

    def _embedding(self, vocabulary: Vocabulary, outside: Mapping[str, Tensor]) -> None:
        """Measure the embeddings and what stands between them and the first layer."""
        gradients = self._states("gradient", 0)
        sums: dict[str, Tensor] = {}
        with _Tables(self.model) as tables:
            for sample in self.run:
                self.tick("embedding backward")
                with torch.enable_grad():
                    tables.begin()
                    entering = self.run.entering(sample)
                    weights = {**tables.rows, **outside}
                    found = torch.autograd.grad(
                        entering,
                        list(weights.values()),
                        gradients.read(sample).to(self.device),
                        allow_unused=True,
                    )
                for (name, weight), gradient in zip(weights.items(), found, strict=True):
                    if name not in tables.rows:
                        _add_squares(sums, {name: weight}, [gradient])
                    elif name == vocabulary.embedding:
                        vocabulary.add(sample, tables.numbers[name], gradient)
                    elif gradient is not None:
                        total = sums.setdefault(name, tables.empty(name))
                        total[tables.numbers[name]] += gradient.float().square()
        # All others were measured at the other end.
        self._write({name: total for name, total in sums.items() if bool(total.any())})
        vocabulary.embed()
        gradients.close()

    def _write(self, sums: dict[str, Tensor]) -> None:
        for name, total in sums.items():
            mean = total / len(self.run.samples)
            self.layout.write(self.memory_name(name), mean.cpu(), self.result.put, self.result.get)

    def memory_name(self, full: str) -> str:
        """Return the name under which the checkpoint in memory has a parameter."""
        return self.model.targets[full].source

    @contextlib.contextmanager
    def _outside(self) -> Iterator[Mapping[str, Tensor]]:
        """Yield the parameters outside of layers, tables and head; they take gradients."""
        layers = range(len(self.model.layers))
        inside = {name for number in layers for name in self.model.names_of_layer(number)}
        found: dict[str, Tensor] = {}
        for name, target in self.model.targets.items():
            if name in inside or target.module is self.model.head:
                continue
            parameter: Tensor | None = target.module._parameters.get(target.name)
            if parameter is None or not parameter.is_floating_point() or _is_away(parameter):
                continue
            found[name] = parameter.requires_grad_()
        try:
            yield found
        finally:
            for parameter in found.values():
                parameter.requires_grad_(False)


def _is_away(parameter: Tensor) -> bool:
    """Return whether a parameter has no memory now: read row by row, or not at all."""
    return parameter.device.type == "meta" or not any(parameter.stride())


def _add_squares(sums: dict[str, Tensor], parameters: Mapping[str, Tensor], gradients: Any) -> None:
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        total = sums.setdefault(name, torch.zeros_like(parameter, dtype=torch.float32))
        if gradient is not None:
            total += gradient.float().square()


@contextlib.contextmanager
def _squared(layer: nn.Module, sums: dict[str, Tensor], begin: str) -> Iterator[None]:
    """Add the square of each gradient to `sums` as soon as it is complete, and free it."""
    handles = []
    for name, parameter in layer.named_parameters():
        if not parameter.requires_grad:
            continue

        def add(weight: Tensor, name: str = begin + name) -> None:
            gradient = weight.grad
            assert gradient is not None
            weight.grad = None
            square = gradient.float().square_() if gradient.dtype != torch.float32 else None
            square = gradient.square_() if square is None else square
            sums[name] = sums[name].add_(square) if name in sums else square

        handles.append(_when_complete(parameter, add))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _when_complete(parameter: Tensor, do: Callable[[Tensor], None]) -> Any:
    """Call `do` when all of a backward pass has been added to the gradient of a parameter."""
    register: Callable[..., Any] = parameter.register_post_accumulate_grad_hook
    return register(do)


class _Tables:
    """Lets the rows of embeddings that a call reads take gradients, while the block runs."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.rows: dict[str, Tensor] = {}
        self.numbers: dict[str, Tensor] = {}
        self._names = {
            id(target.module): name
            for name, target in model.targets.items()
            if isinstance(target.module, nn.Embedding)
            and target.name == "weight"
            and _is_away(target.module.weight)
        }

    def __enter__(self) -> _Tables:
        self._handles = []
        for module in self.model.module.modules():
            if id(module) in self._names:
                note = module.register_forward_pre_hook(self._note, prepend=True)
                let = module.register_forward_pre_hook(self._let)
                self._handles += [note, let]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def begin(self) -> None:
        self.rows, self.numbers = {}, {}

    def _note(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.numbers[self._names[id(module)]] = torch.unique(args[0])

    def _let(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        weight = module._parameters["weight"]
        assert weight is not None
        self.rows[self._names[id(module)]] = weight.requires_grad_()

    def empty(self, name: str) -> Tensor:
        shape = self.model.weights.shape(self.model.targets[name].source)
        return torch.zeros(shape, dtype=torch.float32, device=self.model.device)
