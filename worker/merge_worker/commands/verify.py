"""Re-reads a finished output and compares it to its manifest. Changes nothing.

Every file of weights is also opened with the package safetensors, which merges do without.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path
from typing import Any

from ..checkpoint.folder import open_checkpoint
from ..checkpoint.header import read_shard
from ..dtypes import Kind
from ..errors import InputError, input_errors
from ..messages import counted, printable
from ..output.checksums import checksum, file_sha256, total
from ..output.files import MANIFEST
from ..output.manifest import read_manifest
from ..system.torch_startup import require_torch
from ..units import size

CHUNK = 8 << 20


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT")


@input_errors("verify")
def command(arguments: argparse.Namespace) -> str:
    require_torch()
    return verify(Path(arguments.out))


def verify(out: Path) -> str:
    """A line that says all is well. InputError names every file or tensor that is not."""
    value = read_manifest(out)
    if value is None:
        raise InputError(
            f"{out}: no {MANIFEST}; this is no finished merge\n"
            f"  one that was stopped is finished by the command that began it"
        )
    outputs: list[dict[str, Any]] = value.get("outputs") or []
    expected = value.get("nonfinite", 0)
    if not _well_formed(outputs) or not isinstance(expected, int):
        raise InputError(f"{out / MANIFEST}: damaged; it does not list what the merge wrote")
    faults = [fault for entry in outputs if (fault := _file_fault(out, entry))]
    if faults:
        hint = "  the command that made it makes it anew with --overwrite"
        raise InputError("\n".join([*faults, hint]))
    nonfinite = _nonfinite(out)
    if sum(nonfinite.values()) != expected:
        names = "; ".join(f"{printable(n)}: {count}" for n, count in list(nonfinite.items())[:3])
        raise InputError(
            f"{out}: {counted(sum(nonfinite.values()), 'values are NaN or Inf')} ({names})"
        )
    total = sum(int(entry["bytes"]) for entry in outputs)
    note = counted(expected, "values are NaN or Inf") if expected else "no NaN or Inf"
    return f"{out}: {counted(len(outputs), 'files')}, {size(total)}, as the manifest says; {note}"


def _well_formed(outputs: object) -> bool:
    return (
        isinstance(outputs, list)
        and bool(outputs)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("file"), str)
            and ".." not in Path(entry["file"]).parts
            and isinstance(entry.get("bytes"), int)
            for entry in outputs
        )
    )


def _file_fault(out: Path, entry: dict[str, Any]) -> str | None:
    path = out / str(entry.get("file"))
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    for name, found in (("sum128", _sum128), ("crc32", _crc32)):
        if name in entry and (now := found(path)) != entry[name]:
            return f"{path}: checksum {now}, the manifest says {entry[name]}; it was changed"
    if "sha256" in entry and file_sha256(path) != entry["sha256"]:
        return f"{path}: SHA-256 differs from the manifest; it was changed"
    return _second_opinion(path) if path.suffix == ".safetensors" else None


def _second_opinion(path: Path) -> str | None:
    """Open a file of weights with the package safetensors, where it is installed."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        return f"{path}: the package safetensors cannot open it: {printable(str(error))}"
    if names != {info.name for info in read_shard(path).tensors}:
        return f"{path}: the package safetensors finds other tensors in it"
    return None


def _sum128(path: Path) -> str:
    """Of what the worker writes, as in the journal."""
    found, position, room = [], 0, bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(room):
            found.append(checksum(memoryview(room)[:got], position))
            position += got
    return str(total(found))


def _crc32(path: Path) -> str:
    """Return the CRC that earlier releases noted of what mergekit as the engine wrote."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return f"{crc:08x}"


def _nonfinite(out: Path) -> dict[str, int]:
    """NaN and Inf by tensor, read in bounded blocks."""
    import torch

    found: dict[str, int] = {}
    for info in (info for shard in open_checkpoint(out).shards for info in shard.tensors):
        if info.dtype.kind is not Kind.FLOAT:
            continue
        kind = getattr(torch, info.dtype.torch_name)
        with Path(info.file).open("rb") as file:
            file.seek(info.offset)
            left = info.nbytes
            while left:
                data = bytearray(file.read(min(CHUNK, left)))
                if not data:
                    raise InputError(f"{info.file}: ends too early")
                left -= len(data)
                values = torch.frombuffer(data, dtype=kind)
                bad = int(values.numel() - torch.isfinite(values).sum())
                if bad:
                    found[info.name] = found.get(info.name, 0) + bad
    return found
