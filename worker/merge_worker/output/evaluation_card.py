"""Evaluations in the model card: `model-index` in its front matter, and a section with a table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..recipe.yaml_document import import_yaml
from .model_card import markdown
from .scores import TOLD, Score, score_of

BEGIN, END = "<!-- evaluation by merge-launch -->", "<!-- end of evaluation -->"
MOST_PARENTS = 4
"""Inputs with a column each; of more, the best one is shown."""

_FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?(?:\n|\Z)", re.MULTILINE | re.DOTALL)
_INDEX = re.compile(r"^model-index[ \t]*:.*\n(?:(?:[ \t-].*)?\r?\n)*", re.MULTILINE)
_AFTER = re.compile(r"^Everything else about this merge is in ", re.MULTILINE)


def card_with(card: str, runs: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return a card with the runs of `evaluation.json` that belong in it, and nothing else changed.

    An evaluation that the card has already is replaced.
    """
    shown = [run for run in runs if run["in_card"]]
    text = section(shown) if shown else ""
    return with_section(_with_index(card, shown, title), (BEGIN, END), text)


def _with_index(card: str, runs: Sequence[Mapping[str, Any]], title: str) -> str:
    """Replace `model-index` in the front matter."""
    results = [result for run in runs for result in _results(run)]
    yaml = import_yaml("the card")
    value = {"model-index": [{"name": title, "results": results}]}
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000) if results else ""
    match = _FRONT.match(card)
    if match is None:
        return f"---\n{text}---\n\n{card}" if text else card
    kept = _INDEX.sub("", match[1])
    return f"{card[: match.start(1)]}{kept}{text}{card[match.end(1) :]}"


def _results(run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield an entry of `model-index` for each task, with all its metrics."""
    by_task: dict[str, list[Score]] = {}
    for score in map(score_of, run["scores"]):
        if score.merged.json()["value"] is not None:
            by_task.setdefault(score.task, []).append(score)
    source = run["source"] if run["source"].get("url") else {}
    for task, scores in by_task.items():
        yield {
            "task": {"type": "text-generation", "name": "Text Generation"},
            "dataset": {"name": task, "type": task, **scores[0].dataset},
            "metrics": [
                {"type": s.metric, "value": s.merged.value, "name": s.metric, "verified": False}
                for s in scores
            ],
            **({"source": dict(source)} if source else {}),
        }


def with_section(card: str, marks: tuple[str, str], section: str) -> str:
    """Replace what is between marks, or insert it before the last paragraph of a merge's card.

    An empty section is removed.
    """
    begin, end = marks
    text = f"{begin}\n{section}\n{end}\n\n" if section else ""
    match = re.search(rf"{re.escape(begin)}.*?{re.escape(end)}\n*", card, re.DOTALL)
    if match:
        return f"{card[: match.start()]}{text}{card[match.end() :]}"
    if not text:
        return card
    match = _AFTER.search(card)
    if match:
        return f"{card[: match.start()]}{text}{card[match.start() :]}"
    return f"{card.rstrip()}\n\n{text.rstrip()}\n"


def section(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the section in Markdown: sentences, and one table for each run with scores."""
    parts = ["## Evaluation"]
    for run in runs:
        scores = [score_of(score) for score in run["scores"]]
        if run["summary"]:
            parts.append(markdown(run["summary"]))
        if scores:
            parts.append("\n".join(_table(scores)))
        if any(score.is_told() for score in scores):
            parts.append(f"In bold: more than {TOLD:g} standard errors from the best input.")
    return "\n\n".join(parts)


def _table(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
    parents = list(dict.fromkeys(name for score in scores for name in score.parents))
    columns = parents if len(parents) <= MOST_PARENTS else []
    heads = ["task", "metric", "merged", *map(markdown, columns)]
    heads += ["best input"] if parents and not columns else []
    heads += ["difference to the best input"] if parents else []
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|" + "---|" * (len(heads) - 2)
    for score in scores:
        cells = [markdown(score.task), markdown(score.metric), score.merged.text()]
        cells += [score.parents[n].text() if n in score.parents else "" for n in columns]
        best, gain = score.best_parent(), score.gain()
        if parents and not columns:
            cells.append(f"{markdown(best)}: {score.parents[best].text()}" if best else "")
        if parents:
            text = f"{'+' if gain.value > 0 else ''}{gain.text()}" if gain else ""
            cells.append(f"**{text}**" if score.is_told() else text)
        yield f"| {' | '.join(cells)} |"
