"""Results of a merge and of its inputs as scores, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merge_worker.output.scores import TOLD, Evaluation, Score

from .harness import URL, Harness, dataset, metrics, version


def scores_of(merged: Mapping[str, Any], parents: Mapping[str, Mapping[str, Any]]) -> list[Score]:
    """Return a score for each metric of the merge, with that of each input that has it."""
    others = {
        name: {(metric.task, metric.name): metric.number for metric in metrics(value)}
        for name, value in parents.items()
    }
    return [
        Score(
            metric.task,
            metric.name,
            metric.number,
            {
                name: numbers[metric.task, metric.name]
                for name, numbers in others.items()
                if (metric.task, metric.name) in numbers
            },
            metric.higher_is_better,
            dataset=dataset(merged, metric.task),
        )
        for metric in metrics(merged)
    ]


def evaluation_of(
    harness: Harness, merged: Mapping[str, Any], scores: Sequence[Score], in_card: bool
) -> Evaluation:
    """Return the entry in `evaluation.json`."""
    name = f"lm-evaluation-harness {version(merged)}".rstrip()
    facts = {
        key: merged.get(key) for key in ("n-samples", "versions", "task_hashes") if key in merged
    }
    return Evaluation(
        "lm-eval",
        harness.settings(),
        scores,
        facts=facts,
        source={"name": name, "url": URL},
        in_card=in_card,
    )


def rows_of(scores: Sequence[Score], base: str | None) -> list[dict[str, object]]:
    """Return a row for each score; `difference` is to the best input, marked above two errors."""
    rows: list[dict[str, object]] = []
    for score in scores:
        gain, best = score.gain(), score.best_parent()
        sign = "+" if gain and gain.value > 0 else ""
        mark = " *" if score.is_told() else ""
        parents = {
            f"{name} (base)" if name == base else name: number.text()
            for name, number in score.parents.items()
        }
        rows.append(
            {
                "task": score.task,
                "metric": score.metric,
                "merged": score.merged.text(),
                **parents,
                "best input": best or "",
                "difference": f"{sign}{gain.text()}{mark}" if gain else "",
            }
        )
    return rows


NOTE = f"* more than {TOLD:g} standard errors from the best input"
