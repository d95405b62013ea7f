"""The folder of a search → rows of a table: one for each candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merge_worker.search.candidates import LOCK, RECIPE, value_labels
from merge_worker.search.plot import draw_search
from merge_worker.search.results import Result, best_of, read_results, summary, validation_of

from ..errors import UsageError
from .jobs import SearchFile

Row = dict[str, Any]
SHOWN = ("candidate", "state", "score")


def rows(file: SearchFile) -> list[Row]:
    """Return a row for each candidate, those without a result last."""
    out = Path(file.merge.out)
    results = read_results(out)
    best = best_of(results, file.search.direction)
    labels = _labels(file, results)
    table = [_row(out, result, labels, best) for result in results]
    known = {result.name for result in results}
    for place in sorted(path.parent for path in out.glob(f"*/{RECIPE}")):
        if place.name not in known:
            state = "running" if (place / LOCK).exists() else "open"
            table.append({key: None for key in table[0]} if table else {})
            table[-1] |= {"candidate": place.name, "state": state, "score": None}
    return table


def _labels(file: SearchFile, results: list[Result]) -> list[str]:
    """Return the names of the values; those of experts are known from their results alone."""
    found = (label for result in results for label in result.values)
    return value_labels(file.search) if file.search.space else list(dict.fromkeys(found))


def _row(out: Path, result: Result, labels: list[str], best: Result | None) -> Row:
    is_best = best is not None and result.name == best.name
    row: Row = {
        "candidate": result.name,
        "state": f"{result.state}, best" if is_best else result.state,
        "score": result.score,
        "stderr": result.stderr,
    }
    row |= {label: result.values.get(label) for label in labels}
    row |= {path: value for path, value in result.parts.items() if len(result.parts) > 1}
    validated = validation_of(out, result.name)
    row["validated"] = None if validated is None else validated.score
    row |= {"same_as": result.same_as, "merge_s": result.merge_s, "evaluate_s": result.evaluate_s}
    return row | {"message": result.message or None, "folder": str(out / result.name)}


def columns(file: SearchFile, table: list[Row]) -> list[str]:
    """Return the columns that are shown: those with a value in some row."""
    labels = _labels(file, read_results(Path(file.merge.out)))
    wanted = [*SHOWN, "stderr", *labels, "validated", "message"]
    return [
        name for name in wanted if name in SHOWN or any(row.get(name) is not None for row in table)
    ]


def draw(file: SearchFile, plot: str) -> None:
    """Write the picture of a search. Raises OutputError of the worker."""
    search, out = file.search, Path(file.merge.out)
    paths = [path for path, _ in search.measure.score]
    score = paths[0] if len(paths) == 1 else "weighted score" if paths else "score"
    score = score if search.measure.data is None else "perplexity"
    title = f"Search {Path(file.path).stem}"
    words = (title, score, summary(search, out))
    draw_search(read_results(out), search.maximizes, words, plot)


def best_recipe(file: SearchFile) -> tuple[str, bytes]:
    """Return the name and the recipe of the best candidate. Raises UsageError if there is none."""
    out = Path(file.merge.out)
    best = best_of(read_results(out), file.search.direction)
    if best is None:
        raise UsageError(f"{out}: no candidate has a score yet; see `results`")
    try:
        return best.name, (out / best.name / RECIPE).read_bytes()
    except OSError as error:
        raise UsageError(f"{out / best.name / RECIPE}: {error.strerror}") from None
