"""Files of a measurement: hidden states and gradients, the unfinished result, what is done.

All are plain files at fixed positions, so that a measurement that was stopped continues after the
last layer that it finished.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..output.files import output_errors, write_file
from ..tensors.host import host_view

FLOAT = torch.float32


class StateFile:
    """One tensor for each sample, of one dtype and of shapes known beforehand."""

    def __init__(self, path: Path, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> None:
        self.path, self.shapes, self.dtype = path, shapes, dtype
        sizes = (prod(shape) * dtype.itemsize for shape in shapes)
        self._offsets = list(accumulate(sizes, initial=0))
        with output_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, sample: int, values: Tensor) -> None:
        values = values.detach().to("cpu", self.dtype).contiguous()
        _pwrite(self._fd, self._offsets[sample], values, self.path)

    def read(self, sample: int) -> Tensor:
        out = torch.empty(self.shapes[sample], dtype=self.dtype)
        _pread(self._fd, self._offsets[sample], out)
        return out

    def close(self, *, remove: bool = False) -> None:
        os.close(self._fd)
        if remove:
            self.path.unlink(missing_ok=True)


class Result:
    """A safetensors file of float32 tensors that are written in any order; zero where nothing is.

    `metadata` are texts in its header.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]
    ) -> None:
        self.path = path
        entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        self._places: dict[str, int] = {}
        position = 0
        for name, shape in shapes.items():
            size = prod(shape) * FLOAT.itemsize
            offsets = [position, position + size]
            entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
            self._places[name] = position
            position += size
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % 4096)
        header = len(text).to_bytes(8, "little") + text
        self._begin = len(header)
        with output_errors(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            os.ftruncate(self._fd, self._begin + position)
            os.pwrite(self._fd, header, 0)

    def put(self, name: str, first: int, values: Tensor) -> None:
        """Write elements of a tensor from the `first` on."""
        values = values.detach().to("cpu", FLOAT).contiguous()
        _pwrite(self._fd, self._place(name, first), values, self.path)

    def get(self, name: str, first: int, stop: int) -> Tensor:
        """Return elements [first, stop) of a tensor as they are now."""
        out = torch.empty(stop - first, dtype=FLOAT)
        _pread(self._fd, self._place(name, first), out)
        return out

    def _place(self, name: str, first: int) -> int:
        return self._begin + self._places[name] + first * FLOAT.itemsize

    def close(self) -> None:
        os.close(self._fd)

    def finish(self, out: Path) -> None:
        """Give the file its final name, after all of it is on the storage."""
        with output_errors(out):
            os.fsync(self._fd)
            self.path.replace(out)


class Scratch:
    """The folder of an unfinished measurement, with a list of its finished stages.

    Files of a measurement with another `key` are removed.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._list = folder / "done.json"
        self.done: set[str] = set()
        found = self._read()
        self.fresh = found.get("key") != key
        """Whether nothing of an earlier run is there."""
        if not self.fresh:
            self.done = set(found.get("done", ()))
            return
        with output_errors(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._save()

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._list.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def finished(self, stage: str) -> None:
        """Note that all files of a stage are written."""
        self.done.add(stage)
        with output_errors(self.folder):
            self._save()

    def _save(self) -> None:
        write_file(self._list, json.dumps({"key": self.key, "done": sorted(self.done)}))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _pwrite(fd: int, offset: int, values: Tensor, path: Path) -> None:
    view = host_view(values.view(-1).view(torch.uint8))
    with output_errors(path):
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written


def _pread(fd: int, offset: int, out: Tensor) -> None:
    view = host_view(out.view(-1).view(torch.uint8))
    while view:
        count = os.preadv(fd, [view], offset)
        if not count:
            view[:] = bytes(len(view))  # never written: zeros
            return
        view, offset = view[count:], offset + count


def metadata_of(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; none of any other file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 28)))
        found = header.get("__metadata__", {})
        return {str(name): str(text) for name, text in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}
