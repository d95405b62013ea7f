"""The columns of tables and plots: figures of every model and pair, or their least and most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from .figures import Facts, Matrix
from .models import Models

FEW = 3
"""Models, and pairs of them, with one panel each in a plot."""


class Figure(NamedTuple):
    """A figure of two models, and the label of its color bar."""

    label: str
    matrix: Callable[[Facts], Matrix]
    percent: bool = True


FIGURES = {
    "moved": Figure("task vector / base", lambda facts: facts.relative),
    "apart": Figure("distance / mean length", lambda facts: facts.relative),
    "cosine": Figure("cosine", lambda facts: facts.cosine, percent=False),
    "conflicts": Figure("share of opposite signs", lambda facts: facts.conflict),
    "unchanged": Figure("share of unchanged elements", lambda facts: facts.equal),
    "equal": Figure("share of equal elements", lambda facts: facts.equal),
    "from": Figure("distance / mean length", lambda facts: facts.relative),
    "equal to": Figure("share of equal elements", lambda facts: facts.equal),
    "rank": Figure("effective rank", lambda facts: facts.ranks, percent=False),
}

LEGENDS = {
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


class Scale(Enum):
    """The kind of color scale for the values of a figure."""

    MAGNITUDE = "magnitude"  # from 0 up; logarithmic if they span orders of magnitude
    SHARE = "share"  # 0 to 1
    SIGNED = "signed"  # -1 to 1, 0 is neutral
    CHANCE = "chance"  # 0 to 1; chance gives a half


Pair = tuple[int, int]
"""The indices of the two models that are compared."""
Summary = Callable[[Sequence[float]], float]


class _Group(NamedTuple):
    """Columns of one figure: one for each subject, or summaries such as `least` if too many."""

    name: str
    subjects: list[tuple[str, Pair]]
    scale: Scale
    summaries: tuple[str, ...] = ("least", "most")


@dataclass(frozen=True)
class Metric:
    """A column of figures of one pair, or summarized over several."""

    group: str  # a key of FIGURES; columns of one group share a color scale
    subject: str  # a model, a pair, or "least", "mean" or "most" of all
    scale: Scale
    pairs: Sequence[Pair]
    summarize: Summary = max

    @property
    def title(self) -> str:
        return f"{self.group} {self.subject}".strip()

    @property
    def panel(self) -> str:
        """The lines of its title in a plot: the subject, or of how many it is the least."""
        if len(self.pairs) == 1:
            return self.subject
        kind = (
            "pairs"
            if len(set(self.pairs[0]) | set(self.pairs[-1])) > 3 or self.group == "cosine"
            else "models"
        )
        return f"{self.subject} of\n{len(self.pairs)} {kind}"

    @property
    def percent(self) -> bool:
        return FIGURES[self.group].percent

    def value(self, facts: Facts) -> float:
        """Return the figure, summarized over the pairs that have it; NaN if none has."""
        matrix = FIGURES[self.group].matrix(facts)
        numbers = [matrix[i][j] for i, j in self.pairs if not math.isnan(matrix[i][j])]
        return self.summarize(numbers) if numbers else math.nan

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


def metrics(models: Models, few: int = FEW) -> list[Metric]:
    """Return the columns for these models; for more than `few`, only their least, mean or most."""
    base = models.has_base
    singles = [(models.labels[i], (0, i)) for i in models.own]
    pairs = [(f"{models.labels[i]}, {models.labels[j]}", (i, j)) for i, j in models.pairs]
    moves = singles if base else pairs
    signs = Scale.CHANCE if base else Scale.SHARE
    groups = [
        _Group("moved" if base else "apart", moves, Scale.MAGNITUDE),
        _Group("cosine", pairs, Scale.SIGNED, ("least", "mean")),
        _Group("conflicts", pairs, signs, ("mean",)),
        _Group("unchanged" if base else "equal", moves, Scale.SHARE),
        _Group("rank", moves, Scale.MAGNITUDE),
    ]
    return _columns(groups, few)


def merged_metrics(models: Models, few: int = FEW + 1) -> list[Metric]:
    """Return the columns for the inputs of a merge and its result, the last of the models."""
    out = len(models.labels) - 1
    inputs = [(models.labels[i], (i, out)) for i in range(out)]
    own = [pair for pair in inputs if pair[1][0] in models.own]
    groups = [
        _Group("from", inputs, Scale.MAGNITUDE),
        _Group("cosine", own, Scale.SIGNED),
        _Group("equal to", inputs, Scale.SHARE),
    ]
    return _columns(groups, few)


def _columns(groups: list[_Group], few: int) -> list[Metric]:
    summarize: dict[str, Summary] = {"least": min, "most": max, "mean": mean}
    columns: list[Metric] = []
    for name, subjects, scale, summaries in groups:
        if len(subjects) > few:
            pairs = [pair for _, pair in subjects]
            columns += [Metric(name, word, scale, pairs, summarize[word]) for word in summaries]
        else:
            # A single pair needs no names.
            unnamed = len(subjects) == 1 and "," in subjects[0][0]
            columns += [Metric(name, "" if unnamed else x, scale, [pair]) for x, pair in subjects]
    return columns


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN without values."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan
