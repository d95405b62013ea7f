"""A look at samples of the inputs, and of the result: what no header tells and no error is.

The same model twice, a base that is none, models of another origin, a result that is one of its
inputs. A few thousand values of every kind of tensor tell, at no cost to the merge.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import remote
from .dtypes import Kind
from .errors import printable
from .files import Files
from .lane import Lane, host_view
from .origin import stored
from .plan import Plan
from .progress import Progress
from .ranks import Rank
from .step import Step
from .store import Store, output_errors

SAMPLE = 1 << 13
KINDS = 24


@dataclass
class Look:
    """Samples of one merge: the first and the last tensor of each kind of matrix that is merged."""

    plan: Plan
    lane: Lane
    seen: int = 0
    tensors: int = 0
    found: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    same: dict[str, bool] = field(default_factory=dict)  # whether the result is that input

    @classmethod
    def at(cls, plan: Plan, files: Files) -> Look:
        return cls(plan, Lane(torch.device("cpu"), files, staged=False))

    def steps(self) -> Iterator[tuple[Step, list[str]]]:
        """What is looked at, with the names of the models that its sources are of."""
        kinds: dict[str, list[int]] = {}
        for number, step in enumerate(self.plan.steps):
            merged = step.task is not None and len(step.sources) > 1
            here = merged and not any(remote.absent(file) for file in _files(step))
            if here and len(step.shape) > 1 and step.grid.count:
                kinds.setdefault(re.sub(r"\d+", "#", step.name), []).append(number)
        for numbers in list(kinds.values())[:KINDS]:
            for number in dict.fromkeys((numbers[0], numbers[-1])):
                match = self.plan.matches.tensors[number]
                models = match.group.part.models
                labels = {id(o): self.plan.labels[models[n]] for n, o in match.sources}
                step = self.plan.steps[number]
                yield step, [labels[id(source)] for source in step.sources]

    def read(self, step: Step) -> list[Tensor]:
        count = min(SAMPLE, step.grid.count)
        return [self.lane.read(s, 0, count, f"in{n}") for n, s in enumerate(step.sources)]

    def inputs(self) -> list[str]:
        """Notes on models that are no fine-tunes of one base. InputError if one cannot be read."""
        for step, labels in self.steps():
            values = [value.double() for value in self.read(step)]
            has_base = step.task is not None and step.task.has_base
            against = len(values) - 1 if has_base else 0
            self.seen, self.tensors = self.seen + values[0].numel(), self.tensors + 1
            norm = float(values[against].square().sum())
            for number, value in enumerate(values):
                if number != against and bool(value.isfinite().all()) and math.isfinite(norm):
                    pair = (labels[number], labels[against] if has_base else labels[0])
                    sums = self.found.setdefault(pair, [0.0, 0.0])
                    sums[0] += float((value - values[against]).square().sum())
                    sums[1] += norm
        return [note for pair, sums in self.found.items() if (note := self._note(*pair, *sums))]

    def _note(self, label: str, base: str, apart: float, norm: float) -> str:
        looked = f"{self.seen} values of {self.tensors} tensors"
        if apart == 0.0:
            return f"{label} is the same as {base} in all of {looked}: it changes nothing here"
        if norm and apart > norm:
            ratio = math.sqrt(apart / norm)
            return (
                f"{label} differs from {base} by {ratio:.1f} times what {base} itself measures "
                f"({looked}): they were not trained from one another, and merge to noise"
            )
        return ""

    def result(self, store: Store) -> list[str]:
        """A note if the result is one of the inputs in every sample."""
        for step, labels in self.steps():
            if step.dtype.kind is not Kind.FLOAT or not self._compare(step, labels, store):
                return []
        alike = [label for label, same in self.same.items() if same]
        if not alike:
            return []
        name = " and ".join(alike)
        return [f"the result is {name}, bit for bit, in every sample; the others left no trace"]

    def _compare(self, step: Step, labels: Sequence[str], store: Store) -> bool:
        """Whether any input may still be the result."""
        count = min(SAMPLE, step.grid.count)
        written = os.pread(store.files[step.shard].fd, count * step.dtype.bytes, step.offset)
        for label, source, value in zip(labels, step.sources, self.read(step), strict=True):
            here = source.dtype == step.dtype and host_view(value.view(torch.uint8)) == written
            self.same[label] = self.same.get(label, True) and here
        return any(self.same.values())


def _files(step: Step) -> Iterator[str]:
    return (info.file for source in step.sources for info in stored(source))


class Evidence:
    """Prints what the looks find, once for all ranks; what cannot be looked at is left alone."""

    def __init__(self, stores: Sequence[Store], files: Files, rank: Rank, progress: Progress):
        self.stores = stores if rank.number == 0 else ()
        self.alone = rank.world == 1
        self.files, self.progress = files, progress
        self.told = [self._say(Look.at(store.plan, files).inputs()) for store in self.stores]

    def of_results(self) -> None:
        """Not where others have made a part of it, nor where it was told before."""
        for store, told in zip(self.stores, self.told, strict=True):
            if self.alone and not told and len(store.plan.models) > 1:
                with output_errors(store.out):
                    notes = Look.at(store.plan, self.files).result(store)
                self._say(notes)

    def _say(self, notes: Sequence[str]) -> bool:
        for note in notes:
            clear = "\r\x1b[K" if self.progress.mode == "bar" else ""
            if self.progress.mode == "json":
                self.progress.event("warning", text=note)
            else:
                print(f"{clear}warning: {printable(note)}", file=self.progress.stream)
        return bool(notes)
