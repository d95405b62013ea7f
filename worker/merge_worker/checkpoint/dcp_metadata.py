"""`.metadata` of torch.distributed.checkpoint → tensors and their blocks, without unpickling.

The fields that torch 2.2 to 2.13 write, of which few are needed; others are read and ignored.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ..dtypes import DType, from_torch_name
from ..errors import InputError, input_errors
from ..messages import printable
from ..tensors.chunks import Chunk, is_tiled
from .header import MAX_ELEMENTS, check_name, open_regular, read_exactly
from .json_files import is_inside
from .pickle_machine import MOST_EXTENTS, Global, Instance, Language, Refused, build

METADATA = ".metadata"
MOST_BYTES = 1 << 28
MOST_OPERATIONS = 60_000_000
"""Opcodes: a block takes about seventy."""

_MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed.checkpoint.planner",
    "torch.distributed._shard.sharded_tensor.metadata",
    "torch.distributed._shard.metadata",
    "olmo_core.distributed.checkpoint.filesystem",
    "megatron.core.dist_checkpointing.strategies.torch",
)
_CLASSES = (
    *("Metadata", "MCoreMetadata", "TensorStorageMetadata", "BytesStorageMetadata"),
    *("ChunkStorageMetadata", "TensorProperties", "MetadataIndex", "StorageMeta"),
    *("_StorageInfo", "ShardMetadata", "MCoreSavePlan"),
)
_ENUMS = ("_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING")
_PATHS = ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")


def _ignored(*_: object) -> None:
    """Stand for what the reader needs not know: a memory format, a layout, a path."""


def _member(holder: object, name: object) -> None:
    """Stand for `getattr`, by which Python 3.11 pickles the member of an enum."""
    kind = holder.name.rpartition(" ")[2] if isinstance(holder, Global) else ""
    if kind not in _ENUMS:
        raise Refused("its pickle asks for 'builtins.getattr'")


_CALLS: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda items=(): {k: v for k, v in items if type(k) is str},
    "torch Size": tuple,
    "torch.serialization _get_layout": _ignored,
    "builtins getattr": _member,
    **{f"{module} {name}": _ignored for module in _MODULES for name in _ENUMS},
    **{f"{m} {name}": _ignored for m in ("pathlib", "pathlib._local") for name in _PATHS},
}
LANGUAGE = Language(
    _CALLS, frozenset(f"{m} {name}" for m in _MODULES for name in _CLASSES), MOST_OPERATIONS
)


class Entry(NamedTuple):
    """A tensor of the checkpoint: its blocks fill it, each element once."""

    dtype: DType
    shape: tuple[int, ...]
    chunks: list[Chunk]


@dataclass(frozen=True)
class Metadata:
    """The contents of a `.metadata`; `paths` are those of its entries in the nested dict saved."""

    path: Path
    sha256: str
    size: int
    files: tuple[str, ...]  # relative names
    tensors: Mapping[str, Entry]
    others: tuple[str, ...]  # entries that are pickled objects
    paths: Mapping[str, tuple[object, ...]]
    ends: Mapping[str, int]  # bytes that each file has at least


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of a checkpoint without running any of it.

    Raises InputError with the reason if it is refused or damaged.
    """
    with input_errors(path), os.fdopen(open_regular(path), "rb", 0) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MOST_BYTES:
            raise InputError(f"{path}: {size} bytes, more than {MOST_BYTES}; is it metadata?")
        data = read_exactly(file.fileno(), size, 0, path)
    try:
        value = build(data, LANGUAGE)
        reading = _Reading(path, _state(value, "Metadata", "MCoreMetadata"))
        tensors = dict(reading.tensors())
    except Refused as error:
        raise InputError(f"{path}: {error}; refused, and nothing of it was run") from None
    paths = reading.state.get("planner_data")
    return Metadata(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        size=size,
        files=tuple(reading.files),
        tensors=tensors,
        others=tuple(reading.others),
        paths={k: v for k, v in paths.items() if type(v) is tuple} if type(paths) is dict else {},
        ends=reading.ends,
    )


class _Reading:
    """The entries of a `.metadata`, checked one by one. Raises Refused, InputError."""

    def __init__(self, path: Path, state: Mapping[str, Any]) -> None:
        self.path, self.state = path, state
        self.files: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.others: list[str] = []
        self.places = dict(self._places())

    def tensors(self) -> Iterator[tuple[str, Entry]]:
        entries = self.state.get("state_dict_metadata")
        if type(entries) is not dict or not entries:
            raise Refused("it lists no tensors")
        for name, entry in entries.items():
            if type(name) is not str:
                raise Refused(_DAMAGED)
            check_name(self.path, name)
            if _kind(entry) == "TensorStorageMetadata":
                yield name, self._entry(name, entry.state)
            elif _kind(entry) == "BytesStorageMetadata":
                self.others.append(name)
            else:
                raise Refused(_DAMAGED)

    def _entry(self, name: str, state: Mapping[str, Any]) -> Entry:
        shown = printable(name)
        shape, dtype = _numbers(state.get("size")), _dtype(state.get("properties"))
        try:
            known = from_torch_name(dtype)
        except KeyError:
            raise InputError(
                f"{self.path}: tensor '{shown}' is of {printable(dtype)[:40]}, unknown here"
            ) from None
        listed = state.get("chunks")
        if type(listed) is not list or prod(shape) * known.bytes >= MAX_ELEMENTS:
            raise Refused(f"tensor '{shown}' is damaged")
        corners = dict[
            tuple[tuple[int, ...], ...], None
        ]()  # replicas are listed once for each rank, but stored once
        for chunk in listed:
            own = _state(chunk, "ChunkStorageMetadata")
            corners[_numbers(own.get("offsets")), _numbers(own.get("sizes"))] = None
        chunks = [self._chunk(name, known, shape, *corner) for corner in corners]
        try:
            filled = is_tiled(shape, chunks)
        except ValueError as error:
            raise InputError(f"{self.path}: tensor '{shown}' has {error}") from None
        if not filled:
            raise InputError(
                f"{self.path}: the {len(chunks)} blocks of tensor '{shown}' overlap or do not fill "
                f"its shape {list(shape)}\n  it is damaged, or was saved by ranks that disagree"
            )
        return Entry(known, shape, chunks)

    def _chunk(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        offsets: tuple[int, ...],
        sizes: tuple[int, ...],
    ) -> Chunk:
        inside = len(offsets) == len(sizes) == len(shape) and all(
            offset + size <= extent
            for offset, size, extent in zip(offsets, sizes, shape, strict=True)
        )
        if not inside:
            raise InputError(
                f"{self.path}: tensor '{printable(name)}' of shape {list(shape)} has a block of "
                f"{list(sizes)} at {list(offsets)}; it is damaged"
            )
        if 0 in sizes:  # which some writers leave out of the files
            return Chunk(offsets, sizes, 0, 0, 0)
        place = self.places.get((name, offsets))
        if place is None:
            raise InputError(
                f"{self.path}: the block at {list(offsets)} of tensor '{printable(name)}' is in no "
                f"file; the checkpoint is incomplete"
            )
        if place[2] <= prod(sizes) * dtype.bytes:
            raise InputError(
                f"{self.path}: tensor '{printable(name)}' has a block of {list(sizes)} in "
                f"{place[2]} bytes; it is damaged"
            )
        return Chunk(offsets, sizes, *place)

    def _places(self) -> Iterator[tuple[tuple[str, tuple[int, ...]], tuple[int, int, int]]]:
        """Yield file, offset and length of every block by its name and corner."""
        stored = self.state.get("storage_data")
        if type(stored) is not dict:
            raise Refused("it says nothing of the files that the tensors are in")
        for index, info in stored.items():
            key, place = _state(index, "MetadataIndex"), _state(info, "_StorageInfo")
            name, corner = key.get("fqn"), key.get("offset")
            file, span = place.get("relative_path"), (place.get("offset"), place.get("length"))
            if type(name) is not str or type(file) is not str:
                raise Refused(_DAMAGED)
            offset, length = _numbers(span)
            if not is_inside(file):
                raise InputError(
                    f"{self.path}: '{printable(file)}' is outside the checkpoint; refused"
                )
            if place.get("transform_descriptors"):
                raise InputError(
                    f"{self.path}: '{printable(name)}' was written through "
                    f"{printable(str(place['transform_descriptors']))[:60]}, which is not undone "
                    f"here\n  save the checkpoint without extensions"
                )
            number = self.files.setdefault(file, len(self.files))
            self.ends[file] = max(self.ends.get(file, 0), offset + length)
            if corner is not None:
                yield (name, _numbers(corner)), (number, offset, length)


_DAMAGED = "its pickle is damaged"


def _kind(value: object) -> str:
    return value.name.rpartition(" ")[2] if isinstance(value, Instance) else ""


def _state(value: object, *kinds: str) -> Mapping[str, Any]:
    """Return the fields of an instance of one of some classes. Raises Refused."""
    if isinstance(value, Instance) and _kind(value) in kinds and type(value.state) is dict:
        return value.state
    raise Refused(_DAMAGED if kinds != ("Metadata", "MCoreMetadata") else "it is no such metadata")


def _numbers(value: object) -> tuple[int, ...]:
    """Return a tuple of sizes or offsets. Raises Refused."""
    if type(value) is not tuple or len(value) > MOST_EXTENTS:
        raise Refused(_DAMAGED)
    for number in value:
        if type(number) is not int or not 0 <= number < MAX_ELEMENTS:
            raise Refused("its pickle has an impossible size or offset")
    return value


def _dtype(properties: object) -> str:
    """Return the name of the dtype in the properties of a tensor, a tuple or a dict of them."""
    state = properties.state if isinstance(properties, Instance) else None
    if type(state) is tuple and state:
        found = state[0]
    else:
        found = state.get("dtype") if type(state) is dict else None
    if not isinstance(found, Global):
        raise Refused(_DAMAGED)
    return found.name.removeprefix("torch ")
