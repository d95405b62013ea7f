"""Weight files of one folder as loaders see them: sets of shards with one stem. No torch.

`model-00001-of-00002.safetensors`, its second half and `model.safetensors.index.json` are the set
of stem `model`; `diffusion_pytorch_model.fp16.safetensors` is a set of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..messages import first_names, printable
from .json_files import is_inside, weight_map

STANDARD = ("model", "diffusion_pytorch_model")
"""Stems that loaders look for: transformers and sentence-transformers, diffusers."""

CONSOLIDATED = "consolidated"
"""Stem of Mistral's and Llama's own format, often beside the same weights for transformers."""

PICKLED = {"pytorch_model": "model", "diffusion_pytorch_model": "diffusion_pytorch_model"}
"""Stems of pickles that loaders look for in place of a missing safetensors file of the second."""

_SHARD = re.compile(r"(.+?)(?:-(\d{5})-of-(\d{5}))?(\.\w+)?\.safetensors")
_NUMBERED = re.compile(r"(.*)-\d{5}-of-(\d{5})(\..*)")
_INDEX = re.compile(r"(.+)\.safetensors\.index(\.\w+)?\.json")


@dataclass(frozen=True)
class WeightSet:
    """Weight files that are read as one model or module; names are relative to the model folder.

    `prefix` is before the names of its tensors in a checkpoint, empty for the model's main weights.
    """

    folder: str = ""
    stem: str = "model"
    prefix: str = ""
    files: tuple[str, ...] = ()
    index: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of all files, the index included."""
        return (*self.files, self.index) if self.index else self.files

    @property
    def is_split(self) -> bool:
        """Whether its loader reads several shards: models, and what is in several shards."""
        main = not self.prefix and self.stem.partition(".")[0] in (*STANDARD, CONSOLIDATED)
        return main or bool(self.index) or len(self.files) > 1

    @property
    def is_variant(self) -> bool:
        """Whether the stem is that of standard weights in another precision: `model.fp16`."""
        stem, dot, _ = self.stem.partition(".")
        return bool(dot) and stem in STANDARD

    def file_name(self, number: int, count: int) -> str:
        """Return the relative name of a file of the result, one of `count`."""
        part = f"-{number + 1:05d}-of-{count:05d}" if count > 1 else ""
        return _relative(self.folder, f"{self.stem}{part}.safetensors")

    @property
    def index_name(self) -> str:
        stem, dot, variant = self.stem.partition(".") if self.is_variant else (self.stem, "", "")
        return _relative(self.folder, f"{stem}.safetensors.index{dot}{variant}.json")


MAIN = WeightSet()
"""Weights of a model that is one file, or is not on disk yet."""


def owner(tensor: str, sets: Sequence[WeightSet]) -> WeightSet:
    """Return the set of a tensor of a checkpoint, the first one if no prefix fits."""
    fits = [weights for weights in sets if tensor.startswith(weights.prefix)]
    return max(fits, key=lambda weights: len(weights.prefix), default=sets[0])


def find_sets(where: str, names: Iterable[str]) -> dict[str, WeightSet]:
    """Return the sets of safetensors by stem; `names` are those of files in the folder `where`.

    Adapters are none: they belong to another model.
    """
    sets: dict[str, WeightSet] = {}
    for name in sorted(names):
        shard, index = _SHARD.fullmatch(name), _INDEX.fullmatch(name)
        found = None if name.startswith("adapter_") else shard or index
        if found is None:
            continue
        stem = found[1] + (found[found.re.groups] or "")
        weights = sets.get(stem, WeightSet(where, stem))
        if shard:
            sets[stem] = replace(weights, files=(*weights.files, _relative(where, name)))
        else:
            sets[stem] = replace(weights, index=_relative(where, name))
    return sets


def find_pickles(where: str, names: Iterable[str]) -> dict[str, WeightSet]:
    """Return the pickled weights in the folder `where`, by the stem that takes their place."""
    sets, names = dict[str, WeightSet](), frozenset(names)
    for pickled, stem in PICKLED.items():
        index, file = f"{pickled}.bin.index.json", f"{pickled}.bin"
        if index in names or file in names:
            files = (_relative(where, file),) if file in names else ()
            listed = _relative(where, index) if index in names else ""
            sets[stem] = WeightSet(where, stem, files=files, index=listed)
    return sets


def main_weights(names: Iterable[str]) -> WeightSet | None:
    """Return the weights of the model itself among the files at the top of its folder.

    Those of a standard stem, else all safetensors but the duplicates in the format of
    `consolidated`, else these, else pickles; None if there are none.
    """
    names = list(names)
    sets, pickles = find_sets("", names), find_pickles("", names)
    for stem in STANDARD:
        if stem in sets:
            return sets[stem]
    whole = {stem: weights for stem, weights in sets.items() if weights.files}
    plain = {s: weights for s, weights in whole.items() if not s.startswith(CONSOLIDATED)} or whole
    if len(plain) > 1:
        return WeightSet(files=tuple(sorted(file for w in plain.values() for file in w.files)))
    return next(iter((*plain.values(), *pickles.values())), None)


def completed(folder: Path, weights: WeightSet, names: Collection[str]) -> WeightSet:
    """Return a set with the files that are read: a single one, else by index, else by number.

    This is the order of transformers, which leaves an old index where it saves a single file.
    `names` are the files of the model folder, here or on the Hub. Raises InputError if the index
    is damaged or leaves the folder, and if shards are missing.
    """
    incomplete = "the download or copy is incomplete"
    pickles = (f"{pickled}.bin" for pickled, stem in PICKLED.items() if stem == weights.stem)
    singles = {f"{weights.stem}.safetensors", *pickles}
    for name in weights.files:
        if name.rpartition("/")[2] in singles:
            return replace(weights, files=(name,), index="")
    if not weights.index:
        for total, complete in _numberings(weights.files).items():
            missing = sorted(complete - {*weights.files})
            _refuse_missing(folder, missing, f"{total} shards", incomplete)
        return weights
    index = folder / weights.index
    shards = sorted(set(weight_map(index).values()))
    for shard in shards:
        if not is_inside(shard):
            raise InputError(f"{index}: shard '{printable(shard)}' is outside the model folder")
    files = tuple(_relative(weights.folder, shard) for shard in shards)
    missing = [n for n in files if n not in names and not os.path.lexists(folder / n)]
    beside = (n for n in names if n.rpartition("/")[0] == weights.folder and n not in files)
    others = sorted(n for n in beside if n.endswith(".safetensors"))
    left_over = f"if the model is {first_names(others)}, remove the left-over {index.name}"
    hint = left_over if others else incomplete
    _refuse_missing(folder, missing, f"{len(files)} shards in its index", hint)
    return replace(weights, files=files)


def left_over_index(folder: Path, weights: WeightSet) -> Path | None:
    """Return the index beside a single file of weights, unless it lists this file alone."""
    if weights.index or len(weights.files) != 1:
        return None
    single = folder / weights.files[0]
    index = single.with_name(f"{single.name}.index.json")
    if not index.is_file():
        return None
    try:
        return index if set(weight_map(index).values()) != {single.name} else None
    except InputError:
        return index


def _relative(where: str, name: str) -> str:
    return f"{where}/{name}" if where else name


def _refuse_missing(folder: Path, missing: Sequence[str], all_shards: str, hint: str) -> None:
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {all_shards} are missing: {first_names(missing)}\n"
            f"  {hint}"
        )


def _numberings(files: Iterable[str]) -> dict[int, set[str]]:
    """Return the complete lists of shards that numbered names state, by their count."""
    complete: dict[int, set[str]] = {}
    for name in files:
        numbered = _NUMBERED.fullmatch(name)
        if numbered is not None:
            stem, total, end = numbered.groups()
            shards = {f"{stem}-{n:05d}-of-{total}{end}" for n in range(1, int(total) + 1)}
            complete.setdefault(int(total), set()).update(shards)
    return complete
