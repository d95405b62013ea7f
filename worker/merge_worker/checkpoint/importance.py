"""Importance files: one number for each weight or channel of a model. Headers only, no torch.

A file has the names of the model's tensors: `X.weight`, `X.weight.exp_avg_sq` (Adam's second
moments) or `X.weight.grad_sq`; Adafactor's sums are `X.weight.exp_avg_sq_row` and `_col`, and the
mean squares of the inputs of a linear layer `X.gram`. Its metadata may say its `kind` and the
digest of the `model` that it belongs to. Optimizer states are read by `optimizer_states`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError, input_errors
from ..messages import counted, first_names, nearest, printable
from ..tensors.importance import OuterTensor
from ..tensors.source import TensorSource
from .folder import PICKLES, Checkpoint, exists
from .header import CONFIG, Shard, read_shard
from .hub import Hub, in_snapshot, is_hub_name
from .optimizer_states import (
    is_optimizer,
    read_optimizer,
    read_universal,
    refuse_sharded,
    universal,
)
from .torch_zip import open_pickled

ROLES = {
    "fisher": "squares",
    "squared_gradients": "squares",
    "adam_v": "squares",
    "gram": "gram",
    "activation": "activation",
}
"""What the kinds of importance files hold: squared gradients of every weight, mean squares of the
inputs of a linear layer, or mean magnitudes of its inputs."""

OPTIMIZER = "optimizer.pt"

_SUFFIXES = (".grad_sq", ".exp_avg_sq")
"""Endings of squared gradients. Files with `X.weight.grad_sq` have other numbers as `X.weight`."""

_ROW, _COLUMN, _GRAM = ".exp_avg_sq_row", ".exp_avg_sq_col", ".gram"


@dataclass(frozen=True)
class ImportanceFile(Checkpoint):
    """An importance file: `tensors` by the names of the model's tensors, for what `role` says."""

    kind: str = field(default="", kw_only=True)
    role: str = field(default="", kw_only=True)  # a value of ROLES; empty if the file does not say
    grams: Mapping[str, TensorSource] = field(default_factory=dict, kw_only=True, repr=False)
    model: str = field(default="", kw_only=True)  # digest of the model's headers

    @property
    def folder(self) -> Path | None:
        """None: nothing but tensors is read."""
        return None

    @cached_property
    def config(self) -> dict[str, Any]:
        return {}


def model_digest(model: Checkpoint) -> str:
    """Return the digest of a model's headers, which importance files hold as `model`.

    The digest depends on names, shapes, dtypes and metadata, and not on the order of the files.
    """
    digests = sorted(shard.header_sha256 for shard in model.shards)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def locate_importance(word: str, relative_to: Path, hub: Hub) -> Path:
    """Return the place of a path, or of a file of the Hub: `org/name/path` or `org/name:path`.

    `org/name@revision/path` names a revision. Raises InputError if it does not exist.
    """
    try:
        path = relative_to / Path(word).expanduser()
    except RuntimeError:
        raise InputError(f"{word}: no such user; give the path from / on") from None
    if exists(path):
        return path
    place = hub_place(word)
    if place is None:
        near = ""
        if path.parent.is_dir():
            near = printable(nearest(path.name, (other.name for other in path.parent.iterdir())))
        raise InputError(
            f"{word}: no such importance file{near}; on the Hub one is org/name/path/in/repo"
        )
    name, revision, inner = place
    folder = hub.resolve_revision(name, revision)
    path = folder / inner
    known = hub.names(folder)
    if exists(path) or inner in known or any(file.startswith(f"{inner}/") for file in known):
        return path
    raise InputError(f"{word}: {name} has no file or folder '{printable(inner)}'")


def hub_place(word: str) -> tuple[str, str | None, str] | None:
    """Return repository, revision and path of a file on the Hub; None if `word` is not one."""
    if word.startswith(("/", ".", "~")) or "//" in word:
        return None
    before, colon, inner = word.partition(":")
    if not colon:
        organisation, _, rest = word.partition("/")
        repository, _, inner = rest.partition("/")
        before = f"{organisation}/{repository}"
    name, _, revision = before.partition("@")
    inner = inner.strip("/")
    if not inner or not is_hub_name(before, revision=True) or ".." in inner.split("/"):
        return None
    return name, revision or None, inner


def open_importance(path: Path, hub: Hub, model: Checkpoint) -> ImportanceFile:
    """Read all headers of an importance file, a folder of shards, or a state of an optimizer.

    `model` is the model that it belongs to, whose parameters a state lists only by their numbers.
    Raises InputError with what is wrong, and what converts a form that cannot be read.
    """
    with input_errors(path):
        if path.is_dir() or not (exists(path) or hub.is_not_downloaded(str(path))):
            return _open_folder(path, hub, model)
    if path.suffix in PICKLES:
        return _open_pickle(path, hub, model)
    shard = hub.read_header(path) if hub.is_not_downloaded(str(path)) else read_shard(path)
    return _named(path, (shard,), {info.name: info for info in shard.tensors})


def _open_folder(path: Path, hub: Hub, model: Checkpoint) -> ImportanceFile:
    names = _names_in(path, hub)
    refuse_sharded(path, names)
    if (parameters := universal(path)) is not None:
        return _named(path, *read_universal(parameters), kind="adam_v")
    if OPTIMIZER in names:
        return _open_pickle(path / OPTIMIZER, hub, model)
    if CONFIG in names:
        raise InputError(f"{path}: a model, not its importance; give the file with importance")
    files = [path / name for name in sorted(names) if name.endswith(".safetensors")]
    if not files:
        raise InputError(
            f"{path}: no importance in this folder; expected *.safetensors, {OPTIMIZER}, or "
            f"zero/NAME/exp_avg_sq.pt"
        )
    shards, tensors = list[Shard](), dict[str, TensorSource]()
    for file in files:
        shard = hub.read_header(file) if hub.is_not_downloaded(str(file)) else read_shard(file)
        shards.append(shard)
        twice = next((info.name for info in shard.tensors if info.name in tensors), None)
        if twice:
            raise InputError(
                f"{path}: '{printable(twice)}' is in two files; name one importance file"
            )
        tensors |= {info.name: info for info in shard.tensors}
    return _named(path, tuple(shards), tensors)


def _names_in(path: Path, hub: Hub) -> set[str]:
    """Return the names of the files in a folder, here or on the Hub."""
    names = {item.name for item in path.iterdir()} if path.is_dir() else set()
    if place := in_snapshot(path / CONFIG):
        inner = place[2].removesuffix(CONFIG)
        root = Path(str(path / CONFIG).removesuffix(place[2]))
        below = (n.removeprefix(inner) for n in hub.names(root) if n.startswith(inner))
        names |= {name for name in below if "/" not in name}
    return names


def _open_pickle(path: Path, hub: Hub, model: Checkpoint) -> ImportanceFile:
    refuse_sharded(path, {path.name})
    hub.download(str(path))
    pickled = open_pickled(path)
    if is_optimizer(pickled.value):
        shards, tensors = read_optimizer(pickled, model)
        return _named(path, shards, tensors, kind="adam_v")
    shard, tensors = pickled.place(pickled.tensors())
    return _named(path, (shard,), tensors)


def _named(
    path: Path, shards: tuple[Shard, ...], tensors: Mapping[str, TensorSource], kind: str = ""
) -> ImportanceFile:
    """Return importance by the names of the model's tensors. InputError for an empty file."""
    texts = {name: text for shard in shards for name, text in shard.metadata}
    kind = kind or texts.get("kind", "")
    notes = []
    if kind and kind not in ROLES:
        known = ", ".join(ROLES)
        notes.append(f"{path}: unknown kind '{printable(kind)}' of importance; known: {known}")
    if not tensors:
        raise InputError(f"{path}: no tensors in this importance file")
    plain, grams = dict[str, TensorSource](), dict[str, TensorSource]()
    better: dict[str, TensorSource] = {}
    for name, source in tensors.items():
        suffix = next((end for end in _SUFFIXES if name.endswith(end)), "")
        if suffix:
            better.setdefault(name.removesuffix(suffix), source)
        elif name.endswith(_GRAM):
            stem = name.removesuffix(_GRAM).removesuffix(".weight")
            grams[f"{stem}.weight"] = source
        elif name.endswith(_ROW):
            own = name.removesuffix(_ROW)
            better[own] = _outer(path, own, tensors)
        elif not name.endswith((_COLUMN, ".exp_avg", ".step")):
            plain[name] = source
    role = ROLES.get(kind, "")
    if role == "gram":
        grams, plain = plain | grams, {}
    elif grams and not plain and not better and not role:
        role = "gram"
    return ImportanceFile(
        path,
        shards,
        {name: source for name, source in (plain | better).items()},
        notes=tuple(notes),
        kind=kind,
        role=role,
        grams=grams,
        model=texts.get("model", ""),
    )


def _outer(path: Path, name: str, tensors: Mapping[str, TensorSource]) -> TensorSource:
    """Return Adafactor's estimate for a tensor. Raises InputError if one of its sums is missing."""
    row, column = tensors[name + _ROW], tensors.get(name + _COLUMN)
    if column is None:
        raise InputError(f"{path}: '{printable(name)}{_ROW}' is there, but '{_COLUMN}' is not")
    return OuterTensor.of(row, column, name)


def refuse_misfits(path: Path, faults: Iterable[str]) -> None:
    """Raise InputError with tensors whose importance does not fit."""
    listed = list(faults)
    if listed:
        count = counted(len(listed), "tensors differ from those of the model")
        raise InputError(f"{path}: {count}: {first_names(listed)}")
