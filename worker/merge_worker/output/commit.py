"""Turns finished shards into a model folder: sync, side files, final names, the manifest last.

Every step is repeatable: a run that is stopped here is finished by the next one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..checkpoint.header import CONFIG
from ..errors import ResultError
from ..planning.plan import Plan
from .checksums import Hashes, checksum, total
from .files import (
    CARD,
    FINAL_FILES,
    MANIFEST,
    PARTIAL,
    RECIPE,
    output_errors,
    path_inside,
    unfinished,
    write_file,
)
from .journal import COMMITTING
from .manifest import manifest, result_names
from .model_card import model_card
from .side_files import copy_side_files
from .store import PartialOutput, remove_partial
from .target import Target

_INDEX = ".safetensors.index.json"


def finish(
    store: PartialOutput, target: Target, run: dict[str, Any], sha256: bool
) -> dict[str, Any]:
    """Give everything its final name; returns the manifest. OutputError leaves it repeatable."""
    plan, out = store.plan, store.out
    staged = store.folder / FINAL_FILES
    with output_errors(out):
        staged.mkdir(exist_ok=True)
        names = copy_side_files(plan, staged)
        for index, text in plan.layout.indexes():
            (staged / index).parent.mkdir(parents=True, exist_ok=True)
            write_file(staged / index, text)
            names.append(index)
        write_file(staged / CARD, model_card(plan, out.resolve().name))
        write_file(staged / RECIPE, plan.recipe.text)
        outputs = _outputs(store, sha256)
        _check_reproduced(plan, out, outputs)
        outputs += [
            {"file": name, "bytes": (staged / name).stat().st_size}
            for name in loaders_last([*names, CARD, RECIPE])
        ]
        value = manifest(plan, outputs, run)
    seal(out, value, target.replaces)
    return value


def loaders_last(names: Iterable[str]) -> list[str]:
    """Sort the files that a loader looks for first behind all others."""
    return sorted(names, key=lambda name: (name == CONFIG, name.endswith(_INDEX)))


def _check_reproduced(plan: Plan, out: Path, outputs: Sequence[Mapping[str, Any]]) -> None:
    """Raise ResultError if a reproduced merge differs from its manifest."""
    for entry in outputs:
        if plan.known_checksums.get(entry["file"], entry["sum128"]) != entry["sum128"]:
            raise ResultError(
                f"{out}: {entry['file']} would differ from the manifest; a model has "
                f"other values now, or the first merge was made on another kind of device\n"
                f"  merge the recipe {RECIPE} to accept the new result"
            )


def seal(out: Path, value: Mapping[str, Any], replaces: Sequence[str]) -> None:
    """Commit a merge whose files are whole in the partial folder, with its manifest.

    `replaces` are the names of an older merge in OUT. OutputError leaves it repeatable.
    """
    partial = out / PARTIAL
    staged = partial / FINAL_FILES
    with output_errors(out):
        write_file(staged / MANIFEST, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        # The storage writes small files together: after the first, the others hardly wait.
        for path in staged.rglob("*"):
            if path.is_file():
                _sync(path)
        _sync(staged)
        notes = json.dumps({"replaces": list(replaces)})
        write_file(partial / COMMITTING, notes, durable=True)
    commit(out, replaces)


def commit(out: Path, replaces: Sequence[str]) -> None:
    """Rename everything; the manifest makes it a model. Repeatable from any point."""
    last = out / PARTIAL / FINAL_FILES / MANIFEST
    with output_errors(out):
        if last.exists():
            names = result_names(last)
            _remove_old(out, replaces, {*names})
            for name in names:
                source = _source(out, name)
                if source is not None:
                    place = path_inside(out, name)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    source.replace(place)
            for folder in {(out / name).parent for name in names}:
                _sync(folder)
            last.replace(out / MANIFEST)
        _sync(out)
    remove_partial(out)


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the storage."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _source(out: Path, name: str) -> Path | None:
    """Return where a file waits for its final name; None if it has it already."""
    partial = out / PARTIAL
    places = (partial / unfinished(name), partial / FINAL_FILES / name)
    return next((place for place in places if place.exists()), None)


def _remove_old(out: Path, replaces: Sequence[str], names: set[str]) -> None:
    """Remove the files of an older merge; its manifest first, so that it ends unfinished.

    Files of the same name go too: old and new files together are not a model.
    """
    (out / MANIFEST).unlink(missing_ok=True)
    for top in replaces:
        path = out / top
        if path.is_symlink() or not path.is_dir():
            old = [path]
        elif any(name.startswith(f"{top}/") for name in names):
            old = [file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()]
        else:
            shutil.rmtree(path)
            continue
        for file in old:
            name = file.relative_to(out).as_posix()
            if name not in names or _source(out, name) is not None:
                file.unlink(missing_ok=True)


def _outputs(store: PartialOutput, sha256: bool) -> list[dict[str, Any]]:
    """Return size and checksums of every shard, from the checksums of its pieces."""
    plan, shards = store.plan, store.plan.layout.shards
    parts = [[checksum(memoryview(shard.header), 0)] for shard in shards]
    for number, entries in store.by_step().items():
        parts[plan.steps[number].shard] += (entry.checksum for entry in entries)
    outputs: list[dict[str, Any]] = [
        {"file": shard.name, "bytes": shard.size, "sum128": str(total(pieces))}
        for shard, pieces in zip(shards, parts, strict=True)
    ]
    if sha256:
        hashes = store.hashes or Hashes([shard.header for shard in shards])
        sizes = [shard.size for shard in shards]
        paths = [store.folder / unfinished(shard.name) for shard in shards]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            digests = pool.map(hashes.finish, range(len(sizes)), paths, sizes)
            for facts, digest in zip(outputs, digests, strict=True):
                facts["sha256"] = digest
    return outputs
