"""`merge-worker verify`: re-reads a finished output and compares it to its manifest.

Every file of weights is also opened with the package safetensors, which merges do not need.
Nothing is changed.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from ..checkpoint.dcp import read_dcp
from ..checkpoint.header import read_shard
from ..checkpoint.reader import Files
from ..command_line.parser import Parser
from ..dtypes import Kind
from ..errors import InputError, input_errors
from ..messages import counted, printable
from ..output.checksums import checksum, file_sha256, total
from ..output.files import MANIFEST
from ..output.manifest import read_manifest
from ..planning.dcp_layout import SUFFIX
from ..system.torch_startup import require_torch
from ..tensors.source import StoredTensor, stored_inputs
from ..units import size

CHUNK = 8 << 20
"""Bytes read at a time."""

_CHECKSUMS = frozenset({"sum128", "sha256", "crc32"})
"""Keys in a manifest of which every merged file has one."""


def options(parser: Parser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder of a finished merge")


@input_errors("verify")
def command(arguments: argparse.Namespace) -> str:
    """Return one line if OUT matches its manifest. InputError names every faulty file or tensor."""
    require_torch("verify")
    out = Path(arguments.out)
    manifest = checked_manifest(out)
    outputs, expected = manifest["outputs"], manifest.get("nonfinite") or 0
    written = sum(int(entry["bytes"]) for entry in outputs)
    note = counted(expected, "values are NaN or Inf") if expected else "no NaN or Inf"
    return f"{out}: matches the manifest: {counted(len(outputs), 'files')}, {size(written)}; {note}"


def checked_manifest(out: Path) -> dict[str, Any]:
    """Return the manifest of an output that matches it. Raises InputError with every fault."""
    manifest = read_manifest(out)
    if manifest is None:
        raise InputError(
            f"{out}: no {MANIFEST}; not a finished merge\n"
            f"  to finish one that was stopped, run its command again"
        )
    outputs: list[dict[str, Any]] = manifest.get("outputs") or []
    expected = manifest.get("nonfinite") or 0
    if not outputs:
        raise InputError(f"{out / MANIFEST}: damaged; the list of outputs is missing")
    faults = [fault for entry in outputs if (fault := _file_fault(out, entry))]
    if faults:
        hint = "  to write it again, run its command with --overwrite"
        raise InputError("\n".join([*faults, hint]))
    nonfinite = _count_nonfinite(out, outputs)
    if nonfinite.total() != expected:
        names = "; ".join(f"{printable(n)}: {count}" for n, count in list(nonfinite.items())[:3])
        raise InputError(f"{out}: {counted(nonfinite.total(), 'values are NaN or Inf')} ({names})")
    return manifest


def _file_fault(out: Path, entry: dict[str, Any]) -> str | None:
    path = out / str(entry.get("file"))
    if not path.is_file():
        return f"{path}: missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    for name, compute in (("sum128", _sum128), ("crc32", _crc32)):
        if name in entry and (actual := compute(path)) != entry[name]:
            return f"{path}: checksum {actual}, the manifest says {entry[name]}; it was changed"
    if "sha256" in entry and file_sha256(path) != entry["sha256"]:
        return f"{path}: SHA-256 differs from the manifest; it was changed"
    return _safetensors_fault(path) if path.suffix == ".safetensors" else None


def _safetensors_fault(path: Path) -> str | None:
    """Open a file of weights with the package safetensors, if it is installed."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        return None
    if not os.fsencode(path).isascii() and os.fsencode(path) != str(path).encode(errors="replace"):
        return None  # the package opens no path that is not UTF-8
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        return f"{path}: the package safetensors cannot open it: {printable(str(error))}"
    if names != {info.name for info in read_shard(path).tensors}:
        return f"{path}: the package safetensors finds other tensors in it"
    return None


def _sum128(path: Path) -> str:
    """Compute the additive checksum that the journal has of shards."""
    checksums, position, buffer = [], 0, bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            checksums.append(checksum(memoryview(buffer)[:count], position))
            position += count
    return str(total(checksums))


def _crc32(path: Path) -> str:
    """Compute the CRC that earlier releases recorded for merges by mergekit."""
    crc = 0
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            crc = zlib.crc32(data, crc)
    return f"{crc:08x}"


def _stored(out: Path, outputs: Sequence[Mapping[str, Any]]) -> Iterator[StoredTensor]:
    """Yield the tensors in the merged files, and the blocks of those in several."""
    merged = [out / entry["file"] for entry in outputs if _CHECKSUMS & entry.keys()]
    for path in merged:
        if path.suffix == ".safetensors":
            yield from read_shard(path).tensors
    if any(path.suffix == SUFFIX for path in merged):
        for source in read_dcp(out)[1].values():
            yield from stored_inputs(source)


def _count_nonfinite(out: Path, outputs: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Count NaN and Inf by tensor of the merged files, reading CHUNK bytes at a time."""
    import torch

    counts: Counter[str] = Counter()
    for info in _stored(out, outputs):
        if info.dtype.kind is not Kind.FLOAT:
            continue
        dtype = getattr(torch, info.dtype.torch_name)
        with closing(Files()) as files, Path(info.file).open("rb") as file:
            file.seek(files.begin(info))
            left = info.nbytes
            while left:
                data = bytearray(file.read(min(CHUNK, left)))
                if not data:
                    raise InputError(f"{info.file}: ends too early")
                left -= len(data)
                values = torch.frombuffer(data, dtype=dtype)
                if nonfinite := int(values.numel() - torch.isfinite(values).sum()):
                    counts[info.name] += nonfinite
    return counts
