"""Charts of a search, before they are drawn: what stands where, and in which words.

The score over the trials, with the best so far as a line and the parents as levels; the score
against each value; and for two numbers the plane of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..drawing.axes import Axis, choice_axis, number_axis
from .candidates import AVERAGE, PARENT, STANDS, TRIAL
from .results import DONE, Result

MOST_VALUES = 12
"""Charts of single values; a search over more of them is better read as a table."""
LEVEL_NAMES = {AVERAGE: "even average", STANDS: "recipe as it stands"}
LONGEST_NAME = 28
FEW_TICKS = 4


@dataclass(frozen=True)
class Mark:
    """A trial in a chart. `shade` is from 0, the worst score, to 1; None without colors."""

    x: float
    y: float
    text: str
    is_best: bool = False
    shade: float | None = None


@dataclass(frozen=True)
class Level:
    """The score of a parent or an average, drawn as a line across the chart."""

    name: str
    y: float
    kind: str


@dataclass(frozen=True)
class Chart:
    """One chart; `steps` are the corners of the line of the best so far."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    steps: tuple[tuple[float, float], ...] = ()
    levels: tuple[Level, ...] = ()
    shades: Axis | None = None
    """The scale of the colors, if marks have any."""


@dataclass(frozen=True)
class Charts:
    """All charts of a search. `notes` say what is not drawn."""

    progress: Chart
    values: tuple[Chart, ...] = ()
    plane: Chart | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def all(self) -> tuple[Chart, ...]:
        return (self.progress, *([self.plane] if self.plane else []), *self.values)


def charts_of(results: Sequence[Result], maximizes: bool, score: str) -> Charts:
    """Return the charts of these results; `score` is what the scores are called."""
    trials = [r for r in results if r.kind == TRIAL and r.score is not None and r.state == DONE]
    levels = tuple(_levels(results))
    best = _best(trials, maximizes)
    y = number_axis(score, [*(_score(r) for r in trials), *(level.y for level in levels)])
    values = {result.name: dict(_numbers(result.values)) for result in trials}
    names = list(dict.fromkeys(name for found in values.values() for name in found))
    drawn = _most_telling(names, trials, values) if len(names) > MOST_VALUES else names
    charts = [_against(name, trials, values, y, best) for name in drawn]
    notes = []
    if len(drawn) < len(names):
        notes.append(f"the {len(drawn)} values that go most with the score, of {len(names)}")
    failed = sum(r.kind == TRIAL and r.score is None for r in results)
    if failed:
        notes.append(f"{failed} trial{'s' * (failed > 1)} without a score")
    plane = None
    if len(names) == 2 and trials and not any(_is_choice(name, values) for name in names):
        plane = _plane(names, trials, values, (score, maximizes), best)
    progress = _progress(trials, y, levels, best, maximizes)
    return Charts(progress, tuple(charts), plane, tuple(notes))


def _score(result: Result) -> float:
    return float(result.score or 0.0)


def _best(trials: Sequence[Result], maximizes: bool) -> str | None:
    ordered = sorted(trials, key=lambda r: (-_score(r) if maximizes else _score(r), r.trial or 0))
    return ordered[0].name if ordered else None


def _levels(results: Sequence[Result]) -> Iterator[Level]:
    for result in results:
        if result.kind != TRIAL and result.score is not None and result.state == DONE:
            name = result.name.removeprefix(f"{PARENT}-")
            name = LEVEL_NAMES.get(result.kind, name)
            if len(name) > LONGEST_NAME:
                name = f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
            yield Level(name, _score(result), result.kind)


def _text(result: Result) -> str:
    values = ", ".join(f"{name} {_shown(value)}" for name, value in result.values.items())
    return f"{result.name}: {_score(result):.6g}" + (f" ({values})" if values else "")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _progress(
    trials: Sequence[Result],
    y: Axis,
    levels: tuple[Level, ...],
    best: str | None,
    maximizes: bool,
) -> Chart:
    numbers = [float(r.trial or 0) for r in trials]
    marks, steps, record = [], list[tuple[float, float]](), None
    for number, result in zip(numbers, trials, strict=True):
        score = _score(result)
        marks.append(Mark(number, score, _text(result), result.name == best))
        better = record is None or (score > record if maximizes else score < record)
        if record is not None:
            steps.append((number, record))
        if better:
            record = score
            steps.append((number, score))
    x = number_axis("trial", [0.0, max(numbers, default=1.0)])
    x = Axis(x.label, x.low, x.high, False, tuple(t for t in x.ticks if float(t[0]).is_integer()))
    return Chart("Score over trials", x, y, tuple(marks), tuple(steps), levels)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the values of a trial by name; a gradient is one value for each of its points."""
    for name, value in values.items():
        if isinstance(value, list) and value and all(map(_is_number, value)):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value))
        else:
            yield name, value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


Values = Mapping[str, Mapping[str, Any]]
"""The values of trials, by the name of the trial and of the value."""


def _is_choice(name: str, values: Values) -> bool:
    return not all(_is_number(found[name]) for found in values.values() if name in found)


def _position(name: str, values: Values, ticks: int = 6) -> tuple[Axis, dict[str, float]]:
    """Return the axis of a value, and where each trial stands on it."""
    own = {trial: found[name] for trial, found in values.items() if name in found}
    if not _is_choice(name, values):
        return number_axis(name, own.values(), ticks), {t: float(v) for t, v in own.items()}
    texts = {trial: _shown(value) for trial, value in own.items()}
    choices = sorted(set(texts.values()))
    return choice_axis(name, choices), {t: float(choices.index(v)) for t, v in texts.items()}


def _against(
    name: str, trials: Sequence[Result], values: Values, y: Axis, best: str | None
) -> Chart:
    x, where = _position(name, values, FEW_TICKS)
    marks = tuple(
        Mark(where[r.name], _score(r), _text(r), r.name == best) for r in trials if r.name in where
    )
    return Chart(name, x, y, marks)


def _plane(
    names: Sequence[str],
    trials: Sequence[Result],
    values: Values,
    score: tuple[str, bool],
    best: str | None,
) -> Chart:
    (x, along), (y, up) = (_position(name, values) for name in names)
    shades = number_axis(score[0], [_score(r) for r in trials])
    marks = [
        Mark(along[r.name], up[r.name], _text(r), r.name == best, shades.fraction(_score(r)))
        for r in trials
        if r.name in along and r.name in up
    ]
    # The best ones last, so that others do not cover them.
    marks.sort(key=lambda m: (m.is_best, (m.shade or 0) if score[1] else -(m.shade or 0)))
    return Chart("Both values", x, y, tuple(marks), shades=shades)


def _most_telling(names: Sequence[str], trials: Sequence[Result], values: Values) -> list[str]:
    """Return the values that go most with the score, in their order."""
    from .soups import correlation

    strength = {}
    for name in names:
        _, where = _position(name, values)
        known = [r for r in trials if r.name in where]
        pairs = [where[r.name] for r in known], [_score(r) for r in known]
        strength[name] = abs(correlation(*pairs)) if len(known) > 1 else 0.0
    kept = sorted(names, key=lambda name: -strength[name])[:MOST_VALUES]
    return [name for name in names if name in kept]
