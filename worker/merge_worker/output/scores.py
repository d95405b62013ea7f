"""Evaluations as values: numbers with standard errors, of a merge and of its inputs. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOLD = 2.0
"""Standard errors above which a difference is marked."""


@dataclass(frozen=True)
class Number:
    """A measured value and its standard error, if that is known."""

    value: float
    stderr: float | None = None

    def json(self) -> dict[str, float | None]:
        return {"value": _finite(self.value), "stderr": _finite(self.stderr)}

    def text(self) -> str:
        """Return the value as tables show it: `0.6120 ± 0.0140`."""
        error = _finite(self.stderr)
        return _digits(self.value) + ("" if error is None else f" ± {_digits(error)}")


@dataclass(frozen=True)
class Score:
    """One metric of one task: of the merge, and of its inputs by their public names.

    `paired` has standard errors of differences to an input, by its name, where both were measured
    on the same samples; else the two are taken as independent. `dataset` adds fields to the data
    set in the front matter of the card.
    """

    task: str
    metric: str
    merged: Number
    parents: Mapping[str, Number] = field(default_factory=dict)
    higher_is_better: bool | None = None
    paired: Mapping[str, float] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)

    def best_parent(self) -> str | None:
        """Return the name of the best input; None if there is none, or better is not defined."""
        known = {name: n.value for name, n in self.parents.items() if math.isfinite(n.value)}
        if not known or self.higher_is_better is None:
            return None
        return (max if self.higher_is_better else min)(known, key=lambda name: known[name])

    def gain(self) -> Number | None:
        """Return the merge's score minus the best input's, with its standard error, or None."""
        best = self.best_parent()
        if best is None:
            return None
        other, errors = self.parents[best], (self.merged.stderr, self.parents[best].stderr)
        error = self.paired.get(best)
        if error is None and None not in errors:
            error = math.hypot(*(float(e or 0.0) for e in errors))
        return Number(self.merged.value - other.value, error)

    def is_told(self) -> bool:
        """Return whether the difference to the best input exceeds TOLD standard errors."""
        gain = self.gain()
        return (
            gain is not None and bool(gain.stderr) and abs(gain.value) > TOLD * (gain.stderr or 0)
        )

    def json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "metric": self.metric,
            **self.merged.json(),
            "higher_is_better": self.higher_is_better,
            "parents": {name: number.json() for name, number in self.parents.items()},
            **({"paired_stderr": dict(self.paired)} if self.paired else {}),
            **({"dataset": dict(self.dataset)} if self.dataset else {}),
        }


@dataclass(frozen=True)
class Evaluation:
    """One run of an evaluation. Its kind and its settings say what was measured.

    `summary` is a sentence for the card. `facts` are kept in `evaluation.json` alone. `source` has
    the name and address of the program that measured.
    """

    kind: str
    settings: Mapping[str, Any]
    scores: Sequence[Score] = ()
    summary: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    in_card: bool = True

    def json(self) -> dict[str, Any]:
        """Return the entry in `evaluation.json`, without paths of this machine in names."""
        return {
            "kind": self.kind,
            "settings": without_paths(dict(self.settings)),
            "in_card": self.in_card,
            "source": dict(self.source),
            "summary": self.summary,
            "scores": [without_paths(score.json()) for score in self.scores],
            "facts": _finite_json(dict(self.facts)),
        }


@dataclass(frozen=True)
class Outcome:
    """The result of a step after a merge: its text, and the evaluation to record.

    With `faults`, each a line, nothing is recorded.
    """

    evaluation: Evaluation
    text: str
    faults: Sequence[str] = ()


def same_measurement(run: Mapping[str, Any], kind: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a run of `evaluation.json` is of a kind and has these settings."""
    plain = json.loads(json.dumps(without_paths(dict(settings))))
    return bool(run["kind"] == kind and run["settings"] == plain)


def score_of(value: Mapping[str, Any]) -> Score:
    """Return the score of an entry in `evaluation.json`."""
    return Score(
        value["task"],
        value["metric"],
        _number(value),
        {name: _number(number) for name, number in value["parents"].items()},
        value["higher_is_better"],
        value.get("paired_stderr", {}),
        value.get("dataset", {}),
    )


def without_paths(value: Any) -> Any:
    """Return a JSON value with every path of this machine in it reduced to its last part."""
    if isinstance(value, dict):
        return {_last_part(str(key)): without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return _last_part(value) if isinstance(value, str) else value


def _last_part(text: str) -> str:
    is_path = re.match(r"(~|\.{1,2})?/", text) is not None
    return (Path(text).name or "/") if is_path else text


def _number(value: Mapping[str, Any]) -> Number:
    given = value["value"]
    return Number(math.nan if given is None else float(given), value["stderr"])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _finite_json(value: Any) -> Any:
    """Return a JSON value with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_json(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _digits(value: float) -> str:
    size = abs(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    if size and (size >= 1e5 or size < 1e-3):
        return f"{value:.3g}"
    return f"{value:.{4 if size < 10 else 2}f}"
