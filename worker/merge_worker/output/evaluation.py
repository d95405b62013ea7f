"""Evaluations of a finished merge, recorded in OUT: `evaluation.json`, card and manifest.

The manifest names the bytes of both files. It is written twice: first without them, with their
names under `recording`, then with the new ones. Whatever stops the record in between leaves a
folder that `verify` accepts, and that the next record completes from `evaluation.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..checkpoint.json_files import read_json
from ..errors import InputError, OutputError
from .evaluation_card import card_with
from .files import (
    CARD,
    EVALUATION,
    MANIFEST,
    PARTIAL,
    PASSING,
    output_errors,
    path_inside,
    write_file,
)
from .journal import pending_commit, read_key
from .lock import POLL_S, Busy, Lock, refuse_others
from .manifest import RECORDING, matches_form, read_manifest, settled, worker_facts
from .scores import Evaluation
from .store import remove_partial

LOCK, EVALUATING, ABOUT = "lock-evaluation", "lock-evaluating", "evaluation"
PATIENCE_S = 60.0
"""How long a record waits for another, which takes milliseconds."""

_FORM = {
    "kind": str,
    "settings": dict,
    "in_card": bool,
    "source": lambda value: _has_values(value, lambda text: isinstance(text, str)),
    "summary": str,
    "scores": [
        {
            "task": str,
            "metric": str,
            "value": lambda value: _is_number(value) or value is None,
            "stderr": lambda value: _is_number(value) or value is None,
            "higher_is_better": lambda value: value in (None, True, False),
            "parents": lambda value: _has_values(value, _is_measured),
            "paired_stderr?": lambda value: _has_values(value, _is_number),
            "dataset?": dict,
        }
    ],
}
"""What is read of a run in `evaluation.json`, as `matches_form` takes it."""


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_measured(value: object) -> bool:
    """Return whether a value is that of `Number.json`."""
    numbers = [value.get(key, "") for key in ("value", "stderr")] if isinstance(value, dict) else ""
    return bool(numbers) and all(_is_number(n) or n is None for n in numbers)


def _has_values(value: object, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def record(out: Path, evaluations: Sequence[Evaluation]) -> None:
    """Record evaluations of the finished merge in OUT, in one step that a crash cannot break.

    An earlier run of the same kind with the same settings is replaced; others stay, in the order
    of their time. Changes of the card by hand stay too. Raises InputError if OUT holds no finished
    merge, OutputError if it cannot be written or another process merges there.
    """
    if read_manifest(out) is None:
        raise InputError(f"{out}: no {MANIFEST}; not a finished merge")
    with recording(out), output_errors(out):
        value = read_manifest(out)
        if value is None:
            raise OutputError(f"{out}: its merge was removed meanwhile; nothing was recorded")
        value = settled(out, value)
        runs = _with_runs(read_runs(out, value), evaluations)
        texts = {EVALUATION: json.dumps(runs, indent=1, ensure_ascii=False, allow_nan=False) + "\n"}
        card = _read_card(out)
        if card is not None:
            texts[CARD] = card_with(card, runs, out.resolve().name)
        keys = ("kind", "date", "settings", "summary", "scores")
        summary = [{key: run[key] for key in keys} for run in runs]
        write_between_manifests(out, value, texts, {"evaluations": summary})


def read_runs(out: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs recorded in OUT, the oldest first; none if there are none.

    Raises InputError if the file is damaged, and OutputError if it is not of this merge.
    """
    path = path_inside(out, EVALUATION)
    if not os.path.lexists(path):
        return []
    names = {
        *(entry["file"] for entry in manifest.get("outputs", ())),
        *manifest.get(RECORDING, ()),
    }
    if EVALUATION not in names or path.is_symlink():
        raise OutputError(f"{path}: not written by merge-launch; move this file away")
    value = read_json(path)
    if not matches_form(value, [_FORM]):
        raise InputError(f"{path}: damaged; remove this file, and evaluate again")
    runs: list[dict[str, Any]] = value
    return runs


def _with_runs(
    runs: Sequence[dict[str, Any]], evaluations: Sequence[Evaluation]
) -> list[dict[str, Any]]:
    """Return all runs, with new ones in place of older runs of the same kind and settings."""
    # As JSON has them: tuples are lists there.
    new = [json.loads(json.dumps(evaluation.json())) for evaluation in evaluations]
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    same = [(run["kind"], run["settings"]) for run in new]
    kept = [run for run in runs if (run["kind"], run["settings"]) not in same]
    version = worker_facts()["version"]
    return kept + [{**run, "date": when, "merge_launch": version} for run in new]


def _read_card(out: Path) -> str | None:
    """Return the text of README.md; None if the merge has none."""
    path = path_inside(out, CARD)
    if path.is_symlink():
        raise OutputError(f"{path}: is a link; put the file itself in its place")
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().decode(errors="surrogateescape")
    return None


def write_between_manifests(
    out: Path, value: Mapping[str, Any], texts: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write files of OUT between two manifests, each of which fits what is there at the time.

    `value` is the settled manifest; the last one has `facts` too.
    """
    listed = value.get("outputs", [])
    raw = {name: _encoded(name, text) for name, text in texts.items()}
    others = [entry for entry in listed if entry["file"] not in raw]
    _write_manifest(out, {**value, "outputs": others, RECORDING: list(raw)})
    for name, content in raw.items():
        write_file(out / name, content, durable=True)
    _sync(out)
    new = {name: {"file": name, "bytes": len(content)} for name, content in raw.items()}
    outputs = [new.pop(entry["file"], entry) for entry in listed]
    outputs += new.values()
    _write_manifest(out, {**value, "outputs": outputs, **facts})


def _encoded(name: str, text: str) -> bytes:
    """Return the bytes of a file. A card keeps odd bytes that it had; JSON escapes them."""
    with contextlib.suppress(UnicodeEncodeError):
        return text.encode(errors="surrogateescape" if name == CARD else "strict")
    return text.encode(errors="backslashreplace")


def _write_manifest(out: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_file(out / MANIFEST, text, durable=True)
    _sync(out)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def evaluating(out: Path) -> Iterator[None]:
    """Keep other processes from evaluating OUT while the block runs, and merges from replacing it.

    Raises Busy if another process does so already, and OutputError if OUT cannot be written.
    """
    with contextlib.ExitStack() as held:
        lock = _take_lock(out, held, EVALUATING, patience_s=0.0)
        refuse_others(out / PARTIAL, ABOUT)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, OutputError):
                _remove_folder_of_lock(out, lock)


@contextlib.contextmanager
def recording(out: Path) -> Iterator[None]:
    """Keep merges and other records out of OUT while the block reads and writes its manifest.

    Waits for other records. Raises OutputError if a merge is at work there.
    """
    partial = out / PARTIAL
    with contextlib.ExitStack() as held:
        lock = _take_lock(out, held, LOCK, PATIENCE_S)
        refuse_others(partial, ABOUT)
        if pending_commit(partial) is not None:
            raise OutputError(
                f"{out}: a merge that replaces this one was stopped at its end\n"
                f"  run its command again, then this one"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError, OutputError):
                _remove_folder_of_lock(out, lock)


def _remove_folder_of_lock(out: Path, lock: Lock) -> None:
    """Remove the partial folder, unless a merge works or has worked in it."""
    names = [path.name for path in (out / PARTIAL).iterdir()]
    others = [n for n in names if n.startswith("lock-") and n != lock.path.name]
    passing = all(name.startswith(PASSING) for name in names)
    if passing and not others and read_key(out / PARTIAL) is None:
        remove_partial(out, lock.check)


def _take_lock(out: Path, held: contextlib.ExitStack, name: str, patience_s: float) -> Lock:
    """Hold a lock until `held` is closed, after waiting for its present owner. Busy."""
    partial, end = out / PARTIAL, time.monotonic() + patience_s
    if partial.is_symlink():
        raise OutputError(f"{partial}: is a link, and nothing is written through it; remove it")
    while True:
        with output_errors(out):
            partial.mkdir(exist_ok=True)
        try:
            return held.enter_context(Lock(partial / name, ABOUT))
        except OutputError as error:
            # Another process holds it, or has just removed the folder.
            if partial.is_dir() and (time.monotonic() > end or not isinstance(error, Busy)):
                raise
        time.sleep(POLL_S / 5)
