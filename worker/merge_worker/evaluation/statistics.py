"""Losses of windows: totals, perplexity, bits per byte, and differences between models. No torch.

All figures of a model are ratios of sums over windows, so that a long window weighs more than a
short one. The standard error of such a ratio is that of its linear form, with one window as the
unit that is drawn: tokens of one window depend on each other, windows are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import NamedTuple


class Loss(NamedTuple):
    """The loss of a window in nats, and the tokens and bytes of text that it is the loss of."""

    nats: float
    tokens: int
    nbytes: int


class Estimate(NamedTuple):
    """A figure and its standard error; None where one window is all there is."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Losses:
    """The losses of one model in the order of the windows."""

    label: str
    windows: tuple[Loss, ...]
    dtype: str = ""
    device: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(window.tokens for window in self.windows)

    @property
    def nbytes(self) -> int:
        return sum(window.nbytes for window in self.windows)

    @property
    def nats(self) -> Estimate:
        """Mean loss of a token in nats."""
        return ratio([w.nats for w in self.windows], [w.tokens for w in self.windows])

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss; infinite where float has no such number."""
        try:
            return math.exp(self.nats.value)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> Estimate:
        """Loss in bits for each byte of text, which does not depend on the tokenizer."""
        bits = [w.nats / math.log(2) for w in self.windows]
        return ratio(bits, [w.nbytes for w in self.windows])


def ratio(values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Return the sum of values over the sum of weights; NaN where the weights are all 0."""
    total, count = math.fsum(weights), len(values)
    if not total:
        return Estimate(math.nan, None)
    value = math.fsum(values) / total
    if count < 2:
        return Estimate(value, None)
    residuals = starmap(lambda v, w: (v - value * w) ** 2, zip(values, weights, strict=True))
    return Estimate(value, math.sqrt(math.fsum(residuals) * count / (count - 1)) / total)


def difference(losses: Losses, other: Losses, same_tokens: bool) -> Estimate:
    """Return the loss of a model minus that of another, window by window (paired).

    In nats for each token where both have the same tokens, else in bits for each byte of text.
    """
    pairs = list(zip(losses.windows, other.windows, strict=True))
    if same_tokens:
        return ratio([a.nats - b.nats for a, b in pairs], [a.tokens for a, _ in pairs])
    nbytes = [a.nbytes for a, _ in pairs]
    if nbytes == [b.nbytes for _, b in pairs]:
        return ratio([(a.nats - b.nats) / math.log(2) for a, b in pairs], nbytes)
    # Tokens at the borders of windows may differ by some bytes, which each loss is divided by.
    means = [
        (a.nats / max(1, a.nbytes) - b.nats / max(1, b.nbytes)) * a.nbytes / math.log(2)
        for a, b in pairs
    ]
    error = ratio(means, nbytes).error
    return Estimate(losses.bits_per_byte.value - other.bits_per_byte.value, error)


def best(models: Sequence[Losses], same_tokens: bool) -> int:
    """Return the number of the model with the least loss, the first of equal ones."""

    def loss(number: int) -> float:
        model = models[number]
        value = model.nats.value if same_tokens else model.bits_per_byte.value
        return math.inf if math.isnan(value) else value

    return min(range(len(models)), key=loss)
