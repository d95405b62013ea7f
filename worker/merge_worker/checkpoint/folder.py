"""Checkpoint: every tensor of a model folder or file, from headers only. Loads no torch.

Reads safetensors, and files that torch.save wrote.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, input_errors
from ..messages import counted, first_names, printable
from ..tensors.source import TensorSource
from .dcp import dcp_folder, main_folder, read_dcp
from .header import CONFIG, Shard, read_shard
from .hub import Hub, is_hub_name
from .json_files import read_json, weight_map
from .links import leads_out
from .model_files import LINK, SAME, TRAINING, ModelFiles, survey
from .other_forms import adapter_tensors, describe_folder, refuse_adapted
from .torch_zip import read_pickled
from .weight_sets import MAIN, WeightSet, left_over_index, owner

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
DCP_FORMAT = "metadata.json"
"""A file of Megatron that names the format of its checkpoints."""

NOT_FOUND = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk: every tensor by name, and the folder its other files are in."""

    path: Path
    shards: tuple[Shard, ...]
    tensors: dict[str, TensorSource] = field(repr=False)
    notes: tuple[str, ...] = field(default=(), kw_only=True)  # decisions to warn of
    files: ModelFiles = field(default=ModelFiles(), kw_only=True, repr=False)

    @property
    def folder(self) -> Path | None:
        """Folder of config and tokenizer; None if the checkpoint is a single file."""
        return self.path if self.path.is_dir() else None

    def with_weights(self, prefixes: Collection[str]) -> Checkpoint:
        """Return the model with its own weights and the sets of these prefixes; it copies others.

        A model whose weights are all in sub-folders keeps them.
        """
        sets, files = self.files.sets, self.files
        dropped = [s for s in sets if s.prefix and s.prefix not in prefixes and not sets[0].prefix]
        for weights in dropped:
            files = files.copying(weights)
        gone = {str(self.path / name) for weights in dropped for name in weights.files}
        shards = tuple(shard for shard in self.shards if shard.path not in gone)
        tensors = {n: t for n, t in self.tensors.items() if owner(n, sets) not in dropped}
        return replace(self, shards=shards, tensors=tensors, files=files) if dropped else self

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
        if leads_out(self.path, CONFIG):
            raise InputError(f"{path}: {LINK}\n  put the file itself in place of the link")
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


def open_checkpoint(path: Path, hub: Hub | None = None) -> Checkpoint:
    """Read all headers of `path`, a model folder or a single file. Raises InputError.

    `hub` knows which of its files are still to be downloaded.
    """
    hub = hub or Hub()
    if not exists(path):
        raise InputError(f"{path}: no such folder; is the model path right?")
    with input_errors(path):
        files = survey(path, hub) if path.is_dir() else ModelFiles()
    if not files.sets:
        if path.is_dir() and (distributed := dcp_folder(path)):
            return _open_dcp(path, distributed, hub)
        raise InputError(describe_folder(path, hub.names(path)))
    shards, tensors, notes = list[Shard](), dict[str, TensorSource](), list[str]()
    for weights in files.sets:
        if weights not in files.sets:
            continue
        opened, named = _open_weights(path, weights, hub)
        if weights.prefix and _is_in(tensors, named, weights.prefix) and not weights.is_variant:
            again = (f"{weights.folder}/",) if weights.folder else weights.paths
            files = files.leaving(again, SAME)
            continue
        shards += opened
        tensors |= named
        if index := left_over_index(path, weights):
            read = Path(weights.files[0]).name
            notes.append(f"{index}: left over beside {read}, which is read as transformers does")
    if not tensors:
        raise InputError(f"{path}: no tensors in its safetensors files")
    if files.untrusted:
        notes.append(
            f"{path}: left out, since they may hold secrets or are links out of the folder: "
            f"{first_names(files.untrusted)}"
        )
    files = _weights_among_copied(path, files, tensors)
    checkpoint = Checkpoint(path, tuple(shards), tensors, notes=tuple(notes), files=files)
    if found := adapter_tensors(tensors):
        refuse_adapted(path, found, checkpoint.config)
    return checkpoint


def _open_dcp(given: Path, folder: Path, hub: Hub) -> Checkpoint:
    """Read a checkpoint of torch.distributed.checkpoint in `folder`, which is in the one given."""
    shards, tensors, notes = read_dcp(folder)
    path = main_folder(given, folder)
    with input_errors(path):
        files = survey(path, hub)
    state = [name for name in files.copied if name.endswith(PICKLES) or name == DCP_FORMAT]
    files = replace(files.leaving(state, TRAINING), sets=(MAIN,))
    return Checkpoint(path, shards, tensors, notes=tuple(notes), files=files)


def _open_weights(
    path: Path, weights: WeightSet, hub: Hub
) -> tuple[list[Shard], dict[str, TensorSource]]:
    """Read the headers of a set of weights; its tensors have its prefix before their names."""
    shards, tensors, places = list[Shard](), dict[str, TensorSource](), dict[str, Path]()
    for file in [path / name for name in weights.files] or [path]:
        if file.suffix in PICKLES:
            hub.download(str(file))
            shard, sources = read_pickled(file)
        else:
            shard = hub.read_header(file) if hub.is_not_downloaded(str(file)) else read_shard(file)
            sources = {info.name: info for info in shard.tensors}
        shards.append(shard)
        for name, source in sources.items():
            if name in places:
                raise InputError(
                    f"{path}: tensor '{printable(name)}' is in both {places[name].name} and "
                    f"{file.name}; remove the file that does not belong to the model"
                )
            places[name] = file
            full = weights.prefix + name
            tensors[full] = replace(source, name=full) if weights.prefix else source
    if weights.index:
        _check_index(path / weights.index, places)
    return shards, tensors


def _check_index(index: Path, places: Mapping[str, Path]) -> None:
    """Check that every tensor of the index is in the shard that the index names."""
    named = weight_map(index)
    files = {file: index.parent / file for file in set(named.values())}
    missing = [name for name, file in named.items() if places.get(name) != files[file]]
    if missing:
        raise InputError(
            f"{index}: {counted(len(missing), 'tensors are not in the shard it names')}: "
            f"{first_names(missing)}\n"
            f"  the download or copy is incomplete, or the index belongs to another version"
        )


def _is_in(
    main: Mapping[str, TensorSource], others: Mapping[str, TensorSource], prefix: str = ""
) -> bool:
    """Return whether a model has all the other tensors, which have a prefix, in the same shapes."""
    pairs = ((main.get(n.removeprefix(prefix)), source) for n, source in others.items())
    return all(own is not None and own.shape == source.shape for own, source in pairs)


def _weights_among_copied(
    path: Path, files: ModelFiles, tensors: Mapping[str, TensorSource]
) -> ModelFiles:
    """Find copied files that hold weights, and leave those out that hold the model's own again."""
    for name in files.copied:
        if name.endswith(PICKLES):
            try:
                _, own = read_pickled(path / name)
            except InputError:  # data in a form of its own, or not downloaded
                continue
            if _is_in(tensors, own):
                files = files.leaving([name], SAME)
                continue
        elif not name.endswith(".safetensors"):
            continue
        files = replace(files, unmerged=(*files.unmerged, name))
    return files
