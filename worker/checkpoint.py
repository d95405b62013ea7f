"""A folder or file of safetensors → names, dtypes, shapes and byte ranges. Headers only, no torch.

Inputs are not trusted: types of files, lengths and offsets are checked before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .dtypes import BY_NAME, DType, Kind
from .errors import InputError, first_names, printable

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: `count` elements of `dtype`, row-major, at `offset` of `file`."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int

    @property
    def count(self) -> int:
        return self.nbytes * 8 // self.dtype.bits


@dataclass(frozen=True)
class Shard:
    """One file: its size, the digest of its header, and what it holds in order of offset."""

    path: str
    size: int
    header_sha256: str
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: every tensor by name, and the folder its other files are in."""

    path: Path
    shards: tuple[Shard, ...]
    tensors: dict[str, TensorInfo] = field(repr=False)

    @property
    def folder(self) -> Path | None:
        """Where config and tokenizer are; None if the checkpoint is a single file."""
        return self.path if self.path.is_dir() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, or empty where there is none. InputError if it is not JSON."""
        path = self.path / "config.json"
        if self.folder is None or not path.is_file():
            return {}
        value = read_json(path)
        if not isinstance(value, dict):
            raise InputError(f"{path}: not a JSON object; is this a model folder?")
        return value

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())


def is_hub_id(word: str) -> bool:
    """Whether a model word is `org/name[@revision]` of the hub rather than a path.

    A word is a path if it exists here, starts with `/`, `.` or `~`, or ends in `/`.
    """
    if word.startswith(("/", ".", "~")) or word.endswith("/") or Path(word).exists():
        return False
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?", word) is not None


def read_json(path: Path) -> Any:
    """The value of a JSON file. InputError naming the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise InputError(f"{path}: {reason}") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read all headers below `path`, a model folder or one `.safetensors` file. InputError."""
    if not path.exists():
        raise InputError(f"{path}: no such folder; is the model path right?")
    files = list(_shard_files(path)) if path.is_dir() else [path]
    shards = tuple(_read_shard(file) for file in files)
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        for info in shard.tensors:
            if info.name in tensors:
                other = Path(tensors[info.name].file).name
                raise InputError(
                    f"{path}: tensor '{printable(info.name)}' is in both {other} and "
                    f"{Path(info.file).name}; remove the file that does not belong to the model"
                )
            tensors[info.name] = info
    if not tensors:
        raise InputError(f"{path}: no tensors in its safetensors files")
    if path.is_dir():
        _check_index(path, tensors)
    return Checkpoint(path, shards, tensors)


def _shard_files(folder: Path) -> Iterator[Path]:
    """The weight files: those of the index, else model.safetensors, else all but duplicates."""
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            parts = Path(name).parts
            if not name or Path(name).is_absolute() or ".." in parts:
                raise InputError(f"{index}: shard '{printable(name)}' is outside the model folder")
            yield folder / name
        return
    if (folder / "model.safetensors").exists():
        yield folder / "model.safetensors"
        return
    # Some releases hold the same weights twice; adapters belong to another model.
    found = sorted(
        file
        for file in folder.glob("*.safetensors")
        if not file.name.startswith(("consolidated", "adapter_"))
    )
    if not found:
        raise InputError(_nothing_found(folder))
    yield from found


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no 'weight_map'; the index is damaged")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: 'weight_map' has a shard that is not a file name")
    return weight_map


def _check_index(folder: Path, tensors: dict[str, TensorInfo]) -> None:
    """Every tensor that the index promises must be in the shard that it names."""
    index = folder / INDEX
    if not index.is_file():
        return
    weight_map = _weight_map(index)
    lost = [
        n for n, f in weight_map.items() if n not in tensors or tensors[n].file != str(folder / f)
    ]
    if lost:
        raise InputError(
            f"{index}: {len(lost)} tensors are not in the shard it names: {first_names(lost)}\n"
            f"  the download or copy is incomplete, or the index is of another version"
        )


def _nothing_found(folder: Path) -> str:
    others = [
        p.name for p in sorted(folder.glob("*")) if p.suffix in (".bin", ".pt", ".gguf", ".pth")
    ]
    if (folder / "adapter_config.json").exists():
        return f"{folder}: a LoRA adapter, not a model; name it as 'BASE+{folder}'"
    if others:
        return (
            f"{folder}: no safetensors, only {first_names(others)}\n"
            f"  convert it once: AutoModel.from_pretrained(…).save_pretrained(…)"
        )
    return f"{folder}: no *.safetensors in this folder; is it a model?"


def _read_shard(path: Path) -> Shard:
    """Header of one file, checked so that every byte range of it can be trusted."""
    fd = _open_regular(path)
    try:
        size = os.fstat(fd).st_size
        head = _read_exactly(fd, 8, 0, path)
        length = int.from_bytes(head, "little")
        if length > MAX_HEADER_BYTES or length + 8 > size:
            raise InputError(f"{path}: {_what_it_is(head, size)}")
        raw = _read_exactly(fd, length, 8, path)
    finally:
        os.close(fd)
    header = _parse_header(raw, path)
    begin = 8 + length
    infos = [_tensor(str(path), name, entry, begin) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    position = begin
    for info in infos:
        if info.offset != position:
            kind = "overlaps its neighbour" if info.offset < position else "leaves a hole before it"
            raise InputError(
                f"{path}: tensor '{printable(info.name)}' {kind}; the header is damaged"
            )
        position += info.nbytes
    if position != size:
        fault = "shorter" if position > size else "longer"
        raise InputError(
            f"{path}: {size} bytes, {fault} than the {position} its header promises; "
            f"the copy or download is incomplete"
        )
    return Shard(str(path), size, hashlib.sha256(raw).hexdigest(), tuple(infos))


def _open_regular(path: Path) -> int:
    """An open descriptor; never blocks on a FIFO, never reads a device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
        what = next((name for test, name in kinds if test(mode)), "a device")
        raise InputError(f"{path}: {what}, not a file of weights")
    return fd


def _read_exactly(fd: int, count: int, offset: int, path: Path) -> bytes:
    parts = []
    while count:
        part = os.pread(fd, min(count, 1 << 30), offset)
        if not part:
            raise InputError(f"{path}: the file ends at byte {offset}; the copy is incomplete")
        parts.append(part)
        offset += len(part)
        count -= len(part)
    return b"".join(parts)


def _what_it_is(head: bytes, size: int) -> str:
    """A guess at what a file that is no safetensors file is, from its first bytes."""
    if head.startswith(b"version "):
        return "a Git LFS pointer, not the weights; run: git lfs pull"
    if head.lstrip().lower().startswith((b"<!doc", b"<html")):
        return "an HTML page, not weights; the download failed"
    if head.startswith((b"PK\x03\x04", b"\x80\x02")):
        return "a PyTorch pickle with the name of a safetensors file"
    if head.startswith(b"GGUF"):
        return "a GGUF file with the name of a safetensors file"
    return f"not a safetensors file, or a damaged one (its header would end after its {size} bytes)"


def _parse_header(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if str(error) == "a name stands twice" else "not valid JSON"
        raise InputError(f"{path}: damaged header: {reason}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged header: not a JSON object")
    header.pop("__metadata__", None)
    return header


def _tensor(file: str, name: str, entry: Any, begin: int) -> TensorInfo:
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
    if not whole or last - first != (count * dtype.bits + 7) // 8:
        shown = printable(str(entry))[:120]
        raise InputError(f"{file}: damaged header: tensor '{printable(name)}' is {shown}")
    return TensorInfo(name, dtype, shape, file, begin + first, last - first)


def is_quantised(checkpoint: Checkpoint) -> str | None:
    """Why the weights cannot be averaged as they are, or None."""
    method = checkpoint.config.get("quantization_config", {})
    if isinstance(method, dict) and method:
        return f"quantised ({printable(str(method.get('quant_method', 'quantization_config')))})"
    packed = [n for n, info in checkpoint.tensors.items() if info.dtype.kind is Kind.PACKED]
    suffixes = (".qweight", ".qzeros", ".weight_scale_inv", ".absmax", ".quant_state")
    packed += [n for n in checkpoint.tensors if n.endswith(suffixes)]
    return f"quantised: {first_names(packed)}" if packed else None
