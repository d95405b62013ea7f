"""Which experts tokens of some texts reach, measured in the finished mixture, layer by layer.

The mixture runs as it is, with one layer in memory at a time, in the dtype of its files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..inference.layerwise import LayerPass
from ..inference.model import Model
from .mixture import Router, chosen, config_section, find_routers, is_sigmoid, scores

TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class Group:
    """Texts that belong together: a name, and the ids of each. `expert` is theirs, if they have."""

    name: str
    texts: tuple[tuple[int, ...], ...]
    expert: int | None = None


@dataclass(frozen=True)
class Routing:
    """How many tokens of each group reach each expert, and have it as their first choice.

    `reached` and `first` are [layers][groups][experts]; `tokens` has the tokens of each group.
    """

    groups: tuple[Group, ...]
    tokens: tuple[int, ...]
    top_k: int
    reached: list[list[list[int]]]
    first: list[list[list[int]]]

    @property
    def experts(self) -> int:
        return len(self.reached[0][0])

    def share(self, group: int, expert: int, first: bool = False) -> float:
        """Return the share of a group's tokens that reach an expert, as a mean over layers."""
        counts = self.first if first else self.reached
        total = sum(layer[group][expert] for layer in counts)
        return total / (len(counts) * self.tokens[group])

    def entropies(self, group: int) -> list[float]:
        """Return for each layer the entropy of a group's choices: 0 for one expert, 1 for evenly.

        One expert for all tokens is 0 only where a token reaches one.
        """
        return [_entropy(layer[group]) for layer in self.reached]


def _entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    parts = [count / total for count in counts if count]
    return abs(sum(p * math.log(p) for p in parts)) / math.log(len(counts))


def measure(model: Model, groups: Sequence[Group], config: Mapping[str, Any]) -> Routing:
    """Run all texts through a mixture. Raises InputError for a model without routers."""
    section = config_section(config)
    tally = _Tally(model, groups, section)
    states = LayerPass(model, [ids for ids, _ in tally.batches])
    tally.states = states
    handles = tally.attach()
    try:
        states.run()
    finally:
        for handle in handles:
            handle.remove()
    tokens = tuple(sum(map(len, group.texts)) for group in groups)
    return Routing(tuple(groups), tokens, tally.top_k, tally.reached, tally.first)


class _Tally:
    """Counts choices as hooks on routers see them."""

    def __init__(self, model: Model, groups: Sequence[Group], section: Mapping[str, Any]) -> None:
        self.model, self.section, self.sigmoid = model, section, is_sigmoid(section)
        self.batches = _batches(groups)
        self.found = [(layer, r) for layer in model.layers for r in self._routers(layer)]
        if not self.found:
            raise InputError(f"{model.label}: no router found in {type(model.module).__name__}")
        self.top_k = self.found[0][1].top_k
        empty = [[0] * self.found[0][1].experts for _ in groups]
        self.reached = [[list(row) for row in empty] for _ in self.found]
        self.first = [[list(row) for row in empty] for _ in self.found]
        self.states: LayerPass | None = None

    def _routers(self, layer: nn.Module) -> list[Router]:
        return find_routers(layer, self.section, False)

    def attach(self) -> list[Any]:
        return [
            router.module.register_forward_pre_hook(self._hook(number, layer, router.name))
            for number, (layer, router) in enumerate(self.found)
        ]

    def _hook(self, number: int, layer: nn.Module, name: str) -> Any:
        def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # Weights are there only while the layer is loaded, as other parameters than before.
            router = next(r for r in self._routers(layer) if r.name == name)
            assert self.states is not None
            _, owners = self.batches[self.states.batch]
            x = args[0].reshape(-1, args[0].shape[-1])
            picked = chosen(router, scores(router, x, self.sigmoid)).cpu()
            picked = picked.view(len(owners), -1, router.top_k)
            for group, rows in zip(owners, picked, strict=True):
                _add(self.reached[number][group], rows)
                _add(self.first[number][group], rows[:, 0])

        return count


def _add(counts: list[int], picked: Tensor) -> None:
    for expert, count in enumerate(torch.bincount(picked.reshape(-1), minlength=len(counts))):
        counts[expert] += int(count)


def _batches(groups: Sequence[Group]) -> list[tuple[Tensor, list[int]]]:
    """Return texts of one length together, with the number of the group of each."""
    by_length: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for number, group in enumerate(groups):
        for ids in group.texts:
            by_length.setdefault(len(ids), []).append((ids, number))
    batches = []
    for length, pairs in sorted(by_length.items()):
        count = max(1, TOKENS_AT_ONCE // length)
        for start in range(0, len(pairs), count):
            some = pairs[start : start + count]
            batches.append((torch.tensor([ids for ids, _ in some]), [owner for _, owner in some]))
    return batches
