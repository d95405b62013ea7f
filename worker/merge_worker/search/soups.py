"""Weights from scores: which models go into an average. Values only; nothing is read or merged.

Greedy soup (arXiv:2203.05482): models in order of their own score, each kept if the average with
it scores better. The result is never worse than the best single model.

Experts of categories (arXiv:2511.13254): tasks whose scores rise and fall together over the models
form one group, the best model of each group goes into the average, and a search finds the weights.

Scores here are better if higher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

THRESHOLD = 0.5
"""Correlation from which two tasks belong to one group."""

Members = frozenset[int]
"""The models of an average, by index."""


@dataclass(frozen=True)
class GreedySoup:
    """The average so far: its models in the order they were added, and its score.

    `candidate` is the average whose score decides how it goes on; None at the end.
    """

    members: tuple[int, ...]
    score: float
    candidate: Members | None


def greedy_soup(
    singles: Sequence[float | None], scores: Mapping[Members, float | None]
) -> GreedySoup | None:
    """Replay the greedy soup over the scores that are known.

    `singles` are the scores of the models alone, `scores` those of averages; None or NaN where the
    evaluation failed, which keeps a model out. Returns None if no model has a score.
    """
    order = ranked(singles)
    if not order:
        return None
    members, best = [order[0]], float(singles[order[0]])  # type: ignore[arg-type]
    for model in order[1:]:
        candidate = frozenset((*members, model))
        if candidate not in scores:
            return GreedySoup(tuple(members), best, candidate)
        score = scores[candidate]
        if score is not None and score > best:  # false for NaN
            members.append(model)
            best = score
    return GreedySoup(tuple(members), best, None)


def ranked(singles: Sequence[float | None]) -> list[int]:
    """Return the models that have a score, the best first; of equal ones, the first given."""
    valid = [i for i, score in enumerate(singles) if score is not None and not math.isnan(score)]
    return sorted(valid, key=lambda i: (-float(singles[i]), i))  # type: ignore[arg-type]


def greedy_candidates(
    singles: Sequence[float | None], scores: Mapping[Members, float | None], most: int
) -> list[Members]:
    """Return up to `most` averages worth a score now, the one that decides the next step first.

    The others are needed if that one is rejected, or kept: workers that would wait try them.
    """
    found: dict[Members, None] = {}
    waiting = [dict(scores)]
    while waiting and len(found) < most:
        assumed = waiting.pop(0)
        soup = greedy_soup(singles, assumed)
        if soup is None or soup.candidate is None:
            continue
        found[soup.candidate] = None
        waiting.append({**assumed, soup.candidate: None})
        waiting.append({**assumed, soup.candidate: math.nextafter(soup.score, math.inf)})
    return list(found)


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Pearson's correlation; 0 where one of both is constant."""
    a, b = _centered(one), _centered(other)
    product = math.sqrt(math.fsum(x * x for x in a) * math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / product if product else 0.0


def task_groups(
    table: Sequence[Sequence[float]], threshold: float = THRESHOLD
) -> list[tuple[int, ...]]:
    """Return groups of tasks; `table` has the scores of every model, one row each, by task.

    Two tasks of different groups always correlate less than `threshold` over the models.
    """
    columns = list(zip(*table, strict=True))
    group = list(range(len(columns)))
    for i, j in combinations(range(len(columns)), 2):
        if group[i] != group[j] and correlation(columns[i], columns[j]) >= threshold:
            low, high = sorted((group[i], group[j]))
            group = [low if g == high else g for g in group]
    return [tuple(i for i, g in enumerate(group) if g == first) for first in sorted(set(group))]


@dataclass(frozen=True)
class Expert:
    """The best model of a group of tasks, both by index."""

    model: int
    tasks: tuple[int, ...]


def category_experts(
    table: Sequence[Sequence[float]], threshold: float = THRESHOLD
) -> list[Expert]:
    """Return the best model of each group of tasks, as `task_groups` makes them.

    In a group of several tasks the best has the highest mean of the scores in units of their
    standard deviation over the models, so that no task counts more for its scale.
    """
    columns = [_standardized(column) for column in zip(*table, strict=True)]
    experts = []
    for tasks in task_groups(table, threshold):
        sums = [math.fsum(columns[task][model] for task in tasks) for model in range(len(table))]
        # Sums of the same numbers in another order may differ in their last digits.
        best = next(i for i, s in enumerate(sums) if s >= max(sums) - 1e-12 * len(tasks))
        experts.append(Expert(best, tasks))
    return experts


def expert_models(experts: Sequence[Expert]) -> Iterator[int]:
    """Yield the models that are the best of at least one group, in the order of the models."""
    yield from sorted({expert.model for expert in experts})


def _centered(values: Sequence[float]) -> list[float]:
    # Equal values must have no spread, whatever their mean is rounded to.
    if len(set(values)) < 2:
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def _standardized(values: Sequence[float]) -> list[float]:
    centered = _centered(values)
    spread = math.sqrt(math.fsum(x * x for x in centered) / len(centered))
    return [x / spread for x in centered] if spread else centered
