"""The files of a model folder by what becomes of them: merged, copied, left out. No torch.

Names decide, and small JSON files that loaders read: `modules.json` of sentence-transformers and
the configs of sub-folders. What is not known to be useless beside merged weights is copied, since
the model's own code may need it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import InputError
from .header import CONFIG
from .hub import PAGE_SUFFIXES, Hub
from .json_files import read_json, read_object
from .links import leads_out
from .weight_sets import (
    CONSOLIDATED,
    MAIN,
    STANDARD,
    WeightSet,
    completed,
    find_pickles,
    find_sets,
    main_weights,
)

TRAINING, CHECKPOINT = "state of the training", "checkpoint of the training"
FORMAT, SAME, EXPORT = (
    "another format of the weights",
    "another copy of the model",
    "export of the model",
)
LOGS, CACHE, INDEXES, ADAPTER = "logs", "cache", "index of weight files", "adapter beside a model"
HIDDEN, SECRET, LINK = "hidden", "may hold a secret", "link out of the model folder"
NO_FILE, NOT_FETCHED = "not a regular file", "not downloaded: part of the model's page"

_FORMATS = "onnx|openvino|coreml|tflite|litert|tensorrt|ctranslate2|executorch|gguf|ggml|mlx|metal"
_FOLDERS = (
    (HIDDEN, r"\..*"),
    (CACHE, r"__pycache__"),
    (LOGS, r"runs|wandb|tensorboard|mlruns|lightning_logs|swanlog|logs?"),
    (TRAINING, r"global_step\d+|(pytorch_model_fsdp|optimizer)_\d+"),
    (FORMAT, r"original"),
    (EXPORT, rf"({_FORMATS})([_-].*)?|.*[_-]({_FORMATS})|saved_model|.*\.(mlpackage|mlmodelc)"),
)
_FILES = (
    (SECRET, r"\.(env.*|netrc|git-credentials|npmrc|pypirc|pgpass|htpasswd|\w+_history)"),
    (SECRET, r".*\.(env|pem|key|p12|pfx|ppk|kdbx|jks|keystore)|_netrc|id_(rsa|dsa|ecdsa|ed25519)"),
    (SECRET, r"secrets?\..*|(.*[_-])?credentials?(\..*)?|kaggle\.json|service[_-]account.*\.json"),
    (SECRET, r"(hf_|stored_)?tokens?|hf_token\..*|api[_-]?keys?(\..*)?"),
    (CACHE, r".*\.(lock|incomplete)|\.gitattributes|\.DS_Store"),
    (HIDDEN, r"\..*"),
    (TRAINING, r"optimizer[\w.-]*\.(pt|pth|bin|safetensors)|.*_optim_states\.pt|.*\.distcp"),
    (TRAINING, r"(scheduler|scaler)\.(pt|bin)|rng_state[\w.-]*\.pth|random_states[\w.-]*\.pkl"),
    (TRAINING, r"training_args.*|trainer_state\.json"),
    (LOGS, r"events\.out\.tfevents\..*|.*\.log|trainer_log\.jsonl|nohup\.out|slurm-.*\.out"),
    (
        FORMAT,
        r".*\.(gguf|ggml|msgpack|ot|nemo|mlmodel)|(tf_|keras_)?model.*\.(h5|keras)|ggml-.*\.bin",
    ),
)
"""Reasons to leave a file out, and the names of such files; above, of such folders."""

_PARTS = "(encoder|decoder|decoder_with_past|text|vision|audio)_"
_BESIDE_WEIGHTS = (
    (FORMAT, r"(diffusion_)?pytorch_model[\w.-]*\.bin|consolidated[\w.-]*\.(pth|pt|safetensors)"),
    (SAME, r"(model|diffusion_pytorch_model)[\w.-]*\.safetensors"),
    (EXPORT, rf"({_PARTS})?model([._-][\w.-]+)?\.(onnx|tflite)([._]data.*)?"),
    (EXPORT, r"openvino_.*\.(xml|bin|json)"),
)
"""Left out beside weights alone. Graphs under other names than optimum's are other models."""

_INDEX = ((INDEXES, r".*\.index(\.\w+)?\.json"),)
_AT_THE_TOP = ((ADAPTER, r"adapter_(config\.json|model.*)"),)
_DATA = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|pkl|npy|npz|h5|onnx([._]data.*)?|xml|wav|arpa)"
)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model folder by what becomes of them; names are relative to the folder."""

    sets: tuple[WeightSet, ...] = (MAIN,)  # merged; the model's own weights first, if it has any
    copied: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)  # the reason by `file` or `folder/`
    unmerged: tuple[str, ...] = ()  # those of the copied that hold weights

    @property
    def untrusted(self) -> tuple[str, ...]:
        """The files left out that are of the user rather than of the model, or may be."""
        return tuple(name for name, why in self.left_out.items() if why in (SECRET, LINK))

    @property
    def data(self) -> tuple[str, ...]:
        """The copied files that hold numbers."""
        return tuple(filter(_DATA.fullmatch, self.copied))

    def copying(self, weights: WeightSet) -> ModelFiles:
        """Return the files with a set copied as it is; one in another precision is left out."""
        if weights.is_variant:
            return self.leaving(weights.paths, FORMAT)
        kept = tuple(other for other in self.sets if other != weights)
        unmerged = (*self.unmerged, *weights.files)
        return replace(
            self, sets=kept, copied=tuple(sorted((*self.copied, *weights.paths))), unmerged=unmerged
        )

    def leaving(self, names: Collection[str], reason: str) -> ModelFiles:
        """Return the files without some, which may be `folder/` for all that is in it."""
        places = tuple(name for name in names if name.endswith("/"))

        def stays(name: str) -> bool:
            return name not in names and not name.startswith(places)

        return replace(
            self,
            sets=tuple(s for s in self.sets if all(map(stays, s.files))),
            copied=tuple(filter(stays, self.copied)),
            left_out={**self.left_out, **dict.fromkeys(names, reason)},
        )


def survey(folder: Path, hub: Hub) -> ModelFiles:
    """Sort the files of a model folder, those on the Hub included. InputError, OSError.

    Without weights the result has no sets.
    """
    remote = hub.names(folder)
    names = {*_walk(folder, ""), *remote}
    checkpoints = {n.rpartition("/")[0] for n in names if n.endswith("/trainer_state.json")}
    left_out: dict[str, str] = {}
    inside: dict[str, list[str]] = {"": []}
    for name in sorted(names):
        where, _, file = name.rpartition("/")
        place, reason = _pruned(name, checkpoints) or (name, _reason(_FILES, file))
        if reason:
            left_out[place] = reason
        else:
            inside.setdefault(where, []).append(file)
    sets = tuple(_weights(folder, inside, names))
    merged = {name for weights in sets for name in weights.paths}
    with_weights, copied = {weights.folder for weights in sets}, list[str]()
    for where, files in inside.items():
        rules = (*_INDEX, *(() if where else _AT_THE_TOP))
        rules = (*rules, *(_BESIDE_WEIGHTS if where in with_weights else ()))
        for file in files:
            name = f"{where}/{file}" if where else file
            if name in merged:
                continue
            if reason := _reason(rules, file) or _absence(folder, name, name in remote):
                left_out[name] = reason
            else:
                copied.append(name)
    return ModelFiles(sets, tuple(sorted(copied)), left_out)


def _walk(folder: Path, where: str, seen: frozenset[Path] = frozenset()) -> Iterator[str]:
    """Yield the names of all files, and `folder/` in place of those in a folder to leave out."""
    here = (folder / where).resolve()
    with os.scandir(folder / where) as listed:
        entries = sorted(listed, key=lambda entry: entry.name) if here not in seen else []
    for entry in entries:
        name = f"{where}/{entry.name}" if where else entry.name
        if not _is_folder(entry):
            yield name
        elif _reason(_FOLDERS, entry.name):
            yield f"{name}/"
        else:
            yield from _walk(folder, name, seen | {here})


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _pruned(name: str, checkpoints: Collection[str]) -> tuple[str, str] | None:
    """Return the outermost folder of a file that is left out as a whole, and the reason."""
    parents = name.split("/")[:-1]
    for depth, parent in enumerate(parents, 1):
        place = "/".join(parents[:depth])
        reason = CHECKPOINT if place in checkpoints else _reason(_FOLDERS, parent)
        if reason:
            return f"{place}/", reason
    return None


def _reason(rules: Sequence[tuple[str, str]], name: str) -> str:
    return next((reason for reason, pattern in rules if re.fullmatch(pattern, name)), "")


def _absence(folder: Path, name: str, remote: bool) -> str:
    """Return why a file cannot be copied."""
    if (folder / name).is_file():
        return LINK if leads_out(folder, name) else ""
    if not remote:
        return NO_FILE
    return NOT_FETCHED if name.endswith(PAGE_SUFFIXES) else ""


def _weights(
    folder: Path, inside: Mapping[str, Sequence[str]], names: Collection[str]
) -> Iterator[WeightSet]:
    """Yield the weights to merge: the model's own, then those of other stems and sub-folders."""
    main, modules = main_weights(inside[""]), _modules(folder)
    if main is None and not modules:
        return
    taken = set[str]()
    if main is not None:
        main = completed(folder, main, names)
        taken = {*main.paths}
        yield main
    for where, files in inside.items():
        sets = find_sets(where, files)
        usual = next((stem for stem in STANDARD if stem in sets), None)
        pickles = find_pickles(where, files)
        if where and usual is None and pickles and _takes_safetensors(folder, where, modules):
            usual = next(iter(pickles))
            sets = {usual: pickles[usual], **sets}
        for stem, weights in sets.items():
            duplicate = stem.startswith(CONSOLIDATED) and (usual or (main and not where))
            if duplicate or not weights.paths or taken & {*weights.paths}:
                continue
            if stem != usual and not _is_whole(folder, weights):
                continue  # an index alone, a device: no loader looks for it
            short = where and stem == usual
            prefix = f"{where}/" if short else f"{where}/{stem}/".lstrip("/")
            yield completed(folder, replace(weights, prefix=prefix), names)


def _is_whole(folder: Path, weights: WeightSet) -> bool:
    """Return whether a set has weights, in regular files or in files to be downloaded."""
    paths = [folder / name for name in weights.files]
    return bool(paths) and all(path.is_file() or not os.path.lexists(path) for path in paths)


def _modules(folder: Path) -> tuple[str, ...]:
    """Return the sub-folders that hold modules of a sentence-transformers model."""
    try:
        listed = read_json(folder / "modules.json")
    except InputError:
        return ()
    paths = [m.get("path") for m in listed if isinstance(m, dict)] if type(listed) is list else []
    return tuple(path.strip("/") for path in paths if isinstance(path, str) and path.strip("/"))


def _takes_safetensors(folder: Path, where: str, modules: Sequence[str]) -> bool:
    """Return whether what loads a sub-folder reads safetensors in place of a pickle."""
    config = read_object(folder / where / CONFIG)
    known = any(key in config for key in ("model_type", "architectures", "_class_name"))
    return known or any(f"{where}/".startswith(f"{module}/") for module in modules)
