"""Plots of a comparison, in the format that the name of the file asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..drawing.files import check_plot, drawing_errors, print_settings
from .advice import Advice
from .figures import Comparison
from .html_report import page
from .metrics import Metric

__all__ = ["check_plot", "draw"]


def draw(comparison: Comparison, chosen: Sequence[Metric], advice: Advice, file: str) -> None:
    """Write the plot, or the page that also has the advice."""
    with drawing_errors(file):
        if Path(file).suffix.lower() == ".html":
            Path(file).write_text(page(comparison, chosen, advice), encoding="utf-8")
        else:
            _draw_figure(comparison, chosen, file)


def _draw_figure(comparison: Comparison, chosen: Sequence[Metric], file: str) -> None:
    from .matplotlib_maps import figure

    with print_settings():
        figure(comparison, chosen).savefig(file, dpi=200, facecolor="white")
