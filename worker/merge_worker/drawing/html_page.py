"""One self-contained HTML file, without network, fonts or libraries."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from ..messages import printable


def html_page(title: str, body: str) -> str:
    """Return the content of the file. `title` is text, `body` is HTML."""
    text = (files(__package__) / "page.html").read_text(encoding="utf-8")
    return text.replace("@title@", safe(title)).replace("@body@", body)


def safe(text: str) -> str:
    """Return text as HTML, with control characters escaped."""
    return escape(printable(text))
