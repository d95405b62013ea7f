"""Files of pictures: whether one can be drawn, in which format, and errors that name it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputError, UsageError
from ..messages import printable
from ..system.packages import missing_package


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
        page = printable(str(path.with_suffix(".html")))
        raise missing_package(
            f"--plot {printable(file)}",
            "matplotlib",
            otherwise=f"or write a page, which does not need it: --plot {page}",
        )


@contextmanager
def drawing_errors(file: str) -> Iterator[None]:
    """Turn an OSError while a picture is written into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"--plot {printable(file)}: {error.strerror}") from None


@contextmanager
def print_settings() -> Iterator[None]:
    """Set matplotlib up for journals: text that can be searched and edited."""
    import matplotlib

    # No outlines, no Type 3 fonts.
    text = {"pdf.fonttype": 42, "svg.fonttype": "none", "axes.unicode_minus": True}
    with matplotlib.rc_context(text):
        yield
