"""`pytorch_model.bin` → dtypes, shapes and byte ranges, without running anything of it. No torch.

Such a file is a zip: its pickle says which tensors there are, and their bytes are members that are
stored as they are. `pickle_machine` reads the pickle; Python's own unpickler is never used.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from ..dtypes import from_torch_name
from ..errors import InputError
from ..messages import printable
from ..tensors.source import StoredTensor, TensorSource
from ..tensors.views import transpose
from .header import (
    MAX_HEADER_BYTES,
    Shard,
    check_name,
    open_regular,
    read_exactly,
    stamp_of,
    what_it_is,
)
from .pickle_machine import Rebuilt, Refused, build

_INSIDE = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training checkpoints keep the weights."""


class _Member(NamedTuple):
    offset: int
    size: int


@dataclass(frozen=True)
class Pickled:
    """A file of torch.save: the value that its pickle describes, with places for its tensors."""

    path: Path
    value: Any
    folder: str
    members: Mapping[str, _Member]
    size: int
    digest: str
    stamp: tuple[int, ...]

    def tensors(self) -> dict[str, Rebuilt]:
        """Return the tensors by name. Raises InputError if there are none."""
        try:
            return _tensors(self.value)
        except Refused as error:
            raise _refusal(self.path, error) from None

    def place(self, tensors: Mapping[str, Rebuilt]) -> tuple[Shard, dict[str, TensorSource]]:
        """Return the bytes of tensors as a shard, and the tensors. InputError if bytes miss."""
        where = (self.folder, self.path)
        placed = {name: _placed(name, t, self.members, where) for name, t in tensors.items()}
        stored = {id(info): info for info, _ in placed.values()}
        infos = sorted(stored.values(), key=lambda info: (info.offset, info.nbytes))
        shard = Shard(str(self.path), self.size, self.digest, tuple(infos), self.stamp)
        return shard, {name: view for name, (_, view) in placed.items()}


def open_pickled(path: Path) -> Pickled:
    """Read the pickle of one file of torch.save without executing any of it.

    Raises InputError with the reason if the file is refused.
    """
    fd = open_regular(path)
    try:
        status = os.fstat(fd)
        size, stamp = status.st_size, stamp_of(status)
        head = read_exactly(fd, min(64, size), 0, path)
        if not head.startswith(b"PK\x03\x04"):
            raise InputError(f"{path}: {_no_zip(head, size, path)}")
        with os.fdopen(os.dup(fd), "rb") as file:
            members = dict(_members(file, path))
        folder, text = _pickle(fd, members, path)
    finally:
        os.close(fd)
    try:
        value = build(text)
    except Refused as error:
        raise _refusal(path, error) from None
    return Pickled(path, value, folder, members, size, hashlib.sha256(text).hexdigest(), stamp)


class _Window(io.RawIOBase):
    """A range of an open file as a file of its own, which `zipfile` reads."""

    def __init__(self, fd: int, begin: int, size: int) -> None:
        self._fd, self._begin, self._size, self._at = fd, begin, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        got = os.preadv(self._fd, [view], self._begin + self._at) if view else 0
        self._at += got
        return got


def place_in_zip(fd: int, tensor: StoredTensor) -> int:
    """Return the byte of a file at which the elements of a tensor begin that is in a zip there.

    Raises InputError if the zip does not hold this tensor, row-major and not compressed.
    """
    path, where = Path(tensor.file), f"at byte {tensor.offset}"
    with _Window(fd, tensor.offset, tensor.zip_bytes) as window:
        head = window.read(4)
        if head != b"PK\x03\x04":
            raise InputError(
                f"{path}: no block of '{printable(tensor.name)}' {where}, where the metadata "
                f"places it; it is damaged or of another save"
            )
        members = dict(_members(window, path))
        try:
            folder, text = _pickle(fd, members, path, tensor.offset)
            value = build(text)
        except Refused as error:
            raise _refusal(path, error) from None
    fits = (
        isinstance(value, Rebuilt)
        and (value.shape, value.dtype) == (tensor.shape, tensor.dtype.torch_name)
        and _contiguous(value.shape, value.strides)
    )
    member = members.get(f"{folder}data/{value.storage.key}") if fits else None
    first = value.first * tensor.dtype.bytes if fits else 0
    if member is None or first + tensor.nbytes > member.size:
        raise InputError(
            f"{path}: the block {where} is not the {list(tensor.shape)} of "
            f"{tensor.dtype.torch_name} that the metadata has for '{printable(tensor.name)}'; "
            f"it is damaged or of another save"
        )
    begin = member.offset + first
    if begin + tensor.nbytes > tensor.zip_bytes:
        raise InputError(f"{path}: damaged zip {where}; the copy or download is incomplete")
    return tensor.offset + begin


def read_pickled(path: Path) -> tuple[Shard, dict[str, TensorSource]]:
    """Read one file of torch.save without executing any of it.

    Raises InputError with the reason if the file is refused.
    """
    pickled = open_pickled(path)
    return pickled.place(pickled.tensors())


def _refusal(path: Path, error: Refused) -> InputError:
    return InputError(
        f"{path}: {error}; refused, and nothing of it was run\n"
        f"  weights of a source that you trust: load them with torch and save_file(…) of "
        f"safetensors"
    )


def _no_zip(head: bytes, size: int, path: Path) -> str:
    if head.startswith(b"\x80"):
        return (
            "a pickle without its zip, as torch wrote it before 1.6; if you trust its source, "
            "torch.load(FILE, weights_only=True) reads it, and torch.save(…) writes the new form"
        )
    known = what_it_is(head, size, path)
    return "not a zip as torch.save writes it" if "safetensors" in known else known


def _members(file: Any, path: Path) -> Iterator[tuple[str, _Member]]:
    """Yield name and place of every member. Raises InputError for zips not as torch writes."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
        seen = set()
        for info in infos:
            if info.filename in seen or info.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"{path}: the zip has {printable(info.filename)} packed, or twice")
            seen.add(info.filename)
            file.seek(info.header_offset)
            local = file.read(30)
            if len(local) < 30 or local[:4] != b"PK\x03\x04" or info.flag_bits & 1:
                raise InputError(f"{path}: damaged zip at {printable(info.filename)}")
            names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
            yield info.filename, _Member(info.header_offset + 30 + names, info.file_size)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        raise InputError(f"{path}: damaged zip; the copy or download is incomplete") from None


def _pickle(
    fd: int, members: Mapping[str, _Member], path: Path, begin: int = 0
) -> tuple[str, bytes]:
    """Return the folder inside the zip that begins at a byte of a file, and its pickle."""
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise InputError(f"{path}: a zip without the one data.pkl of torch; is it a checkpoint?")
    folder = pickles[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")
    if (
        order
        and read_exactly(fd, min(order.size, 8), begin + order.offset, path).strip() != b"little"
    ):
        raise InputError(f"{path}: written on a big-endian machine; convert it there")
    offset, size = members[pickles[0]]
    if size > MAX_HEADER_BYTES:
        raise InputError(f"{path}: its pickle has {size} bytes; not a list of tensors")
    return folder, read_exactly(fd, size, begin + offset, path)


def _tensors(value: object) -> dict[str, Rebuilt]:
    """Return the dict of tensors: the value itself, or an entry of it with a known name."""
    for holder in (value, *(value.get(key) for key in _INSIDE if isinstance(value, dict))):
        entries = holder.items() if isinstance(holder, dict) else ()
        if tensors := {str(name): item for name, item in entries if type(item) is Rebuilt}:
            return tensors
    raise Refused("no tensors by name in its pickle")


def _placed(
    name: str, tensor: Rebuilt, members: Mapping[str, _Member], where: tuple[str, Path]
) -> tuple[StoredTensor, TensorSource]:
    """Return the stored run of a tensor, and the tensor: the run itself, or its transpose."""
    folder, path = where
    check_name(path, name)
    member = members.get(f"{folder}data/{tensor.storage.key}")
    try:
        dtype = from_torch_name(tensor.dtype)
    except KeyError:
        raise InputError(
            f"{path}: tensor '{printable(name)}' is of {printable(tensor.dtype)}, unknown here"
        ) from None
    shape, swapped = tensor.shape, (*tensor.shape[:-2], *tensor.shape[:-3:-1])
    upright = _contiguous(shape, tensor.strides)
    transposed = _contiguous(swapped, (*tensor.strides[:-2], *tensor.strides[:-3:-1]))
    if not upright and not transposed:
        raise InputError(
            f"{path}: tensor '{printable(name)}' is a view with strides {list(tensor.strides)}; "
            f"save it with .contiguous()"
        )
    count = prod(shape)
    first, nbytes = tensor.first * dtype.bytes, count * dtype.bytes
    if member is None or first + nbytes > member.size:
        raise InputError(
            f"{path}: the bytes of tensor '{printable(name)}' are not in the file; "
            f"the copy or download is incomplete"
        )
    stored = shape if upright else swapped
    info = StoredTensor(name, dtype, stored, str(path), member.offset + first, nbytes)
    return info, info if upright else transpose(info, name)


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements follow each other in row-major order."""
    expected = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True
