"""Job → text: the Jinja environment, its quoting filters, and the folder of templates."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge_worker.messages import printable

from ..errors import UsageError
from ..job.job import Job

if TYPE_CHECKING:
    import jinja2

    from ..backends.base import Backend


def shell_word(value: object) -> str:
    """Quote a value as one word of bash, always on one line."""
    text = str(value)
    if not re.search(r"[\x00-\x1f\x7f]", text):
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    # Three octal digits, so that a digit that follows is not taken for one of them.
    return "$'" + re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\{ord(m[0]):03o}", escaped) + "'"


def yaml_text(value: object) -> str:
    """Return a value as JSON that YAML reads back unchanged.

    JSON escapes characters beyond the BMP as two surrogates, which YAML does not join.
    """
    text = json.dumps(value, ensure_ascii=False)
    text = re.sub(r"[^\x00-\x7e\U00010000-\U0010ffff]", lambda m: f"\\u{ord(m[0]):04x}", text)
    return re.sub(r"[^\x00-\x7e]", lambda m: f"\\U{ord(m[0]):08x}", text)


def yaml_block(text: str, columns: int) -> str:
    """Return text of several lines as a readable YAML literal block, if YAML can express it so."""
    # A literal block keeps no control characters, and no line ends except \n.
    plain = re.fullmatch(r"(?![ \n])[\n\x20-\x7e\xa0-\u1fff\u2030-\ud7ff]+(?<!\n)", text)
    if plain is None:
        return yaml_text(text)
    margin = " " * columns
    return "|-\n" + "\n".join(margin + line if line else "" for line in text.split("\n"))


def templates() -> Path:
    """Return the folder of templates: in the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "templates", package.parents[1] / "templates")
    return next(folder for folder in folders if folder.is_dir())


@functools.cache
def environment() -> jinja2.Environment:
    """Return the environment of the templates, strict about undefined variables.

    It keeps the templates that it compiled: to compile one takes longer than to render many jobs.
    """
    import jinja2

    result = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    result.filters.update(sh=shell_word, yaml=yaml_text, block=yaml_block, line=printable)
    return result


def render(backend: Backend[Any], job: Job, resources: object) -> str:
    """Return the exact text that is submitted. Raises UsageError if it is too long."""
    template = environment().get_template(backend.template)
    context = backend.context(job, resources)
    run = backend.run(resources)
    if not job.shares_merge:
        run = dataclasses.replace(run, ranks=1, launcher="", identity="")
    text = template.render(job=job, run=run, **context)
    size = len(text.encode(errors="surrogateescape"))
    if backend.max_bytes is not None and size > backend.max_bytes:
        raise UsageError(
            f"the job has {size} bytes, {backend.name} takes {backend.max_bytes}; shorten the "
            f"recipe, which is part of the job, or make fewer merges in one pass"
        )
    return text
