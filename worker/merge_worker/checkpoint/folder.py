"""A folder of safetensors, or of what torch.save wrote → every tensor. Headers only, no torch."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..messages import counted, first_names, printable
from ..tensors.source import TensorSource
from . import hub
from .header import CONFIG, INDEX, MAX_HEADER_BYTES, WEIGHTS, Shard, read_shard
from .torch_zip import read_pickled

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FP8_DTYPES = ("F8_E4M3", "F8_E5M2")
SCALE_SUFFIXES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: every tensor by name, and the folder its other files are in."""

    path: Path
    shards: tuple[Shard, ...]
    tensors: dict[str, TensorSource] = field(repr=False)
    plain: bool = field(default=False, kw_only=True)  # no longer quantised, whatever the file says

    @property
    def folder(self) -> Path | None:
        """Where config and tokenizer are; None if the checkpoint is a single file."""
        return self.path if self.path.is_dir() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, or empty where there is none. InputError if it is not JSON."""
        path = self.path / CONFIG
        if self.folder is None or not path.is_file():
            return {}
        value = read_json(path)
        if not isinstance(value, dict):
            raise InputError(f"{path}: not a JSON object; is this a model folder?")
        if self.plain:
            value.pop("quantization_config", None)
        return value

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())


ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def exists(path: Path) -> bool:
    """Whether there is such a path; a word that can be no path is none. OSError: nobody knows."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return False
    except ValueError:
        return False
    return True


def is_hub_id(word: str) -> bool:
    """Whether a model word is `org/name[@revision]` of the hub rather than a path.

    A word is a path if it exists here, starts with `/`, `.` or `~`, or ends in `/`.
    """
    try:
        here = exists(Path(word))
    except OSError:  # whatever is wrong with it, it is here
        here = True
    if here or word.startswith(("/", ".", "~")) or word.endswith("/"):
        return False
    return hub.is_hub_name(word, revision=True)


def read_json(path: Path) -> Any:
    """The value of a JSON file. InputError naming the file if it is not JSON."""
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise InputError(f"{path}: larger than {MAX_HEADER_BYTES} bytes; is it of a model?")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON; is it whole?"
        raise InputError(f"{path}: {reason}") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read all headers below `path`, a model folder or one file. InputError."""
    if not exists(path):
        raise InputError(f"{path}: no such folder; is the model path right?")
    files = list(_shard_files(path)) if path.is_dir() else [path]
    shards, tensors, places = [], dict[str, TensorSource](), dict[str, str]()
    for file in files:
        shard, found = _read(file)
        shards.append(shard)
        for name in found:
            if name in tensors:
                raise InputError(
                    f"{path}: tensor '{printable(name)}' is in both {Path(places[name]).name} and "
                    f"{file.name}; remove the file that does not belong to the model"
                )
            places[name] = str(file)
        tensors |= found
    if not tensors:
        raise InputError(f"{path}: no tensors in its safetensors files")
    if path.is_dir():
        _check_index(path, places)
    return Checkpoint(path, tuple(shards), tensors)


def _read(file: Path) -> tuple[Shard, dict[str, TensorSource]]:
    if file.suffix in PICKLES:
        return read_pickled(file)
    shard = hub.read_header(file) if hub.absent(str(file)) else read_shard(file)
    return shard, {info.name: info for info in shard.tensors}


def _index(folder: Path) -> Path | None:
    """The index that counts: that of pickles only where there are no safetensors."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    pickles = folder / "pytorch_model.bin.index.json"
    return pickles if pickles.is_file() and not any(folder.glob("*.safetensors")) else None


def _shard_files(folder: Path) -> Iterator[Path]:
    """The weight files: those of the index, else model.safetensors, else all but duplicates."""
    index = _index(folder)
    if index is not None:
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            parts = Path(name).parts
            if not name or Path(name).is_absolute() or ".." in parts:
                raise InputError(f"{index}: shard '{printable(name)}' is outside the model folder")
        afar = hub.names(folder)
        lost = [name for name in names if name not in afar and not os.path.lexists(folder / name)]
        if lost:
            raise InputError(
                f"{folder}: lacks {len(lost)} of the {len(names)} shards that its index names: "
                f"{first_names(lost)}\n  the download or copy is incomplete"
            )
        yield from (folder / name for name in names)
        return
    afar = hub.names(folder)
    if (folder / WEIGHTS).exists() or WEIGHTS in afar:
        yield folder / WEIGHTS
        return
    # Some releases hold the same weights twice; adapters belong to another model.
    found = sorted(
        file
        for file in {*folder.glob("*.safetensors"), *(folder / name for name in afar)}
        if not file.name.startswith(("consolidated", "adapter_"))
    )
    if not found and (folder / "pytorch_model.bin").exists():
        yield folder / "pytorch_model.bin"
        return
    if not found:
        raise InputError(_nothing_found(folder))
    _none_missing(folder, {file.name for file in found})
    yield from found


def _none_missing(folder: Path, names: set[str]) -> None:
    """Without an index, the names of shards still tell how many there are."""
    for name in sorted(names):
        told = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\..*)", name)
        if told is None:
            continue
        stem, total, end = told.groups()
        all_of_it = [f"{stem}-{n:05d}-of-{total}{end}" for n in range(1, int(total) + 1)]
        lost = [one for one in all_of_it if one not in names]
        if lost:
            raise InputError(
                f"{folder}: lacks {len(lost)} of {int(total)} shards: {first_names(lost)}\n"
                f"  the download or copy is incomplete"
            )


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no 'weight_map'; the index is damaged")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: 'weight_map' has a shard that is not a file name")
    return weight_map


def _check_index(folder: Path, places: Mapping[str, str]) -> None:
    """Every tensor that the index promises must be in the shard that it names."""
    index = _index(folder)
    if index is None:
        return
    weight_map = _weight_map(index)
    paths = {file: str(folder / file) for file in set(weight_map.values())}
    lost = [n for n, f in weight_map.items() if places.get(n) != paths[f]]
    if lost:
        raise InputError(
            f"{index}: {counted(len(lost), 'tensors are not in the shard it names')}: "
            f"{first_names(lost)}\n"
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
