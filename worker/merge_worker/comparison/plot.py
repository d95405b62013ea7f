"""Choice of the plot format by the name of the file. No torch; matplotlib only while drawing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError, UsageError
from ..messages import printable
from .advice import Advice
from .figures import Comparison
from .metrics import Metric

Drawer = Callable[[Comparison, Sequence[Metric], Advice, str], None]


def drawer(file: str) -> Drawer:
    """Return the function that draws this file.

    UsageError for an unknown ending, without matplotlib, or if the folder is missing.
    """
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--plot {printable(file)}: folder not found; create it first")
    ending = path.suffix.lower()
    if ending == ".html":
        return _page
    if ending not in (".png", ".pdf", ".svg"):
        raise UsageError(
            f"--plot {printable(file)}: the name must end in .png, .pdf, .svg or .html"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(
            f"--plot {printable(file)}: matplotlib is not installed for {sys.executable}\n"
            f"  install it (pip install matplotlib), or write a page, which does not need it: "
            f"--plot {printable(str(path.with_suffix('.html')))}"
        )
    return _picture


def _picture(comparison: Comparison, chosen: Sequence[Metric], advice: Advice, file: str) -> None:
    import matplotlib

    from .matplotlib_maps import figure

    plot = figure(comparison, chosen)
    # Journals want text that can be searched and edited: no outlines, no Type 3 fonts.
    text = {"pdf.fonttype": 42, "svg.fonttype": "none", "axes.unicode_minus": True}
    with _plot_errors(file), matplotlib.rc_context(text):
        plot.savefig(file, dpi=200, bbox_inches="tight", facecolor="white")


def _page(comparison: Comparison, chosen: Sequence[Metric], advice: Advice, file: str) -> None:
    from .html_report import page

    with _plot_errors(file):
        Path(file).write_text(page(comparison, chosen, advice), encoding="utf-8")


@contextmanager
def _plot_errors(file: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"--plot {printable(file)}: {error.strerror}") from None
