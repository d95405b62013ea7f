"""A model of transformers in memory that takes the weights of one merge after another.

Merged tensors are copied into its parameters as they are computed, and nothing is written. Beside
the model, memory holds only tensors that wait for others of the same parameter, such as experts
that a class stacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.header import CONFIG
from ..errors import InputError
from ..messages import first_names
from ..output.side_files import side_files
from ..planning.plan import Plan, final_config
from ..planning.stages import PlannedCheckpoint
from ..tensors.source import DerivedTensor, Reader, TensorSource
from ..tokenizer.files import SideFiles, is_tokenizer_file

if TYPE_CHECKING:
    from torch import Tensor

    from ..inference.model import Model

LENGTH, BATCH_TOKENS = 1024, 1024
"""Tokens of a window, as `perplexity` has them, and of a batch."""
LOGITS_AT_ONCE = 1 << 24
"""Logits that are turned into losses at a time, which bounds their copies in float32."""


@dataclass(frozen=True)
class _Arriving(DerivedTensor):
    """A merged tensor: `store` has it by its name on disk between its arrival and its last use."""

    kind = "memory"

    stored: str = field(kw_only=True)
    store: dict[str, Tensor] = field(kw_only=True, compare=False, repr=False)

    def read_into(self, reader: Reader, start: int, stop: int, out: Tensor, slot: str) -> None:
        out.copy_(self.store[self.stored][start:stop])

    def fingerprint(self) -> object:
        return [self.stored]


@dataclass(frozen=True)
class _Parameter:
    """A parameter: its memory, the tensor it is filled from, and the merged tensors that takes."""

    memory: Tensor
    source: str
    needs: frozenset[str]


class ResidentModel:
    """A model with the architecture, vocabulary and tokenizer of a merge. Weights come by `load`.

    `device` is where it runs and where merges are computed. Raises InputError for a merge that
    transformers cannot load, UsageError without transformers.
    """

    def __init__(self, plan: Plan, device: str, trust_remote_code: bool = False) -> None:
        from ..engine.device import select_devices
        from ..inference.model import ModelOptions, open_model

        self._kind = _kind(plan)
        self._device = device
        self._store: dict[str, Tensor] = {}
        tensors = {
            s.name: _Arriving(s.name, s.dtype, s.shape, (), stored=s.name, store=self._store)
            for s in plan.steps_in_files()
        }
        config = final_config(plan)
        path = Path(plan.recipe.where)
        checkpoint = PlannedCheckpoint(path, (), dict(tensors), planned_config=config)
        options = ModelOptions(
            device=select_devices(device)[0],
            trust_remote_code=trust_remote_code,
            resident=True,
        )
        self.model: Model = open_model(checkpoint, _files(plan, config), "the merge", options)
        self._trust = trust_remote_code
        self._parameters = [
            _Parameter(
                memory, name, frozenset(_leaves(self.model.weights.checkpoint.tensors[name]))
            )
            for name, memory in self.model.allocate()
        ]
        self._users: dict[str, list[int]] = {}
        for number, parameter in enumerate(self._parameters):
            for name in parameter.needs:
                self._users.setdefault(name, []).append(number)
        self._tokenizer: Any = None

    def fits(self, plan: Plan) -> bool:
        """Return whether a merge has the same tensors, config and tokenizer."""
        return _kind(plan) == self._kind

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers. InputError without one."""
        if self._tokenizer is None:
            self._tokenizer = self.model.tokenizer(self._trust)
        return self._tokenizer

    def load(self, plan: Plan, allow_nonfinite: bool = False) -> None:
        """Merge, and copy every tensor into the model. Raises any WorkerError."""
        import torch

        from ..engine.tensor_stream import tensor_stream
        from ..system.machine import usable_cpus

        waiting = [set(parameter.needs) for parameter in self._parameters]
        left = {name: len(users) for name, users in self._users.items()}
        try:
            with torch.no_grad():
                for name, (tensor,) in tensor_stream([plan], self._device, allow_nonfinite):
                    if tensor is None or name not in self._users:
                        continue
                    self._store[name] = tensor.reshape(-1)
                    del tensor
                    for number in self._users[name]:
                        waiting[number].discard(name)
                        if not waiting[number]:
                            self._fill(self._parameters[number], left)
            if missing := sorted(set().union(*waiting)):
                raise InputError(f"the merge has no {first_names(missing)}, which its class needs")
        finally:
            self._store.clear()
            self.model.weights.release()
            # Merging has one thread for each lane, a model has all of them.
            torch.set_num_threads(usable_cpus())

    def _fill(self, parameter: _Parameter, left: dict[str, int]) -> None:
        """Copy the merged tensors of a parameter into it, and drop those that no other needs."""
        memory, source = parameter.memory, parameter.source
        tensor = self.model.weights.checkpoint.tensors[source]
        if isinstance(tensor, _Arriving):
            memory.copy_(self._store[tensor.stored].view(memory.shape))
        else:
            for name in parameter.needs:  # rearranged on the host
                self._store[name] = self._store[name].cpu()
            memory.copy_(self.model.weights.tensor(source))
        for name in parameter.needs:
            left[name] -= 1
            if not left[name]:
                del self._store[name]

    def perplexity(self, data: Path) -> float:
        """Return the perplexity on a file, as the command of this name defines it."""
        import math

        nats, tokens = 0.0, 0
        for ids, labels in self._batches(data):
            found = self._losses(ids, labels)
            nats += found[0]
            tokens += found[1]
        return math.exp(min(nats / tokens, 700.0)) if math.isfinite(nats) else math.nan

    def _batches(self, data: Path) -> Iterator[tuple[Tensor, Tensor]]:
        from ..inference.texts import batches, cut, encode, read_samples

        samples = [encode(sample, self.tokenizer) for sample in read_samples(data)]
        windows = [w for n, sample in enumerate(samples) for w in cut(n, sample, LENGTH)]
        if not windows:
            raise InputError(f"{data}: no sample has two tokens, of which one is predicted")
        rows = self.model.vocabulary_size
        if (most := max(max(window.ids) for window in windows)) >= rows:
            raise InputError(
                f"the tokenizer of the merge has token {most}, its embedding {rows} rows"
            )
        for batch in batches(windows, BATCH_TOKENS):
            yield batch.ids, batch.labels

    def _losses(self, ids: Tensor, labels: Tensor) -> tuple[float, int]:
        """Return the sum of the losses of a batch in nats, and how many tokens count."""
        import torch

        from ..inference.texts import IGNORED

        device = self.model.device
        with torch.inference_mode():
            logits = self.model.module(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
            wanted = labels[:, 1:].to(device)
            mask = wanted != IGNORED
            logits, wanted = logits[mask], wanted[mask]
            rows, total = max(1, LOGITS_AT_ONCE // logits.shape[-1]), 0.0
            for first in range(0, len(wanted), rows):
                part = logits[first : first + rows].float()
                losses = torch.nn.functional.cross_entropy(
                    part, wanted[first : first + rows], reduction="none"
                )
                total += float(losses.double().sum())
        return total, len(wanted)


def _kind(plan: Plan) -> tuple[object, ...]:
    """Return all that a model depends on beside its weights."""
    shapes = tuple((step.name, step.shape, step.dtype) for step in plan.steps_in_files())
    files = tuple(sorted((n, str(c)) for n, c in side_files(plan).items() if is_tokenizer_file(n)))
    return json.dumps(final_config(plan), sort_keys=True, default=str), shapes, files


def _files(plan: Plan, config: dict[str, Any]) -> SideFiles:
    """Return the tokenizer and config that the merge would have beside its weights."""
    contents = {
        name: content if isinstance(content, bytes) else content.read_bytes()
        for name, content in side_files(plan).items()
        if is_tokenizer_file(name) or name.endswith(".py")
    }
    return SideFiles(None, {**contents, CONFIG: json.dumps(config).encode()})


def _leaves(source: TensorSource) -> Iterator[str]:
    """Yield the names of the merged tensors that a source is made from."""
    if isinstance(source, _Arriving):
        yield source.stored
    elif isinstance(source, DerivedTensor):
        for inner in source.inputs:
            yield from _leaves(inner)
