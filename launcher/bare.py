"""The worker's sources as jobs carry them, each with what it imports; read once and then kept.

To parse them all takes most of the time of a submission. So what comes of it is kept in the user's
cache folder, by the digest of the text that it was made of: other sources are other entries. The
file begins with the digest of the rest; one that is damaged, or somebody else's, is not read. Files
are replaced whole, so several processes may write. Only commands that submit write it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import hashlib
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from . import imported, squeeze
from .command import replace_text

MOST = 1000
"""Entries: those of a few versions of the worker."""
MAKERS = ("imported", "squeeze")
OLD_S = 30 * 24 * 3600


class Bare(NamedTuple):
    text: str
    imports: tuple[imported.Import, ...]


_used: dict[str, Bare] = {}


def of(name: str, text: str) -> Bare:
    """A source, by its name within the package."""
    key = hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()
    if key not in _used:
        _used[key] = _kept().get(key) or _read(name, text)
    return _used[key]


def _read(name: str, text: str) -> Bare:
    # A tree is thousands of objects and no circle of them: to look for such takes half of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        tree = ast.parse(text)
        found = tuple(dict.fromkeys(imported.imports(tree.body, name)))
        return Bare(squeeze.without_words(text, tree), found)
    finally:
        if collects:
            gc.enable()


def path() -> Path:
    """Another version of what makes the entries has another file."""
    import platformdirs

    makers = [Path(__file__).with_name(f"{name}.py").read_bytes() for name in MAKERS]
    made_by = hashlib.sha256(b"".join(makers)).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("merge-launch")) / f"sources-{made_by}.json"


@functools.cache
def _kept() -> dict[str, Bare]:
    """What the file holds; nothing if it is not as it was written."""
    try:
        with path().open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return {}
            digest, text = file.readline().strip(), file.read()
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            return {}
        return {
            key: Bare(text, tuple((name, tuple(asked)) for name, asked in imports))
            for key, (text, imports) in json.loads(text).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def keep() -> None:
    """Write what was read anew; without a cache folder the next command reads it again."""
    held = _kept()
    if _used.keys() <= held.keys():
        return
    every = {**held, **_used}
    text = json.dumps(every if len(every) <= MOST else _used)
    with contextlib.suppress(OSError):
        target = path()
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        for other in target.parent.glob("sources-*.json"):
            if other != target and other.stat().st_mtime < time.time() - OLD_S:
                other.unlink(missing_ok=True)
