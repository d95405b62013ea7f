"""Results of a search, read from the files of its candidates; optuna and torch stay out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..messages import printable
from ..output.files import write_file
from .candidates import AVERAGE, PARENT, SCORE, STANDS, TRIAL
from .choices import GREEDY
from .definition import MINIMIZE, Search

DONE, FAILED = "done", "failed"
VALIDATION, REPEAT = "validation.json", "repeat-{}.json"
ORDER = (PARENT, AVERAGE, STANDS, TRIAL)


@dataclass(frozen=True)
class Result:
    """A candidate that has a score, or failed with a message.

    `code` is the exit code that stands for the kind of failure. `same_as` is the candidate with the
    same recipe, whose score this is. `ended` is seconds since 1970; `merge_s` and `evaluate_s` are
    durations.
    """

    name: str
    kind: str
    state: str
    score: float | None = None
    stderr: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    code: int = 0
    trial: int | None = None
    same_as: str | None = None
    evaluation: str = ""
    ended: float = 0.0
    merge_s: float = 0.0
    evaluate_s: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.state == DONE and self.score is not None


@dataclass(frozen=True)
class Noise:
    """Further scores of one candidate."""

    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.scores) / len(self.scores)

    @property
    def spread(self) -> float | None:
        """Standard deviation of one score; None of fewer than two."""
        if len(self.scores) < 2:
            return None
        squares = math.fsum((score - self.mean) ** 2 for score in self.scores)
        return math.sqrt(squares / (len(self.scores) - 1))


def write_result(folder: Path, result: Result, name: str = SCORE) -> None:
    """Write a result into the folder of its candidate, whole or not at all."""
    text = json.dumps(asdict(result), indent=1, ensure_ascii=False)
    write_file(folder / name, text + "\n", durable=True)


def read_result(path: Path) -> Result | None:
    """Return the result in a file; None if it is not there, or no result."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        known = {key: value[key] for key in Result.__dataclass_fields__ if key in value}
        result = Result(**known)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    real = result.score is None or isinstance(result.score, int | float)
    return result if real and result.kind in ORDER else None


def read_results(out: Path) -> list[Result]:
    """Return the results of all candidates: parents, average, the recipe, then trials by number."""
    found = (read_result(path) for path in sorted(out.glob(f"*/{SCORE}")))
    results = [result for result in found if result is not None]
    return sorted(results, key=lambda r: (ORDER.index(r.kind), r.trial or 0, r.name))


def ranked(results: Iterable[Result], direction: str) -> list[Result]:
    """Return results with a score, the best first; of equal ones the earliest."""
    sign = 1.0 if direction == MINIMIZE else -1.0
    scored = [result for result in results if result.is_done]
    return sorted(
        scored, key=lambda r: (sign * (r.score or 0.0), ORDER.index(r.kind), r.trial or 0)
    )


def best_of(results: Iterable[Result], direction: str) -> Result | None:
    """Return the best candidate that is a merge; None if none has a score."""
    made = (result for result in results if result.kind != PARENT and result.same_as is None)
    return next(iter(ranked(made, direction)), None)


def best_parent(results: Iterable[Result], direction: str) -> Result | None:
    """Return the best parent; None if none has a score."""
    parents = (result for result in results if result.kind == PARENT)
    return next(iter(ranked(parents, direction)), None)


def noise_of(out: Path, name: str) -> Noise | None:
    """Return the further scores of a candidate, of `repeat`; None if there are none."""
    found = (read_result(path) for path in sorted((out / name).glob(REPEAT.format("*"))))
    scores = tuple(float(r.score) for r in found if r is not None and r.score is not None)
    return Noise(scores) if scores else None


def validation_of(out: Path, name: str) -> Result | None:
    """Return the result of `validate` for a candidate; None if there is none."""
    return read_result(out / name / VALIDATION)


def summary(search: Search, out: Path) -> list[str]:
    """Return lines about the best candidate: its gain over the best parent, and the noise."""
    results = read_results(out)
    best, parent = best_of(results, search.direction), best_parent(results, search.direction)
    trials = [result for result in results if result.kind == TRIAL]
    failed = sum(not result.is_done for result in trials)
    # Several workers try averages ahead that a greedy soup may not need.
    planned = "" if search.sampler == GREEDY else f" of {search.trials}"
    lines = [f"trials     {len(trials)}{planned}" + (f", {failed} failed" * bool(failed))]
    if best is None or best.score is None:
        return [*lines, "best       none: no candidate has a score yet"]
    noise = noise_of(out, best.name)
    values = ", ".join(f"{label} {_short(value)}" for label, value in best.values.items())
    lines.append(f"best       {best.name}: {_scored(best)}" + (f"  ({values})" if values else ""))
    if noise is not None:
        spread = "" if noise.spread is None else f", spread {noise.spread:.3g}"
        lines.append(f"repeated   {len(noise.scores)} times: mean {noise.mean:.6g}{spread}")
    if parent is not None and parent.score is not None:
        lines.append(f"parent     {parent.name}: {_scored(parent)}")
        lines += _gain(search, best, parent, noise)
    lines += _validated(search, out, best, results)
    return lines


def _gain(search: Search, best: Result, parent: Result, noise: Noise | None) -> list[str]:
    score = noise.mean if noise is not None else float(best.score or 0.0)
    gain = score - float(parent.score or 0.0)
    gain = gain if search.maximizes else -gain
    word = "better" if gain > 0 else "worse" if gain < 0 else "different"
    lines = [f"gain       {abs(gain):.4g} {word} than the best parent"]
    if gain <= 0:
        lines.append("WARNING: no candidate is better than the best parent")
        return lines
    limit = noise_limit(best, parent, noise)
    if limit is not None and gain < limit:
        lines.append(f"WARNING: within the noise: differences below {limit:.3g} mean nothing here")
    return lines


def noise_limit(best: Result, parent: Result, noise: Noise | None) -> float | None:
    """Return two standard errors of the difference to the best parent; None if unknown.

    The standard errors are those that the evaluation prints, else the spread of `repeat`, which is
    taken to be that of the parent too.
    """
    if best.stderr is not None and parent.stderr is not None:
        return 2.0 * math.hypot(best.stderr, parent.stderr)
    if noise is not None and noise.spread is not None:
        return 2.0 * noise.spread * math.sqrt(1.0 + 1.0 / len(noise.scores))
    return None


def _validated(search: Search, out: Path, best: Result, results: Sequence[Result]) -> list[str]:
    parents = [result.name for result in results if result.kind == PARENT]
    lines = []
    for name in (best.name, *parents):
        validated = validation_of(out, name)
        if validated is not None:
            shown = _scored(validated) if validated.is_done else f"failed: {validated.message}"
            lines.append(f"validated  {name}: {printable(shown)}")
    return lines


def _scored(result: Result) -> str:
    error = "" if result.stderr is None else f" ± {result.stderr:.2g}"
    return f"{result.score:.6g}{error}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)
