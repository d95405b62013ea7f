"""The picture of a search, in the format that the name of its file asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..drawing.files import drawing_errors, print_settings
from .charts import Charts, charts_of
from .results import Result


def draw_search(
    results: Sequence[Result], maximizes: bool, words: tuple[str, str, list[str]], file: str
) -> None:
    """Write the picture. `words`: the title, what the score is called, and lines of a summary.

    Raises OutputError if the file cannot be written.
    """
    title, score, summary = words
    charts = charts_of(results, maximizes, score)
    with drawing_errors(file):
        if Path(file).suffix.lower() == ".html":
            from .svg_charts import page

            Path(file).write_text(page(charts, title, summary), encoding="utf-8")
        else:
            _draw_figure(charts, title, file)


def _draw_figure(charts: Charts, title: str, file: str) -> None:
    from .matplotlib_charts import figure

    with print_settings():
        figure(charts, title).savefig(file, dpi=200, bbox_inches="tight", facecolor="white")
