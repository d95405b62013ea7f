"""The inputs of a merge as models to evaluate, and a cache of their results.

The headers of all fine-tunes of a model are the same, so the cache also tells files apart by place,
size and time; models of the Hub by commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from merge_worker.checkpoint.folder import is_hub_id
from merge_worker.errors import InputError, WorkerError
from merge_worker.messages import printable
from merge_worker.output.files import MANIFEST, RECIPE, write_file
from merge_worker.output.manifest import read_manifest
from merge_worker.output.model_card import public_name
from merge_worker.recipe import parse
from merge_worker.recipe.schema import ModelRef

from .harness import Harness, Model


def manifest_of(out: Path) -> dict[str, Any]:
    """Return the manifest of a finished merge. Raises the worker's InputError."""
    value = read_manifest(out)
    if value is None:
        raise InputError(f"{out}: no {MANIFEST}; not a finished merge")
    return value


def parents_of(out: Path, value: Mapping[str, Any]) -> tuple[list[Model], str | None]:
    """Return the inputs of a merge, each once, and the name of the base, if there is one.

    Raises InputError if one is not where the recipe in OUT says.
    """
    path = out / RECIPE
    try:
        recipe = parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; --parents reads the recipe there") from None
    models, faults = dict[str, Model](), list[str]()
    for ref in recipe.model_refs():
        try:
            models.setdefault(public_name(ref), _model(ref))
        except WorkerError as error:
            faults.append(str(error))
    if faults:
        hint = "  --parents evaluates them where the recipe in OUT says; run it from that folder"
        raise InputError("\n".join([*faults, hint]))
    return list(models.values()), public_name(recipe.base) if recipe.base else None


def _model(ref: ModelRef) -> Model:
    return Model(
        public_name(ref), _place(ref.path), ref.revision, _place(ref.lora) if ref.lora else None
    )


def _place(path: str) -> str:
    if is_hub_id(path):
        return path
    place = Path(path).expanduser()
    if not place.is_dir():
        raise InputError(f"{printable(path)}: no such folder")
    return str(place.resolve())


class Cache:
    """Results by model and task in the user's cache folder. Failures to write are ignored."""

    def __init__(self, harness: Harness) -> None:
        self._folder = Path(platformdirs.user_cache_dir("merge-launch")) / "eval"
        self._tasks = _digest([harness.settings(), _definitions(harness.include_path)])

    def read(self, model: Model, version: str) -> dict[str, Any] | None:
        """Return the results of an unchanged model, if this version of the harness wrote them."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            value = json.loads(self._path(model).read_text(encoding="utf-8"))
            same = isinstance(value, dict) and str(value.get("lm_eval_version") or "") == version
            if same and isinstance(value.get("results"), dict):
                return dict(value)
        return None

    def write(self, model: Model, value: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            path = self._path(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(value))

    def _path(self, model: Model) -> Path:
        return self._folder / _digest(_stamps(model)) / f"{self._tasks}.json"


def _stamps(model: Model) -> list[object]:
    """Return what changes with the weights of a model."""
    stamps: list[object] = [model.arguments()]
    for folder in filter(None, (model.path, model.adapter)):
        files = sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []
        states = [(path.name, path.stat()) for path in files if path.is_file()]
        stamps += [[name, state.st_size, state.st_mtime_ns] for name, state in states]
    return stamps


def _definitions(folder: str | None) -> list[list[object]]:
    """Return digests of the files that define tasks of the user's own."""
    if folder is None:
        return []
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [
        [str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in files
    ]


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
