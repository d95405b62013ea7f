"""What swept values and members are called."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from worker.errors import nearest, printable

from .errors import UsageError
from .source import safe_name

LONGEST = 60
SILENT = ("parameters",)
"""Steps of a path that tell people nothing."""


def labels(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    telling = [tuple(p for p in path if p not in SILENT) or path for path in paths]
    if len(set(telling)) < len(telling):
        telling = list(paths)
    found = []
    for path in telling:
        length = 1
        while length < len(path) and (
            sum(other[-length:] == path[-length:] for other in telling) > 1
            or not path[-length][0].isalpha()
        ):
            length += 1
        found.append(".".join(path[-length:]))
    return found


def member_name(pattern: str | None, values: Mapping[str, Any], where: str) -> str:
    """`weight_0.3-density_0.5`, or what the sweep's own pattern makes. A safe name of a folder."""
    if pattern is None:
        text = "-".join(f"{label}_{value_word(value)}" for label, value in values.items())
    else:
        text = re.sub(r"\{([^{}]*)\}", lambda m: _filled(m[1], values, where), pattern)
    name = safe_name(text)
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 7].rstrip('-._')}-{digest(text)}"
    return name


def _filled(label: str, values: Mapping[str, Any], where: str) -> str:
    if label not in values:
        known = ", ".join(f"{{{each}}}" for each in values)
        raise UsageError(
            f"{where}: name: nothing is called '{{{printable(label)}}}'"
            f"{nearest(label, values)}; there is {known}"
        )
    return value_word(values[label])


def value_word(value: Any) -> str:
    """A value as a part of a name: `0.3`, `true`, a model's last folder, `0-0.5-1` of a list."""
    if isinstance(value, str):
        return PurePosixPath(value).name or value
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return "-".join(value_word(each) for each in value)
    if isinstance(value, int | float):
        # A minus would be lost beside the signs that separate.
        return str(value).replace("-", "m")
    return digest(json.dumps(value, default=str))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
