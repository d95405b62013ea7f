"""Samples of the inputs and of the result, for warnings that headers cannot give.

A few thousand values of every kind of tensor show, at no cost to the merge, one model listed twice,
a base that is not the base, models of another origin, or a result that equals one of its inputs.
Only a result that equals an input in all samples is compared to the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.reader import Files
from ..messages import counted
from ..output.files import output_errors, unfinished, write_file
from ..output.store import PartialOutput
from ..planning.plan import Plan
from ..planning.step import Step
from ..system.progress import Progress
from ..system.ranks import Rank
from ..tensors.host import host_view
from .lane import Lane

SAMPLE = 1 << 13  # elements of a tensor
KINDS = 24  # of tensors
CHUNK = 1 << 20  # elements compared at a time
NOTES = "notes.json"
"""File in the partial folder with the notes on the inputs, by the rank that sampled them."""


@dataclass
class InputSample:
    """Samples of one merge: the first and the last tensor of each kind of matrix that is merged.

    `distances` are by labels of a model and of the model it is compared to.
    """

    plan: Plan
    files: Files
    seen: int = 0
    tensors: int = 0
    distances: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lane = Lane(torch.device("cpu"), self.files, staged=False)

    def merged(self) -> Iterator[int]:
        """Yield the numbers of the steps that merge several tensors."""
        for number, step in enumerate(self.plan.steps):
            if step.task is not None and len(step.weights) > 1 and step.grid.count:
                yield number

    def sampled(self) -> Iterator[int]:
        """Yield the numbers of the steps to sample, spread over all kinds of tensors."""
        kinds: dict[str, list[int]] = {}
        for number in self.merged():
            step = self.plan.steps[number]
            if len(step.shape) > 1 and not self.waits_for_download(step):
                kinds.setdefault(re.sub(r"\d+", "#", step.name), []).append(number)
        for numbers in list(kinds.values())[:KINDS]:
            yield from dict.fromkeys((numbers[0], numbers[-1]))

    def waits_for_download(self, step: Step) -> bool:
        hub = self.plan.options.hub
        return any(hub.is_not_downloaded(tensor.file) for tensor in step.stored_inputs())

    def labels(self, number: int) -> list[str]:
        """Return the label of the model of each source of a step."""
        match = self.plan.matches.tensors[number]
        models = match.group.slice.models
        labels = {id(o): self.plan.labels[models[n]] for n, o in match.sources}
        return [labels[id(source)] for source in self.plan.steps[number].weights]

    def inputs(self) -> list[str]:
        """Return notes on models that are not fine-tunes of one base. Raises InputError."""
        for number in self.sampled():
            step, labels = self.plan.steps[number], self.labels(number)
            count = min(SAMPLE, step.grid.count)
            values = [
                self.lane.read(source, 0, count, f"in{n}").double()
                for n, source in enumerate(step.weights)
            ]
            self._measure(values, labels, step.task is not None and step.task.has_base)
        return [note for pair, sums in self.distances.items() if (note := self._note(*pair, *sums))]

    def _measure(self, values: Sequence[Tensor], labels: Sequence[str], has_base: bool) -> None:
        """Add the squared distances of one tensor from the base, and the base's squared norm."""
        against = len(values) - 1 if has_base else 0
        self.seen, self.tensors = self.seen + values[0].numel(), self.tensors + 1
        norm = float(values[against].square().sum())
        for number, value in enumerate(values):
            if number != against and bool(value.isfinite().all()) and math.isfinite(norm):
                sums = self.distances.setdefault((labels[number], labels[against]), [0.0, 0.0])
                sums[0] += float((value - values[against]).square().sum())
                sums[1] += norm

    def _note(self, label: str, base: str, distance: float, norm: float) -> str:
        sample = f"{counted(self.seen, 'values')} of {counted(self.tensors, 'tensors')}"
        if distance == 0.0:
            return f"{label} is identical to {base} in all of {sample}: merging it has no effect"
        if norm and distance > norm:
            ratio = math.sqrt(distance / norm)
            return (
                f"{label} differs from {base} by {ratio:.1f} times what {base} itself measures "
                f"({sample}): the models are probably unrelated; the merge would be noise"
            )
        return ""

    def result(self, store: PartialOutput) -> list[str]:
        """Return the labels of models that equal the result, bit for bit, in all merged tensors."""
        alike = dict.fromkeys(self.plan.labels, True)
        chosen = list(self.sampled())
        downloads = any(map(self.waits_for_download, self.plan.steps))
        in_blocks = any(step.blocks is not None for step in self.plan.steps)
        if downloads or in_blocks or not chosen or len(self.plan.labels) < 2:
            return []
        for number in chosen:
            self._compare(number, store, alike, SAMPLE)
        for number in self.merged():
            if not any(alike.values()):
                return []
            self._compare(number, store, alike, self.plan.steps[number].grid.count)
        return [label for label, same in alike.items() if same]

    def _compare(
        self, number: int, store: PartialOutput, alike: dict[str, bool], count: int
    ) -> None:
        """Rule out models that differ from the result in the first `count` elements of a step."""
        step, labels = self.plan.steps[number], self.labels(number)
        path = store.folder / unfinished(self.plan.layout.shards[step.shard].name)
        for label in alike:
            alike[label] &= label in labels
        for start in range(0, min(count, step.grid.count), CHUNK):
            stop = min(start + CHUNK, count, step.grid.count)
            with output_errors(store.out), path.open("rb") as file:
                file.seek(step.offset + start * step.dtype.bytes)
                written = file.read((stop - start) * step.dtype.bytes)
            for label, source in zip(labels, step.weights, strict=True):
                if alike[label] and source.dtype == step.dtype:
                    values = self.lane.read(source, start, stop, "in").view(torch.uint8)
                    alike[label] = host_view(values) == written
                else:
                    alike[label] = False


def check_inputs(
    stores: Sequence[PartialOutput],
    files: Files,
    rank: Rank,
    progress: Progress,
    known: Sequence[str] = (),
) -> None:
    """Warn of what samples of the inputs show, on the first rank, and save it for the manifest.

    `known` are notes on the machine, of which every rank warns.
    """
    print_warnings(known, progress)
    for store in stores if rank.number == 0 else ():
        plans = (*store.plan.lazy, store.plan)
        notes = [note for plan in plans for note in InputSample(plan, files).inputs()]
        print_warnings(notes, progress)
        with output_errors(store.out):
            write_file(store.folder / NOTES, json.dumps([*known, *notes]))


def saved_notes(folder: Path) -> list[str]:
    """Return the notes that a rank saved for the manifest; none if the file was lost."""
    try:
        value = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(note) for note in value] if isinstance(value, list) else []


def check_result(store: PartialOutput, progress: Progress) -> list[str]:
    """Return the labels of models that equal the result, with a warning if there is one.

    Raises InputError or OutputError.
    """
    with contextlib.closing(Files(store.plan.options.hub)) as files:
        alike = InputSample(store.plan, files).result(store)
    others = [label for label in store.plan.labels if label not in alike]
    if alike:
        left = f"; {_listed(others)} had no effect" if others else ": all inputs are identical"
        print_warnings([f"the result is {_listed(alike)}, bit for bit{left}"], progress)
    return alike


def _listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(names[:-1])] if names[:-1] else []), names[-1]])


def print_warnings(notes: Iterable[str], progress: Progress) -> None:
    for note in notes:
        progress.warn(note)
