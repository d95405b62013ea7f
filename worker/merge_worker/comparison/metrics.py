"""The columns of tables and plots: figures of every model and pair, or their least and most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .figures import Facts
from .models import Models

FEW = 3
"""Models, and pairs of them, with one panel each in a plot."""


UNITS = {
    "moved": "task vector / base",
    "apart": "distance / mean length",
    "cosine": "cosine",
    "conflicts": "share of opposite signs",
    "unchanged": "share of unchanged elements",
    "equal": "share of equal elements",
    "from": "distance / mean length",
    "equal to": "share of equal elements",
    "rank": "effective rank",
}
"""Labels of the color bars."""


class Scale(Enum):
    """The kind of color scale for the values of a figure."""

    MAGNITUDE = "magnitude"  # from 0 up; logarithmic if they span orders of magnitude
    SHARE = "share"  # 0 to 1
    SIGNED = "signed"  # -1 to 1, 0 is neutral
    CHANCE = "chance"  # 0 to 1; chance gives a half


Subject = tuple[str, tuple[int, int]]
"""A label, and the indices of the two models that are compared."""
Figure = Callable[[Facts, int, int], float]


class _Group(NamedTuple):
    """Columns of one figure: one for each subject, or summaries such as `least` if too many."""

    name: str
    subjects: list[Subject]
    scale: Scale
    figure: Figure
    summaries: tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """A column of figures; columns of one `group` share a color scale."""

    group: str
    subject: str  # a model, a pair, or "least", "mean" or "most" of all
    scale: Scale
    value: Callable[[Facts], float]
    percent: bool

    @property
    def title(self) -> str:
        return f"{self.group} {self.subject}".strip()

    def text(self, facts: Facts) -> str:
        """Return the formatted value; `-` if it is NaN."""
        return shown(self.value(facts), self.percent)


def shown(value: float, percent: bool) -> str:
    """Format a value with at most three significant digits, and `%` for a percentage."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "inf"
    if percent:
        value *= 100
    size = abs(value)
    value = value if size >= 0.0005 or percent else 0.0  # no minus before zeros
    if percent and 0 < size < 0.01:
        text = f"{value:.0e}"
    elif percent:
        text = f"{value:.2f}" if size < 10 else f"{value:.1f}"
    else:
        text = f"{value:.3f}" if size < 1 else f"{value:.1f}" if size < 100 else f"{value:.0f}"
    return f"{text}%" if percent else text


GROUPS = {
    "moved": "length of the task vector over that of the base",
    "apart": "distance of two models over their mean length",
    "cosine": "cosine between the task vectors, or the weights without a base",
    "conflicts": "opposite signs, among the elements both changed (or nonzero in both)",
    "unchanged": "elements equal to those of the base",
    "equal": "elements that two models share",
    "from": "distance of the result from an input, over their mean length (that of the base)",
    "equal to": "elements of the result equal to those of an input",
    "rank": "estimated effective rank of the change of the largest matrix",
}


def metrics(models: Models, few: int = FEW) -> list[Metric]:
    """Return the columns for these models; for more than `few`, only their least, mean or most."""
    base = models.has_base
    singles = [(models.labels[i], (0, i)) for i in models.own]
    pairs = [(f"{models.labels[i]}, {models.labels[j]}", (i, j)) for i, j in models.pairs]
    moves = singles if base else pairs
    signs = Scale.CHANCE if base else Scale.SHARE
    groups = [
        _Group("moved" if base else "apart", moves, Scale.MAGNITUDE, _relative, ("least", "most")),
        _Group("cosine", pairs, Scale.SIGNED, _cosine, ("least", "mean")),
        _Group("conflicts", pairs, signs, _conflict, ("mean",)),
        _Group("unchanged" if base else "equal", moves, Scale.SHARE, _equal, ("least", "most")),
        _Group("rank", moves, Scale.MAGNITUDE, _rank, ("least", "most")),
    ]
    return _columns(groups, few)


def merged_metrics(models: Models, few: int = FEW + 1) -> list[Metric]:
    """Return the columns for the inputs of a merge and its result, the last of the models."""
    out = len(models.labels) - 1
    inputs = [(models.labels[i], (i, out)) for i in range(out)]
    own = [pair for pair in inputs if pair[1][0] in models.own]
    groups = [
        _Group("from", inputs, Scale.MAGNITUDE, _relative, ("least", "most")),
        _Group("cosine", own, Scale.SIGNED, _cosine, ("least", "most")),
        _Group("equal to", inputs, Scale.SHARE, _equal, ("least", "most")),
    ]
    return _columns(groups, few)


def _columns(groups: list[_Group], few: int) -> list[Metric]:
    columns: list[Metric] = []
    for name, subjects, scale, figure, summaries in groups:
        if len(subjects) > few:
            pairs = [pair for _, pair in subjects]
            values = [(word, _summary(figure, pairs, word)) for word in summaries]
        else:
            # A single pair needs no names.
            unnamed = len(subjects) == 1 and "," in subjects[0][0]
            values = [("" if unnamed else label, _of(figure, pair)) for label, pair in subjects]
        columns += [Metric(name, label, scale, value, name in _PERCENT) for label, value in values]
    return columns


def _cosine(facts: Facts, i: int, j: int) -> float:
    return facts.cosine[i][j]


def _conflict(facts: Facts, i: int, j: int) -> float:
    return facts.conflict[i][j]


def _equal(facts: Facts, i: int, j: int) -> float:
    return facts.equal[i][j]


def _relative(facts: Facts, i: int, j: int) -> float:
    return facts.relative[i][j]


def _rank(facts: Facts, i: int, j: int) -> float:
    return facts.ranks.get((i, j), math.nan)


_PERCENT = {"moved", "apart", "conflicts", "unchanged", "equal", "from", "equal to"}


def _of(figure: Figure, pair: tuple[int, int]) -> Callable[[Facts], float]:
    return lambda facts: figure(facts, *pair)


def _summary(figure: Figure, pairs: list[tuple[int, int]], word: str) -> Callable[[Facts], float]:
    """Return a function for the least, the most or the mean of the pairs that have the figure."""
    summaries: dict[str, Callable[[list[float]], float]] = {"least": min, "most": max, "mean": mean}
    summarize = summaries[word]

    def value(facts: Facts) -> float:
        numbers = [v for i, j in pairs if not math.isnan(v := figure(facts, i, j))]
        return summarize(numbers) if numbers else math.nan

    return value


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN without values."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan
