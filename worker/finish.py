"""Whole shards → a model folder: sync, side files, names, and the manifest last.

Every step may be repeated: a run that is stopped in here is finished by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .card import model_card
from .checksum import checksum, total
from .errors import ResultError
from .hashes import Hashes
from .journal import COMMITTING
from .layout import index_json
from .manifest import NAME, manifest
from .plan import Plan
from .side_files import copy_side_files
from .store import Store, output_errors, write_file
from .target import Target

INDEX = "model.safetensors.index.json"
FILES = "files"


def finish(store: Store, target: Target, run: dict[str, Any], sha256: bool) -> dict[str, Any]:
    """Give everything its final name; returns the manifest. OutputError leaves it repeatable."""
    plan, out, folder = store.plan, store.out, store.folder
    with output_errors(out):
        staged = folder / FILES
        staged.mkdir(exist_ok=True)
        names = copy_side_files(plan, staged)
        # Names that a loader goes by come after the shards.
        late = [name for name in names if name == "config.json"]
        if len(plan.layout.shards) > 1:
            write_file(staged / INDEX, index_json(plan.layout.shards))
            late.insert(0, INDEX)
        write_file(staged / "README.md", model_card(plan, out.resolve().name))
        write_file(staged / "mergekit_config.yml", plan.recipe.text)
        early = [n for n in names if n not in late] + ["README.md", "mergekit_config.yml"]
        outputs = _outputs(store, sha256)
        _as_before(plan, out, outputs)
        outputs += [
            {"file": name, "bytes": (staged / name).stat().st_size} for name in early + late
        ]
        value = manifest(plan, outputs, run)
        write_file(staged / NAME, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        _sync_tree(staged)
        write_file(
            folder / COMMITTING, json.dumps({"replaces": list(target.replaces)}), durable=True
        )
    commit(store, target)
    return value


def _as_before(plan: Plan, out: Path, outputs: Sequence[Mapping[str, Any]]) -> None:
    """ResultError unless a merge that is done again has the same bytes; values are seen here."""
    for entry in outputs:
        if plan.made.get(entry["file"], entry["sum128"]) != entry["sum128"]:
            raise ResultError(
                f"{out}: {entry['file']} would not be what the manifest tells of; a model has "
                f"other values by now, or it was made on another kind of device\n"
                f"  merge the recipe mergekit_config.yml to have it nevertheless"
            )


def commit(store: Store, target: Target) -> None:
    """Rename everything; the manifest makes it a model. Repeatable from any point."""
    out = store.out
    last = store.folder / FILES / NAME
    with output_errors(out):
        if last.exists():
            names = [entry["file"] for entry in json.loads(last.read_text())["outputs"]]
            _remove_old(store, target, {name.split("/")[0] for name in names})
            for name in names:
                source = _source(store, name)
                if source is not None:
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    source.replace(out / name)
            _sync(out)
            last.replace(out / NAME)
        _sync(out)
    store.remove()


def _source(store: Store, name: str) -> Path | None:
    """Where a file waits for its final name; None if it has it already."""
    places = (store.folder / f"{name}.partial", store.folder / FILES / name)
    return next((place for place in places if place.exists()), None)


def _remove_old(store: Store, target: Target, names: set[str]) -> None:
    """Files of the merge that this one replaces; its manifest first, so that it ends unfinished.

    All of them, also those of the same name: old and new files together are no model.
    """
    (store.out / NAME).unlink(missing_ok=True)
    for name in target.replaces:
        path = store.out / name
        if name in names and (path.is_dir() or _source(store, name) is None):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _outputs(store: Store, sha256: bool) -> list[dict[str, Any]]:
    """Size and checksums of every shard, from the checksums of its pieces."""
    plan = store.plan
    by_step = store.by_step()
    parts = [[checksum(memoryview(shard.header), 0)] for shard in plan.layout.shards]
    for number, step in enumerate(plan.steps):
        parts[step.shard] += (entry.checksum for entry in by_step.get(number, ()))
    found: list[dict[str, Any]] = [
        {"file": shard.name, "bytes": shard.size, "sum128": str(total(pieces))}
        for shard, pieces in zip(plan.layout.shards, parts, strict=True)
    ]
    if sha256:
        hashes = store.hashes or Hashes([shard.header for shard in plan.layout.shards])
        sizes = [shard.size for shard in plan.layout.shards]
        paths = [str(store.folder / f"{shard.name}.partial") for shard in plan.layout.shards]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = pool.map(hashes.finish, range(len(sizes)), paths, sizes)
            for facts, digest in zip(found, digests, strict=True):
                facts["sha256"] = digest
    return found


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex (Python 3.10 has no `hashlib.file_digest`)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _sync_tree(folder: Path) -> None:
    """Force small files to the storage together: all but the first wait for nothing."""
    for path in folder.rglob("*"):
        if path.is_file():
            _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
