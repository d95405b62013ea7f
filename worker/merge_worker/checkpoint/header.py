"""One safetensors file → dtypes, shapes and byte ranges of its tensors. No torch.

Inputs are not trusted: types of files, lengths and offsets are checked before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..dtypes import BY_NAME
from ..errors import InputError, input_errors
from ..messages import printable
from ..tensors.source import StoredTensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Names of the files of every checkpoint; the index lists the shards where there are several."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

LONGEST_NAME = 1000
LARGE = 1 << 20
MAX_ELEMENTS = 1 << 63
"""More than any file holds; a product of absurd extents would take minutes to compute."""


@dataclass(frozen=True)
class Shard:
    """One file: its size, the digest of its header, and what it holds in order of offset."""

    path: str
    size: int
    header_sha256: str
    tensors: tuple[StoredTensor, ...]
    stamp: tuple[int, ...] = ()  # see `stamp_of`; empty for a file that is not here yet
    metadata: tuple[tuple[str, str], ...] = ()  # texts of the header, by name

    def changed(self) -> str:
        """Describe how the file differs from when its header was read; empty if it does not.

        Raises InputError if the file is gone.
        """
        if not self.stamp:
            return ""
        path = Path(self.path)
        with input_errors(path), os.fdopen(open_regular(path), "rb", 0) as file:
            now = stamp_of(os.fstat(file.fileno()))
            # The JSON ends where the first tensor begins; files of torch.save have none.
            first = min((info.offset for info in self.tensors), default=0)
            head_bytes = first - 8 if self.path.endswith(".safetensors") else 0
            header = read_exactly(file.fileno(), head_bytes, 8, path)
        changes = [text for text, a, b in zip(_CHANGES, self.stamp, now, strict=True) if a != b]
        if len(changes) > 1 and changes[-1] == _CHANGES[-1]:
            changes.pop()  # the ctime, which every change sets
        if hashlib.sha256(header).hexdigest() != self.header_sha256 and head_bytes:
            changes.append("its header is another")
        return ", ".join(changes)


def read_shard(path: Path) -> Shard:
    """Read the header of one file and check it, so that its byte ranges can be trusted."""
    with input_errors(path), os.fdopen(open_regular(path), "rb", 0) as file:
        fd = file.fileno()
        status = os.fstat(fd)
        size = status.st_size
        head = read_exactly(fd, 8, 0, path)
        length = int.from_bytes(head, "little")
        if length <= MAX_HEADER_BYTES and length + 8 <= size:
            head += read_exactly(fd, length, 8, path)
    return replace(shard_of(path, size, head), stamp=stamp_of(status))


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    """Return inode, mtime, size and ctime, which change when a file is replaced or written to."""
    return (status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns)


_CHANGES = (
    "another file has its name",
    "it was written to",
    "it has another size",
    "it was written to, renamed or linked, or its owner or mode was changed",
)
"""What a difference in each field of a stamp shows."""


def shard_of(path: Path, size: int, head: bytes) -> Shard:
    """Parse a shard header from `head`, the first bytes of a file of `size` bytes."""
    length = int.from_bytes(head[:8], "little")
    if length > MAX_HEADER_BYTES or length + 8 > size or len(head) < length + 8:
        raise InputError(f"{path}: {what_it_is(head[:64], size, path)}")
    raw = head[8 : 8 + length]
    header = _parse_header(raw, path)
    metadata = header.pop("__metadata__", None)
    begin = 8 + length
    infos = [_tensor(str(path), name, entry, begin) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    position = begin
    for info in infos:
        if info.offset != position:
            kind = "overlaps its neighbour" if info.offset < position else "leaves a hole before it"
            raise InputError(
                f"{path}: tensor '{printable(info.name)}' {kind}; copy or download the file again"
            )
        position += info.nbytes
    if position != size:
        fault = "shorter" if position > size else "longer"
        raise InputError(
            f"{path}: {size} bytes, {fault} than the {position} its header promises; "
            f"the copy or download is incomplete"
        )
    digest = hashlib.sha256(raw).hexdigest()
    return Shard(str(path), size, digest, tuple(infos), metadata=_texts(metadata))


def _texts(metadata: Any) -> tuple[tuple[str, str], ...]:
    """Return the entries of `__metadata__` that are texts; the format allows no others."""
    items = metadata.items() if isinstance(metadata, dict) else ()
    return tuple((name, value) for name, value in items if isinstance(value, str))


def open_regular(path: Path) -> int:
    """Open a file for reading; never blocks on a FIFO, never reads a device."""
    try:
        with input_errors(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            mode = os.fstat(fd).st_mode
    except ValueError:
        raise InputError(f"{printable(str(path))}: not a file name") from None
    if not stat.S_ISREG(mode):
        os.close(fd)
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
        kind = next((name for test, name in kinds if test(mode)), "a device")
        raise InputError(f"{path}: {kind}, not a file of weights")
    return fd


def read_exactly(fd: int, count: int, offset: int, path: Path) -> bytes:
    """Read `count` bytes of an open file. Raises InputError if it has fewer or fails."""
    parts = []
    while count:
        try:
            part = os.pread(fd, min(count, 1 << 30), offset)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror} at byte {offset}") from None
        if not part:
            raise InputError(f"{path}: the file ends at byte {offset}; the copy is incomplete")
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return b"".join(parts)


def what_it_is(head: bytes, size: int, path: Path) -> str:
    """Guess from its first bytes what a file is that cannot be read as safetensors."""
    if head.startswith(b"version "):
        where = shlex.quote(str(path.parent))
        return f"a Git LFS pointer, not the weights; fetch them: git -C {where} lfs pull"
    if head.lstrip().lower().startswith((b"<!doc", b"<html")):
        return "an HTML page, not weights; the download failed"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return (
            "a PyTorch pickle with the name of a safetensors file; rename it to pytorch_model.bin"
        )
    kinds = {".gguf": "a GGUF file", ".onnx": "an ONNX file", ".h5": "a TensorFlow file"}
    kind = "a GGUF file" if head.startswith(b"GGUF") else kinds.get(path.suffix)
    if kind:
        return f"{kind}, which cannot be merged; name the model that it was made from"
    if path.name.endswith((".json", ".model", ".txt", ".jinja")):
        return f"not weights; name the folder of the model: {path.parent}"
    return f"not a safetensors file, or a damaged one (its header would end after its {size} bytes)"


def _parse_header(raw: bytes, path: Path) -> dict[str, Any]:
    # A tensor takes fifty bytes or more; what is mostly commas would take gigabytes as values.
    if len(raw) > LARGE and sum(map(raw.count, (b",", b"[", b"{"))) > len(raw) // 4:
        raise InputError(f"{path}: damaged header: {len(raw)} bytes that are no list of tensors")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a name stands twice")
        return entries

    try:
        header = json.loads(raw, object_pairs_hook=unique)
        if not isinstance(header, dict):
            raise InputError(f"{path}: damaged header: not a JSON object")
        "".join(header).encode()  # JSON can escape halves of characters, no file can hold them
    except (ValueError, RecursionError, MemoryError) as error:
        reason = str(error) if str(error) == "a name stands twice" else "not valid JSON"
        if isinstance(error, MemoryError):
            reason = f"its {len(raw)} bytes need more memory than there is"
        raise InputError(f"{path}: damaged header: {reason}; copy or download it again") from None
    return header


def check_name(file: str | Path, name: str) -> None:
    """Raise InputError for a name that is too long for a tensor's, and for all that reads names."""
    if len(name) > LONGEST_NAME:
        shown = printable(name[:40])
        raise InputError(f"{file}: damaged: a tensor '{shown}…' with {len(name)} characters")
    if not name.isascii() and name != name.encode(errors="replace").decode():
        raise InputError(f"{file}: damaged: a tensor '{printable(name)}', half of a character")


def _tensor(file: str, name: str, entry: Any, begin: int) -> StoredTensor:
    check_name(file, name)
    named = entry.get("dtype") if isinstance(entry, dict) else None
    if isinstance(named, str) and named not in BY_NAME:
        shown = printable(named)[:40]
        raise InputError(
            f"{file}: tensor '{printable(name)}' has dtype '{shown}', which is unknown here; "
            f"the header is damaged, or the file is newer than this worker"
        )
    try:
        dtype = BY_NAME[entry["dtype"]]
        shape = tuple(entry["shape"])
        first, last = entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
        whole = False
    count = 1
    for extent in shape if whole else ():
        count *= extent
        if count > MAX_ELEMENTS:
            break
    if not whole or last - first != (count * dtype.bits + 7) // 8:
        shown, name = printable(str(entry))[:120], printable(name)[:120]
        raise InputError(f"{file}: damaged header: tensor '{name}' is {shown}")
    return StoredTensor(name, dtype, shape, file, begin + first, last - first)
