"""Checkpoints of torch.distributed.checkpoint (DCP): `.metadata` and the `.distcp` files of ranks.

Planning reads the metadata and the sizes of files. Where the bytes of a block are in its zip is
read when the merge comes to it.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import InputError, input_errors
from ..messages import counted, first_names
from ..tensors.chunks import ChunkedTensor, Chunks
from ..tensors.source import TensorSource
from .dcp_metadata import METADATA, Entry, Metadata, read_metadata
from .header import CONFIG, Shard, stamp_of
from .json_files import read_object

DEEPEST = 2
"""Levels of folders in which the metadata of a checkpoint is looked for."""

_HOLDERS = frozenset({"app", "state", "trainer"})
"""Keys that hold the states of model and training together, each under a key of its own."""

_TRAINING = re.compile(
    r"optim(izer)?s?(_states?|_\d+)?|(lr_?)?schedulers?|data_?loader\w*|(train|trainer)(_state)?|"
    r"(cuda_)?rng(_\w+)?|random_states?|(grad_|loss_)?scaler|(global_)?steps?|epochs?|iterations?|"
    r"callbacks|loops"
)
_EXTRA = re.compile(r"(^|[./])_extra_state([./]|$)")
_WRAPPERS = re.compile(r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def dcp_folder(folder: Path) -> Path | None:
    """Return the folder with the metadata of a checkpoint: this one, or the only one inside.

    Those of optimizers aside, which some trainers save beside the model's.
    """
    found = list(_with_metadata(folder, DEEPEST))
    return found[0] if len(found) == 1 else None


def _with_metadata(folder: Path, levels: int) -> Iterator[Path]:
    if os.path.lexists(folder / METADATA):
        yield folder
        return
    with os.scandir(folder) as listed:
        entries = sorted(entry.name for entry in listed if levels and entry.is_dir())
    for name in entries:
        if not (_TRAINING.fullmatch(name) or name.startswith(".")):
            yield from _with_metadata(folder / name, levels - 1)


def main_folder(given: Path, folder: Path) -> Path:
    """Return the folder of config and tokenizer: the one given, if its config is a model's."""
    return given if "model_type" in read_object(given / CONFIG) else folder


def read_dcp(
    folder: Path,
) -> tuple[tuple[Shard, ...], dict[str, TensorSource], list[str]]:
    """Read the metadata of a checkpoint. Return its files, the tensors of the model, and notes.

    Raises InputError if it is damaged, incomplete, or holds no model.
    """
    metadata = read_metadata(folder / METADATA)
    names, left_out = _names(metadata)
    if not names:
        raise InputError(
            f"{metadata.path}: holds no weights of a model: {first_names(metadata.tensors)}"
        )
    numbers = {chunk.file for name in names for chunk in metadata.tensors[name].chunks}
    needed = [metadata.files[number] for number in sorted(numbers)] if metadata.files else []
    shards = _shards(folder, metadata, needed)
    files = tuple(str(folder / file) for file in metadata.files)
    tensors = {
        new: _tensor(new, (metadata.sha256, old), files, metadata.tensors[old])
        for old, new in names.items()
    }
    return shards, tensors, _notes(folder, left_out)


def _tensor(
    name: str, origin: tuple[str, str], files: tuple[str, ...], entry: Entry
) -> TensorSource:
    dtype, shape, chunks = entry
    blocks = Chunks.of(name, dtype, shape, files, chunks)
    return ChunkedTensor(name, dtype, shape, blocks, origin=origin)


def _shards(folder: Path, metadata: Metadata, needed: Sequence[str]) -> tuple[Shard, ...]:
    """Return the metadata and the files that hold tensors, which are as long as they must be."""
    statuses = {METADATA: metadata.path.stat()}
    missing = []
    for name in needed:
        with input_errors(folder / name):
            try:
                status = statuses[name] = (folder / name).stat()
            except FileNotFoundError:
                missing.append(name)
                continue
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{folder / name}: not a regular file, but named in {METADATA}")
        if status.st_size < metadata.ends[name]:
            raise InputError(
                f"{folder / name}: {status.st_size} bytes, shorter than the "
                f"{metadata.ends[name]} that {METADATA} promises\n"
                f"  the copy or download is incomplete, or the save was stopped"
            )
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {counted(len(needed), 'files')} are missing: "
            f"{first_names(missing)}\n  the copy or download is incomplete"
        )
    return tuple(
        Shard(str(folder / name), status.st_size, metadata.sha256, (), stamp_of(status))
        for name, status in statuses.items()
    )


def _names(metadata: Metadata) -> tuple[dict[str, str], Counter[str]]:
    """Return the model's tensors with the names that it gives them, and what is left out.

    Keys of the saved dict that all of them are under are no part of their names, nor are those of
    wrappers: DDP, FSDP, torch.compile, activation checkpointing.
    """
    paths: dict[str, tuple[str, ...]] = {}
    left_out = Counter[str]()
    for name in metadata.tensors:
        path = tuple(map(str, metadata.paths.get(name, ()))) or (name,)
        if kind := _training(path):
            left_out[kind] += 1
        else:
            paths[name] = path
    for name in metadata.others:
        path = tuple(map(str, metadata.paths.get(name, ()))) or (name,)
        left_out[_training(path) or "objects"] += 1
    while paths and len({path[0] for path in paths.values()}) == 1:
        if any(len(path) == 1 for path in paths.values()):
            break
        paths = {name: path[1:] for name, path in paths.items()}
    plain = _bare([".".join(path) for path in paths.values()])
    if len(set(plain)) < len(plain):
        plain = list(paths)
    return dict(zip(paths, plain, strict=True)), left_out


def _bare(names: Iterable[str]) -> list[str]:
    names = [_WRAPPERS.sub("", name) for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def _training(path: Sequence[str]) -> str:
    """Return what part of a training's state an entry is; empty for a weight of the model."""
    if _EXTRA.search(path[-1]):
        return "_extra_state"
    parts = [part for key in path for part in re.split(r"[./]", key)]
    first = parts[1] if parts[0] in _HOLDERS and len(parts) > 1 else parts[0]
    return first if _TRAINING.fullmatch(first) else ""


def _notes(folder: Path, left_out: Mapping[str, int]) -> list[str]:
    notes = []
    if left_out:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left_out.items()))
        total = sum(left_out.values())
        notes.append(
            f"{folder}: {counted(total, 'entries')} of the training's state left out: {kinds}"
        )
    return notes
