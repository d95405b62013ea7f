"""One measurement of a model: what it takes, told beforehand, and the file that it makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import Checkpoint
from ..checkpoint.importance import model_digest
from ..dtypes import Kind
from ..errors import OutputError, ResultError, UsageError
from ..inference.head import SLICE_BYTES
from ..inference.model import Model
from ..inference.texts import Window
from ..messages import counted
from ..system.progress import Progress
from ..system.signals import StopFlag, stop_on_signal
from ..units import size
from .fisher import Fisher
from .inputs import ChannelMeans, Inputs, norm_hooks
from .layout import DiskLayout
from .samples import CHUNK, Run
from .scratch import Result, Scratch, StateFile

KINDS = ("fisher", "activation", "gram-diagonal")
NAMES = {"fisher": "fisher", "activation": "activation", "gram-diagonal": "gram"}
"""What each kind is called in the metadata of a file."""
LABELS = ("model", "data")
RUNTIME = 560 << 20
"""Bytes that Python, torch and transformers take themselves."""
TICK = 1 << 20
"""Bytes that progress counts for one sample in one stage."""


@dataclass(frozen=True)
class Measurement:
    """A measurement that is about to be made of an open model.

    `disk` is the checkpoint with the names of its files; `data` the digest of the data file.
    """

    model: Model
    disk: Checkpoint
    windows: tuple[Window, ...]
    kind: str
    data: str
    length: int
    labels: str = "model"
    seed: int = 0

    @property
    def metadata(self) -> dict[str, str]:
        """The texts of the file's header, which also tell one measurement from another."""
        facts = {
            "kind": NAMES[self.kind],
            "samples": str(len(self.windows)),
            "tokens": str(sum(len(window.ids) for window in self.windows)),
            "length": str(self.length),
            "model": model_digest(self.disk),
            "data": self.data,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }
        if self.kind == "fisher":
            facts |= {"labels": self.labels, "seed": str(self.seed)}
        return facts

    @property
    def key(self) -> str:
        text = json.dumps(self.metadata, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def costs(self) -> Costs:
        return Costs.of(self)

    def make(self, out: Path, scratch: Path | None, progress: Progress, memory: int | None) -> None:
        """Write the file. Raises Stopped when a signal comes, and continues when called again.

        `scratch` is where hidden states lie meanwhile, by default beside `out`. UsageError if the
        measurement needs more than `memory` bytes.
        """
        costs = self.costs()
        if memory is not None and costs.memory > memory:
            raise UsageError(
                f"--memory: measuring takes about {size(costs.memory)}; give that, or a smaller "
                f"--length"
            )
        folder = scratch / f"importance-{self.key[:16]}" if scratch else _beside(out)
        work = Scratch(folder, self.key)
        flag = StopFlag()
        with stop_on_signal(flag), progress:
            tick = _Ticker(progress, flag, costs).tick
            if self.kind == "fisher":
                self._squares(work, out, tick)
            else:
                self._channels(work, out, tick)
        work.remove()

    def _squares(self, work: Scratch, out: Path, tick: Callable[[str], None]) -> None:
        layout = DiskLayout(self.disk.tensors, self.model.weights.checkpoint.tensors)
        shapes = {name: layout.shape(name) for name in self._floating(layout)}
        result = self._result(work.fresh, out, shapes)
        run = Run(self.model, self.windows)
        Fisher(run, layout, work, result, tick).measure(self.labels, self.seed)
        result.finish(out)
        result.close()

    def _result(self, fresh: bool, out: Path, shapes: Mapping[str, tuple[int, ...]]) -> Result:
        """Open the unfinished file in the folder of OUT, where it can be renamed."""
        path = _beside(out).with_suffix(".tensors")
        if fresh:
            path.unlink(missing_ok=True)
        return Result(path, shapes, self.metadata)

    def _floating(self, layout: DiskLayout) -> list[str]:
        """Return the names on disk of all parameters of the model, in the order of the files."""
        used = set()
        for target in self.model.targets.values():
            if target.name in target.module._parameters:
                used.update(layout.names(target.source))
        disk = self.disk.tensors
        return [name for name, source in disk.items() if name in used and _is_float(source)]

    def _channels(self, work: Scratch, out: Path, tick: Callable[[str], None]) -> None:
        layout = DiskLayout(self.disk.tensors, self.model.weights.checkpoint.tensors)
        run = Run(self.model, self.windows)
        states = [_states(work, run, 0), _states(work, run, 1)]
        # Of a measurement that continues, the file holds the input of a later layer.
        run.begin(states[0].write if not work.done else None)
        found: dict[str, Tensor] = {}
        for call in run.calls:
            file = work.folder / f"means-{call.number:05d}.json"
            stage = f"layer {call.number}"
            entering, leaving = states[call.number % 2], states[1 - call.number % 2]
            if stage in work.done:
                means = {n: torch.tensor(v) for n, v in json.loads(file.read_text()).items()}
            else:
                means = self._means_of(run, call, (entering, leaving), tick)
                file.write_text(json.dumps({name: v.tolist() for name, v in means.items()}))
                work.finished(stage)
            found |= means
        for file_of in states:
            file_of.close()
        vectors = self._on_disk(layout, found)
        shapes = {name: tuple(vector.shape) for name, vector in vectors.items()}
        result = self._result(True, out, shapes)
        for name, vector in vectors.items():
            result.put(name, 0, vector.reshape(-1))
        result.finish(out)
        result.close()

    def _means_of(
        self, run: Run, call: Any, states: tuple[StateFile, StateFile], tick: Callable[[str], None]
    ) -> dict[str, Tensor]:
        """Run all samples through a layer; return the means of its inputs by full names."""
        means = ChannelMeans(squares=self.kind == "gram-diagonal")
        model, (entering, leaving) = self.model, states
        with torch.no_grad(), model.loaded(call.layer) as layer:
            handles = norm_hooks(layer, means) if self.kind == "activation" else []
            for sample in run:
                tick(f"layer {call.layer}")
                hidden = entering.read(sample).to(model.device)
                with Inputs(layer, means.add) as inputs:
                    output = run.apply(call, sample, hidden)
                    inputs.flush()
                leaving.write(sample, output)
            for handle in handles:
                handle.remove()
            found = means.of(dict(layer.named_parameters()))
        begin = f"{model.layers_name}.{call.layer}."
        if not all(bool(mean.isfinite().all()) for mean in found.values()):
            raise ResultError(
                f"{model.label}: NaN or Inf in the inputs of layer {call.layer}; the weights hold "
                f"such values, or --dtype is too narrow"
            )
        return {begin + name: mean.cpu() for name, mean in found.items()}

    def _on_disk(self, layout: DiskLayout, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return means for the tensors on disk: one number for each input of a matrix."""
        whole: dict[str, Tensor] = {}

        def put(name: str, first: int, values: Tensor) -> None:
            if name not in whole:
                whole[name] = torch.zeros(layout.shape(name)).view(-1)
            whole[name][first : first + values.numel()] = values

        def get(name: str, first: int, stop: int) -> Tensor:
            put(name, 0, torch.empty(0))
            return whole[name][first:stop].clone()

        vectors: dict[str, Tensor] = {}
        for name, mean in found.items():
            source = self.model.targets[name].source
            shape = self.model.weights.shape(source)
            layout.write(source, mean.expand(shape), put, get)
            for disk in layout.names(source):
                vectors[disk] = _channels_of(whole[disk].view(layout.shape(disk)))
                if (
                    len(layout.names(source)) == 1
                    and whole[disk].numel() == mean.expand(shape).numel()
                ):
                    del whole[disk]
        return vectors


def _is_float(source: Any) -> bool:
    return source.dtype.kind is Kind.FLOAT


def _channels_of(values: Tensor) -> Tensor:
    """Return one number for each input of a matrix whose elements are those of its inputs."""
    if values.ndim < 2:
        return values
    if torch.equal(values, values[..., :1, :].expand_as(values)):
        first = values[..., :1, :]
        return first[0] if values.ndim == 2 else first
    return values[..., :1]


def _states(work: Scratch, run: Run, number: int) -> StateFile:
    return StateFile(work.folder / f"states-{number}", run.shapes, run.model.dtype)


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@dataclass(frozen=True)
class Costs:
    """Costs of a measurement: bytes of memory, scratch and weights, operations, progress."""

    memory: int
    scratch: int
    flops: int
    weights: int
    passes: int
    ticks: int

    @staticmethod
    def of(measurement: Measurement) -> Costs:
        model, windows = measurement.model, measurement.windows
        count, tokens = len(windows), sum(len(window.ids) for window in windows)
        longest = max(len(window.ids) for window in windows)
        layers = len(model.layers)
        width, item = model.hidden_size, model.dtype.itemsize
        layer = max(model.layer_bytes(number) for number in range(layers))
        own = sum(model.layer_bytes(number) for number in range(layers)) // item
        states = tokens * width * item
        # A sample inside of a layer: intermediate values of attention and MLP.
        inner = longest * (24 * width + 8 * longest) * item
        weights = model.weights.nbytes({target.source for target in model.targets.values()})
        first = min(count, CHUNK) * longest * width * item
        vocabulary = model.vocabulary_size
        if measurement.kind != "fisher":
            memory = RUNTIME + layer + first + 2 * inner
            return Costs(memory, 2 * states, 2 * own * tokens, weights, 1, count * layers)
        parts = -(-vocabulary * width * item // SLICE_BYTES)
        largest = layer // 3  # the gradient of one matrix
        sums = layer // item * 4
        slices = 4 * SLICE_BYTES + 3 * 8 * longest * min(vocabulary, SLICE_BYTES // (width * item))
        memory = RUNTIME + first + max(layer + sums + largest + inner, slices)
        flops = 8 * own * tokens + 10 * vocabulary * width * tokens
        scratch = states * (layers + 4) + 4 * tokens * width * 2
        return Costs(memory, scratch, flops, weights, 2, count * (2 * layers + 5 * parts + 4))

    def line(self, label: str, windows: int, tokens: int, device: str) -> str:
        """Return the line that is printed before anything is read."""
        passes = counted(self.passes, "passes") if self.passes > 1 else "1 pass"
        return (
            f"{label}: {counted(windows, 'samples')} of {tokens} tokens; {passes} over "
            f"{size(self.weights)} of weights, about {size(self.memory)} of memory, "
            f"{size(self.scratch)} of scratch files, {self.flops:.1e} operations on {device}"
        )


class _Ticker:
    """Counts samples through stages as progress; stops at a signal."""

    def __init__(self, progress: Progress, flag: StopFlag, costs: Costs) -> None:
        self.progress, self.flag, self.ticks = progress, flag, costs.ticks
        self.count = 0

    def tick(self, stage: str) -> None:
        if self.flag.is_set():
            raise self.flag.error(min(99.0, 100 * self.count / max(1, self.ticks)))
        self.count += 1
        self.progress.wrote(TICK)


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Raise OutputError if OUT is there and not to be replaced."""
    if out.is_dir() or (out.exists() and not overwrite):
        what = "a folder" if out.is_dir() else "there already; --overwrite replaces it"
        raise OutputError(f"{out}: {what}")
