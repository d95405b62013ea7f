"""Checkpoint: every tensor of a model folder or file, from headers only. Loads no torch.

Reads safetensors, and files that torch.save wrote.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..messages import counted, first_names, printable
from ..tensors.source import TensorSource
from .header import CONFIG, INDEX, MAX_HEADER_BYTES, WEIGHTS, Shard, read_shard
from .hub import Hub, is_hub_name
from .other_forms import adapter_tensors, describe_folder, refuse_adapted
from .torch_zip import read_pickled

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PICKLE_INDEX = "pytorch_model.bin.index.json"
NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: every tensor by name, and the folder its other files are in."""

    path: Path
    shards: tuple[Shard, ...]
    tensors: dict[str, TensorSource] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # decisions to warn of

    @property
    def folder(self) -> Path | None:
        """Folder of config and tokenizer; None if the checkpoint is a single file."""
        return self.path if self.path.is_dir() else None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Contents of `config.json`, or empty, without what it says of quantization.

        Quantized weights are refused or dequantized, so that no result has any. Raises InputError
        if the file is not JSON.
        """
        return _without_quantization(self._config_file)

    @property
    def quantization(self) -> dict[str, Any]:
        """The entry of `config.json` on quantization, or empty."""
        text = self._config_file.get("text_config")
        places = [self._config_file, text if isinstance(text, dict) else {}]
        entries = (place[key] for place in places for key in place if _is_quantization(key, place))
        return next(entries, {})

    @cached_property
    def _config_file(self) -> dict[str, Any]:
        path = self.path / CONFIG
        if self.folder is None or not path.is_file():
            return {}
        value = read_json(path)
        if not isinstance(value, dict):
            raise InputError(f"{path}: not a JSON object; is this a model folder?")
        return value


def _is_quantization(key: str, section: Mapping[str, Any]) -> bool:
    """Whether a field is about quantization: by transformers, compressed-tensors or MLX."""
    if not isinstance(section[key], dict):
        return False
    mlx = key == "quantization" and "bits" in section[key]
    return mlx or key in ("quantization_config", "compression_config")


def _without_quantization(section: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_quantization(value)
        if key == "text_config" and isinstance(value, dict)
        else value
        for key, value in section.items()
        if not _is_quantization(key, section)
    }


def exists(path: Path) -> bool:
    """Return whether a path exists. Raises OSError if the file system cannot answer."""
    try:
        path.stat()
    except OSError as error:
        if error.errno not in NOT_FOUND:
            raise
        return False
    except ValueError:  # a null byte: not a path
        return False
    return True


def is_hub_id(word: str) -> bool:
    """Return whether a word names a Hub model, `org/name[@revision]`, rather than a path.

    A word is a path if it exists, starts with `/`, `.` or `~`, or ends in `/`.
    """
    try:
        is_path = exists(Path(word))
    except OSError:  # it exists, but cannot be read
        is_path = True
    if is_path or word.startswith(("/", ".", "~")) or word.endswith("/"):
        return False
    return is_hub_name(word, revision=True)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file. Raises InputError naming the file if it is not JSON."""
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise InputError(f"{path}: larger than {MAX_HEADER_BYTES} bytes; is this a model?")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON; is it complete?"
        raise InputError(f"{path}: {reason}") from None


def open_checkpoint(path: Path, hub: Hub | None = None) -> Checkpoint:
    """Read all headers of `path`, a model folder or a single file. Raises InputError.

    `hub` knows which of its files are still to be downloaded.
    """
    hub = hub or Hub()
    if not exists(path):
        raise InputError(f"{path}: no such folder; is the model path right?")
    files = _shard_files(path, hub) if path.is_dir() else [path]
    shards, tensors, places = [], dict[str, TensorSource](), dict[str, str]()
    for file in files:
        if file.suffix in PICKLES:
            shard, sources = read_pickled(file)
        else:
            shard = hub.read_header(file) if hub.is_not_downloaded(str(file)) else read_shard(file)
            sources = {info.name: info for info in shard.tensors}
        shards.append(shard)
        for name in sources:
            if name in tensors:
                raise InputError(
                    f"{path}: tensor '{printable(name)}' is in both {Path(places[name]).name} and "
                    f"{file.name}; remove the file that does not belong to the model"
                )
            places[name] = str(file)
        tensors |= sources
    if not tensors:
        raise InputError(f"{path}: no tensors in its safetensors files")
    notes: tuple[str, ...] = ()
    if path.is_dir() and (index := _index(path)):
        if files == [path / _SINGLE[index.name]]:
            notes = _unused_index(index, files[0])
        else:
            _check_index(index, places)
    checkpoint = Checkpoint(path, tuple(shards), tensors, notes=notes)
    if found := adapter_tensors(tensors):
        refuse_adapted(path, found, checkpoint.config)
    return checkpoint


_SINGLE = {INDEX: WEIGHTS, PICKLE_INDEX: "pytorch_model.bin"}
"""Files that hold all weights, by the index that has no meaning beside them."""


def _index(folder: Path) -> Path | None:
    """Return the index in use: that of pickles only if there are no safetensors."""
    if (folder / INDEX).is_file():
        return folder / INDEX
    pickles = folder / PICKLE_INDEX
    return pickles if pickles.is_file() and not any(folder.glob("*.safetensors")) else None


def _shard_files(folder: Path, hub: Hub) -> list[Path]:
    """Return the weight files: model.safetensors, else by index, else all but duplicates.

    This is the order of transformers, which leaves an old index where it saves a single file.
    """
    index, remote = _index(folder), hub.names(folder)
    if index is not None:
        single = _SINGLE[index.name]
        if single in remote or (folder / single).exists():
            return [folder / single]
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if not name or Path(name).is_absolute() or ".." in Path(name).parts:
                raise InputError(f"{index}: shard '{printable(name)}' is outside the model folder")
        missing = [n for n in names if n not in remote and not os.path.lexists(folder / n)]
        others = sorted(
            path.name for path in folder.glob("*.safetensors") if path.name not in names
        )
        hint = "the download or copy is incomplete"
        if others:
            hint = f"if the model is {first_names(others)}, remove the left-over {index.name}"
        _refuse_missing(folder, missing, f"{len(names)} shards in its index", hint)
        return [folder / name for name in names]
    if (folder / WEIGHTS).exists() or WEIGHTS in remote:
        return [folder / WEIGHTS]
    # Some releases hold the same weights twice; adapters belong to another model.
    files = sorted(
        file
        for file in {*folder.glob("*.safetensors"), *(folder / name for name in remote)}
        if not file.name.startswith(("consolidated", "adapter_"))
    )
    if not files and (folder / "pytorch_model.bin").exists():
        return [folder / "pytorch_model.bin"]
    if not files:
        raise InputError(describe_folder(folder, hub.listed(folder)))
    _check_numbering(folder, {file.name for file in files})
    return files


def _refuse_missing(folder: Path, missing: Sequence[str], all_shards: str, hint: str) -> None:
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {all_shards} are missing: {first_names(missing)}\n"
            f"  {hint}"
        )


def _check_numbering(folder: Path, names: set[str]) -> None:
    """Check that no shard is missing: without an index, their names state how many there are."""
    for name in sorted(names):
        numbered = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})(\..*)", name)
        if numbered is None:
            continue
        stem, total, end = numbered.groups()
        complete = [f"{stem}-{n:05d}-of-{total}{end}" for n in range(1, int(total) + 1)]
        missing = [file for file in complete if file not in names]
        hint = "the download or copy is incomplete"
        _refuse_missing(folder, missing, f"{int(total)} shards", hint)


def _weight_map(index: Path) -> dict[str, str]:
    value = read_json(index)
    weight_map = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no 'weight_map'; the index is damaged")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{index}: 'weight_map' has a shard that is not a file name")
    return weight_map


def _unused_index(index: Path, single: Path) -> tuple[str, ...]:
    try:
        names = set(_weight_map(index).values())
    except InputError:
        names = set()
    if names == {single.name}:
        return ()
    return (f"{index}: left over beside {single.name}, which is read as transformers does",)


def _check_index(index: Path, places: Mapping[str, str]) -> None:
    """Check that every tensor of the index is in the shard that the index names."""
    weight_map = _weight_map(index)
    paths = {file: str(index.parent / file) for file in set(weight_map.values())}
    missing = [n for n, f in weight_map.items() if places.get(n) != paths[f]]
    if missing:
        raise InputError(
            f"{index}: {counted(len(missing), 'tensors are not in the shard it names')}: "
            f"{first_names(missing)}\n"
            f"  the download or copy is incomplete, or the index belongs to another version"
        )
