"""Writes trained routers into the files of a model, so that a crash at any moment can be finished.

First everything that will be written is stored in the state folder: the bytes of the routers, the
manifest, the card. Then the bytes go into the shards, and the manifest last. A run that finds
such a state writes all of it again, to the same end.
"""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..output.checksums import READ_BYTES, Checksum, checksum, parse
from ..output.files import CARD, MANIFEST, output_errors, path_inside, write_file
from .place import Patch
from .state import StateFolder

_MASK = (1 << 64) - 1
_PENDING = "pending"


def store(state: StateFolder, patches: Iterable[Patch], files: Mapping[str, str]) -> None:
    """Store what is to be written: bytes in files of weights, and whole files of text."""
    listed = [
        (patch.file, patch.offset, torch.frombuffer(bytearray(patch.data), dtype=torch.uint8))
        for patch in patches
    ]
    state.write({_PENDING: {"patches": listed, "files": dict(files)}})


def write_pending(state: StateFolder) -> bool:
    """Write what was stored and remove the state; whether anything was. OutputError."""
    pending = state.read().get(_PENDING)
    if pending is None:
        return False
    out = state.out
    by_file: dict[str, list[Patch]] = {}
    for file, offset, data in pending["patches"]:
        by_file.setdefault(file, []).append(Patch(file, offset, data.numpy().tobytes()))
    with output_errors(out):
        for file, patches in by_file.items():
            _write(path_inside(out, file), patches)
        for name, text in sorted(pending["files"].items(), key=lambda pair: pair[0] == MANIFEST):
            # A card keeps odd bytes that it had; JSON escapes them.
            raw = text.encode(errors="surrogateescape" if name == CARD else "backslashreplace")
            write_file(out / name, raw, durable=True)
    state.remove()
    return True


def _write(path: Path, patches: Iterable[Patch]) -> None:
    """Write into a file; one that has other names, as in a cache, is replaced by a copy of it."""
    if path.is_symlink() or path.stat().st_nlink > 1:
        own = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
        try:
            shutil.copyfile(path, own)
            shutil.copymode(path, own)
            _write_at(own, patches)
            own.replace(path)
        except BaseException:
            own.unlink(missing_ok=True)
            raise
    else:
        _write_at(path, patches)


def _write_at(path: Path, patches: Iterable[Patch]) -> None:
    with path.open("r+b", buffering=0) as file:
        for patch in patches:
            view, offset = memoryview(patch.data), patch.offset
            while view:
                count = os.pwrite(file.fileno(), view, offset)
                view, offset = view[count:], offset + count
        os.fsync(file.fileno())


def patched_outputs(
    out: Path, outputs: list[dict[str, Any]], patches: Iterable[Patch]
) -> list[dict[str, Any]]:
    """Return the entries of a manifest as they are after writing, from the bytes there now.

    The additive checksum follows from the bytes that change, so the rest of a file is not read,
    and damage elsewhere in it stays visible. SHA-256 of a file needs all of it.
    """
    by_file: dict[str, list[Patch]] = {}
    for patch in patches:
        by_file.setdefault(patch.file, []).append(patch)
    outputs = copy.deepcopy(outputs)
    for entry in outputs:
        changed = by_file.get(entry["file"], [])
        if changed and "sum128" in entry:
            entry["sum128"] = _patched_sum(out / entry["file"], entry["sum128"], changed)
        if changed and "sha256" in entry:
            entry["sha256"] = _patched_sha256(out / entry["file"], changed)
        if changed:
            entry.pop("crc32", None)
    return outputs


def _patched_sum(path: Path, before: str, patches: Iterable[Patch]) -> str:
    total = parse(before)
    with path.open("rb", buffering=0) as file:
        for patch in patches:
            there = bytearray(os.pread(file.fileno(), len(patch.data), patch.offset))
            old = checksum(memoryview(there), patch.offset)
            new = checksum(memoryview(bytearray(patch.data)), patch.offset)
            total = Checksum(
                (total.plain - old.plain + new.plain) & _MASK,
                (total.placed - old.placed + new.placed) & _MASK,
            )
    return str(total)


def _patched_sha256(path: Path, patches: Iterable[Patch]) -> str:
    digest, position = hashlib.sha256(), 0
    with path.open("rb") as file:
        for patch in sorted(patches, key=lambda patch: patch.offset):
            _digest_until(digest, file, patch.offset - position)
            digest.update(patch.data)
            position = patch.offset + len(patch.data)
            file.seek(position)
        _digest_until(digest, file, path.stat().st_size - position)
    return digest.hexdigest()


def _digest_until(digest: Any, file: BinaryIO, count: int) -> None:
    while count:
        data = file.read(min(READ_BYTES, count))
        if not data:
            raise OSError("a file of weights became shorter")
        digest.update(data)
        count -= len(data)
