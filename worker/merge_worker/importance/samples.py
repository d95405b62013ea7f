"""A model and its samples, one sequence each, as passes over the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..inference.layerwise import Call, LayerPass
from ..inference.model import Model
from ..inference.texts import IGNORED, Window, cut, encode, read_samples

CHUNK = 16
"""Samples whose hidden states are in memory together until they are in a file."""


def read_windows(path: Path, model: Model, samples: int, length: int, trust: bool) -> list[Window]:
    """Return the first tokens of the first samples of a file: at most `length` tokens of each.

    Samples without a token whose loss counts are left out. InputError if none is left.
    """
    tokenizer = model.tokenizer(trust)
    found: list[Window] = []
    for number, sample in enumerate(read_samples(path)):
        if len(found) == samples:
            break
        found += cut(number, encode(sample, tokenizer), length)[:1]
    if not found:
        raise InputError(f"{path}: no sample of two tokens or more; give longer texts")
    return found


class Sample(NamedTuple):
    """Tokens of one sequence, int64 [tokens], and the places whose next token counts."""

    ids: Tensor
    labels: Tensor
    places: Tensor

    @staticmethod
    def of(window: Window) -> Sample:
        ids, labels = (torch.tensor(values) for values in (window.ids, window.labels))
        places = (labels[1:] != IGNORED).nonzero().view(-1)
        return Sample(ids, labels, places)


class Run:
    """All samples of a model, each a batch of its own. Layers run one at a time.

    Raises InputError for a model whose layers cannot.
    """

    def __init__(self, model: Model, windows: Sequence[Window]) -> None:
        self.model = model
        self.samples = [Sample.of(window) for window in windows]
        set_experts = getattr(model.module, "set_experts_implementation", None)
        if set_experts is not None:  # one matrix product for each expert, which can be seen
            set_experts("eager")
        self._passes: list[LayerPass] = []

    @property
    def calls(self) -> list[Call]:
        return self._passes[0].calls

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the hidden states of each sample."""
        width = self.model.hidden_size
        return [(1, len(sample.ids), width) for sample in self.samples]

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    def begin(self, store: Callable[[int, Tensor], object] | None) -> None:
        """Record how layers are called. `store(sample, hidden)` gets the input of the first."""
        for first in range(0, len(self.samples), CHUNK):
            some = self.samples[first : first + CHUNK]
            states = LayerPass(self.model, [sample.ids[None] for sample in some])
            repeated = len({call.layer for call in states.calls}) < len(states.calls)
            if not states.separable:
                self._refuse(states.reason)
            if repeated or _share_weights(self.model):
                self._refuse("layers run more than once" if repeated else "layers share weights")
            for local, hidden in enumerate(states.hidden):
                if store is not None:
                    store(first + local, hidden)
            states.hidden = [hidden.new_empty(0) for hidden in states.hidden]
            self._passes.append(states)

    def refuse_gradients_past_layers(self) -> None:
        """Raise InputError if weights outside of the layers reach them beside the hidden states.

        What takes gradients when this is called counts. Their gradients would lack those ways.
        """
        if self._passes[0].takes_gradients(0):
            self._refuse("layers take more from the embeddings than hidden states")

    def _refuse(self, reason: str) -> None:
        raise InputError(
            f"{self.model.label}: its layers cannot run one at a time ({reason}), which "
            f"measuring it layer by layer takes"
        )

    def apply(self, call: Call, sample: int, hidden: Tensor) -> Tensor:
        """Return the output of a loaded layer for a sample."""
        return self._passes[sample // CHUNK].apply(call, sample % CHUNK, hidden)

    def final(self, sample: int, hidden: Tensor) -> Tensor:
        """Return the input of the output head for the output of the last layer."""
        return self._passes[sample // CHUNK].final(sample % CHUNK, hidden)

    def entering(self, sample: int) -> Tensor:
        """Return the input of the first layer for a sample; it can be differentiated."""
        return self._passes[sample // CHUNK].entering(sample % CHUNK)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.samples)))


def _share_weights(model: Model) -> bool:
    """Return whether a tensor of the files belongs to several layers."""
    numbers = range(len(model.layers))
    sources = [{model.targets[n].source for n in model.names_of_layer(k)} for k in numbers]
    return len(set().union(*sources)) < sum(map(len, sources))
