"""Plots of a comparison, in the format that the name of the file asks for."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import OutputError, UsageError
from ..messages import printable
from .advice import Advice
from .figures import Comparison
from .html_report import page
from .metrics import Metric


def check_plot(file: str | None) -> None:
    """Raise UsageError before anything is read if the plot could not be drawn.

    Reasons: an unknown ending, no matplotlib for it, or a missing folder.
    """
    if file is None:
        return
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {printable(file)}: folder not found; create it first")
    ending = path.suffix.lower()
    if ending not in (".png", ".pdf", ".svg", ".html"):
        raise UsageError(
            f"--plot {printable(file)}: the name must end in .png, .pdf, .svg or .html"
        )
    if ending != ".html" and importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"--plot {printable(file)}: matplotlib is not installed for {sys.executable}\n"
            f"  install it (pip install matplotlib), or write a page, which does not need it: "
            f"--plot {printable(str(path.with_suffix('.html')))}"
        )


def draw(comparison: Comparison, chosen: Sequence[Metric], advice: Advice, file: str) -> None:
    """Write the plot, or the page that also has the advice."""
    try:
        if Path(file).suffix.lower() == ".html":
            Path(file).write_text(page(comparison, chosen, advice), encoding="utf-8")
        else:
            _draw_figure(comparison, chosen, file)
    except OSError as error:
        raise OutputError(f"--plot {printable(file)}: {error.strerror}") from None


def _draw_figure(comparison: Comparison, chosen: Sequence[Metric], file: str) -> None:
    import matplotlib

    from .matplotlib_maps import figure

    # Journals want text that can be searched and edited: no outlines, no Type 3 fonts.
    text = {"pdf.fonttype": 42, "svg.fonttype": "none", "axes.unicode_minus": True}
    with matplotlib.rc_context(text):
        figure(comparison, chosen).savefig(file, dpi=200, bbox_inches="tight", facecolor="white")
