"""The output head of a model in slices of the vocabulary: logits, and losses of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InputError
from .layerwise import LayerPass, logits_of
from .model import Model
from .texts import IGNORED

SLICE_BYTES = 32 << 20
"""Weights of the head that are in memory at a time."""

POSITIONS = 512
"""Positions whose logits are in memory at a time."""


class Slice(NamedTuple):
    """Rows [first, first + len(weight)) of the head, on the model's device."""

    first: int
    weight: Tensor
    bias: Tensor | None


class Head:
    """The head of an open model. Its rows are the vocabulary; tied ones are read as they are.

    Raises InputError for a model without a linear head.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        found = {
            target.name: name
            for name, target in model.targets.items()
            if target.module is model.head
        }
        if not isinstance(model.head, nn.Linear) or "weight" not in found:
            raise InputError(
                f"{model.label}: {type(model.module).__name__} has no linear output head, from "
                f"which the probabilities of tokens come"
            )
        self._weight = model.targets[found["weight"]]
        self._bias = model.targets[found["bias"]] if "bias" in found else None
        self.rows, self.width = model.weights.shape(self._weight.source)
        probe = torch.linspace(-40, 40, 8, device=model.device).to(model.dtype).view(1, 1, 8)
        with torch.no_grad():
            self.is_plain = torch.equal(logits_of(model, probe), probe)
        """Whether logits are the outputs of the head themselves, not capped or scaled."""

    @property
    def rows_at_once(self) -> int:
        return max(1, SLICE_BYTES // (self.width * self._weight.dtype.itemsize))

    def slices(self) -> Iterator[Slice]:
        """Read the head from the first row to the last, a slice at a time."""
        weights, device = self.model.weights, self.model.device
        bias = None
        if self._bias is not None:
            bias = weights.tensor(self._bias.source, self._bias.dtype).to(device)
        for first in range(0, self.rows, self.rows_at_once):
            stop = min(self.rows, first + self.rows_at_once)
            weight = weights.rows(self._weight.source, first, stop, self._weight.dtype)
            yield Slice(first, weight.to(device), None if bias is None else bias[first:stop])
            del weight

    def logits(self, hidden: Tensor, part: Slice) -> Tensor:
        """Return float32 logits (positions, rows of the slice) of final states (positions, width).

        They are rounded to the model's dtype before, as those of transformers are.
        """
        raw = nn.functional.linear(hidden, part.weight, part.bias)
        if not self.is_plain:
            raw = logits_of(self.model, raw.unsqueeze(0)).squeeze(0)
        return raw.float()


def token_losses(states: LayerPass, labels: Sequence[Tensor]) -> list[Tensor]:
    """Return the loss of every token of every batch in nats: float32 of the shape of the batch.

    `labels` are token ids of the shape of the batches; position t holds the token that position
    t - 1 predicts. Losses of IGNORED tokens and of each first token are 0. The hidden states of the
    pass are freed. Raises InputError for a token that is not a row of the head.
    """
    head = Head(states.model)
    wanted = [_wanted(batch, states.model) for batch in labels]
    for tokens, _ in wanted:
        if tokens.numel() and int(tokens.max()) >= head.rows:
            raise InputError(
                f"{states.model.label}: token id {int(tokens.max())}, but its head has {head.rows} "
                f"rows\n  the tokenizer does not belong to the weights"
            )
    with torch.no_grad():
        finals = []
        for number, (_, mask) in enumerate(wanted):
            finals.append(states.final(number)[:, :-1][mask])
            states.hidden[number : number + 1] = [finals[-1].new_empty(0)]
        return _losses(head, finals, wanted)


def _wanted(labels: Tensor, model: Model) -> tuple[Tensor, Tensor]:
    """Return the tokens that count, and the mask (sequences, tokens - 1) of their places."""
    later = labels[:, 1:].to(model.device)
    mask = later != IGNORED
    return later[mask], mask


def _losses(
    head: Head, finals: Sequence[Tensor], wanted: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    device = head.model.device
    totals = [torch.full((len(final),), -torch.inf, device=device) for final in finals]
    picked = [torch.zeros(len(final), device=device) for final in finals]
    for part in head.slices():
        for number, final in enumerate(finals):
            for begin in range(0, len(final), POSITIONS):
                some = slice(begin, begin + POSITIONS)
                logits = head.logits(final[some], part)
                tokens = wanted[number][0][some] - part.first
                here = ((tokens >= 0) & (tokens < logits.shape[1])).nonzero().squeeze(1)
                picked[number][some][here] = logits[here, tokens[here]]
                total = totals[number][some]
                torch.logaddexp(total, logits.logsumexp(1), out=total)
    results = []
    for number, (_, mask) in enumerate(wanted):
        losses = torch.zeros(mask.shape[0], mask.shape[1] + 1, device=device)
        losses[:, 1:][mask] = totals[number] - picked[number]
        results.append(losses.cpu())
    return results
