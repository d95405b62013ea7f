"""Importance of the models of a merge: files opened, fitted to their models, and rearranged like
the weights.

Whatever became of a weight on its way to the merge (another layout, other rows, a slice of it)
becomes of its importance too: the importance takes the place of the stored tensor.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..checkpoint.folder import Checkpoint
from ..checkpoint.importance import (
    ImportanceFile,
    locate_importance,
    model_digest,
    open_importance,
    refuse_misfits,
)
from ..conversion.convert import convert_models
from ..conversion.known_layouts import known_layouts
from ..dtypes import BY_NAME, Kind
from ..errors import InputError
from ..messages import counted, first_names, printable
from ..method import Method, Task
from ..recipe.schema import ModelRef, Recipe, Source
from ..structure.components import is_computed
from ..structure.embeddings import embeddings, is_head, ties_head
from ..tensors.importance import Figures, Importance, ModelFigures, spread, zeros
from ..tensors.row_gather import GatheredRows
from ..tensors.source import DerivedTensor, StoredTensor, TensorSource
from ..tensors.views import TransposedTensor, reshape, slice_axis, transpose
from .options import PlanOptions

NOUNS = {
    "squares": "squared gradients of its weights",
    "gram": "mean squares of the inputs of its layers",
    "activation": "activations",
}


@dataclass(frozen=True)
class ImportanceInputs:
    """The importance files of one document, each with the model that it belongs to."""

    files: tuple[ImportanceFile, ...] = ()
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    fitted: Mapping[tuple[int, str], _Fitted] = field(default_factory=dict, repr=False)

    def has(self, source: Source, number: int) -> bool:
        """Return whether model `number` of a source of the recipe has an importance file."""
        return source.importance is not None and (number, source.importance.word) in self.fitted

    def role(self, source: Source, number: int) -> str:
        """Return what the file of a source holds; empty if it has none."""
        return self._of(source, number).role if self.has(source, number) else ""

    def find(self, source: Source, number: int, tensor: TensorSource) -> TensorSource | None:
        """Return the importance of a tensor, None if its file has none."""
        return self._of(source, number).find(tensor)

    def figures(self, source: Source, number: int, index: int) -> Importance:
        """Return the entry of a task for importance at `index` of its sources."""
        model = self._of(source, number).figures
        figures = Figures()
        model.tensors.append(figures)
        return Importance(index, figures, model)

    def left_out(self, recipe: Recipe, method: Method, tasks: Sequence[Task]) -> Iterator[str]:
        """Yield what becomes of models and bases whose importance is missing, or has no use."""
        if method.importance and tasks and not any(task.importance for task in tasks):
            sources = (s for m in recipe.modules for part in m.slices for s in part.sources)
            lacking = [str(s.model) for s in sources if not s.importance and s.model != recipe.base]
            if lacking:
                yield (
                    f"{recipe.where}: no importance of {first_names(dict.fromkeys(lacking))}: the "
                    f"models are averaged by their weights alone; add 'importance: FILE' to each"
                )
        aimed = any(task.activations is not None for task in tasks)
        if any(fit.role == "activation" for fit in self.fitted.values()) and not aimed:
            yield f"{recipe.where}: the activations of the base have no effect without aim_omega"

    def _of(self, source: Source, number: int) -> _Fitted:
        assert source.importance is not None
        return self.fitted[number, source.importance.word]


def open_importances(
    recipe: Recipe,
    method: Method,
    numbers: Mapping[ModelRef, int],
    models: Sequence[Checkpoint],
    options: PlanOptions,
) -> ImportanceInputs:
    """Open the importance files that a document names; `models` are as they are on disk.

    Raises InputError with every file that cannot be opened, or does not fit its model.
    """
    base = recipe.base
    faults: list[str] = []
    files: list[ImportanceFile] = []
    labels: list[str] = []
    notes: list[str] = []
    fitted: dict[tuple[int, str], _Fitted] = {}
    for source in _sources(recipe):
        assert source.importance is not None
        number, word = numbers[source.model], source.importance.word
        if (number, word) in fitted:
            continue
        try:
            path = locate_importance(word, options.relative_to, options.hub)
            file = open_importance(path, options.hub, models[number])
            role = _role(file, method, is_base=source.model == base)
            fit = _fit(file, role, models[number], str(source.model))
        except InputError as error:
            faults.append(str(error))
            continue
        fitted[number, word] = fit
        files.append(file)
        labels.append(word)
        notes += [*file.notes, *fit.notes]
    if faults:
        raise InputError("\n".join(faults))
    return ImportanceInputs(tuple(files), tuple(labels), tuple(dict.fromkeys(notes)), fitted)


def _sources(recipe: Recipe) -> list[Source]:
    parts = (part for module in recipe.modules for part in module.slices)
    return [source for part in parts for source in part.sources if source.importance]


def _role(file: ImportanceFile, method: Method, *, is_base: bool) -> str:
    """Return what a file is read for. Raises InputError for another kind than the method reads."""
    wanted = method.importance
    if is_base and (file.role == "activation" or not wanted):
        wanted = "activation"
    if file.role and wanted != file.role:
        raise InputError(
            f"{file.path}: {NOUNS[file.role]} (kind {file.kind or file.role}), but {method.name} "
            f"reads {NOUNS[wanted]}"
        )
    return wanted


@dataclass(frozen=True)
class _Fitted:
    """The importance of a model's tensors by the places of the tensors, as they are on disk."""

    role: str
    figures: ModelFigures
    swap: _Swap
    notes: tuple[str, ...] = ()

    def find(self, tensor: TensorSource) -> TensorSource | None:
        found = self.swap.of(tensor)
        return found and reshape(found, tensor.shape, tensor.name)


def _fit(file: ImportanceFile, role: str, model: Checkpoint, label: str) -> _Fitted:
    """Fit a file to its model. Raises InputError for shapes that differ, or if nothing fits."""
    given = file.grams if role == "gram" else file.tensors
    if role == "gram" and not given:
        given = file.tensors
    named = _renamed(given, model.tensors)
    notes: list[str] = []
    if role == "squares" and not named.keys() <= model.tensors.keys():
        named, notes = _converted(file, named, model, label)
    found: dict[str, TensorSource] = {}
    faults: list[str] = []
    for name, source in named.items():
        tensor = model.tensors.get(name)
        if tensor is None:
            continue
        shaped = _shaped(source, tensor, role)
        if source.dtype.kind is not Kind.FLOAT:
            faults.append(f"{printable(name)} is {source.dtype.torch_name}")
        elif shaped is None:
            faults.append(
                f"{printable(name)} is {list(source.shape)}, in the model {list(tensor.shape)}"
            )
        else:
            found[name] = shaped
    refuse_misfits(file.path, faults)
    if not found:
        raise InputError(
            f"{file.path}: no importance of the tensors of {label}: it has {first_names(given)}, "
            f"the model {first_names(model.tensors)}"
        )
    _tie(found, model)
    notes += _notes(file, role, (label, model), found, len(named))
    return _Fitted(role, ModelFigures(label), _Swap.of_model(model, found), tuple(notes))


def _renamed(
    given: Mapping[str, TensorSource], tensors: Mapping[str, TensorSource]
) -> dict[str, TensorSource]:
    """Return importance by the names of the model, which may begin in another way."""
    pairs = [each for pair in known_layouts().prefixes for each in (pair, pair[::-1])]
    renamed: dict[str, TensorSource] = {}
    for name, source in given.items():
        own = name
        if name not in tensors:
            others = (new + name[len(old) :] for old, new in pairs if name.startswith(old))
            own = next((other for other in others if other in tensors), name)
        if own not in renamed or own == name:
            renamed[own] = source
    return renamed


def _converted(
    file: ImportanceFile, named: Mapping[str, TensorSource], model: Checkpoint, label: str
) -> tuple[dict[str, TensorSource], list[str]]:
    """Return importance in the layout of the model, whose experts may be apart, for instance."""
    like = _Alike(file.path, file.shards, {n: replace(s, name=n) for n, s in named.items()})
    object.__setattr__(like, "model_config", model.config)
    (_, converted), notes = convert_models((model, like), (label, str(file.path)), ())
    return converted.tensors, notes


@dataclass(frozen=True)
class _Alike(Checkpoint):
    """Importance with the config of its model, by which layouts are known."""

    model_config: Mapping[str, object] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> dict[str, object]:
        return dict(self.model_config)


def _shaped(source: TensorSource, tensor: TensorSource, role: str) -> TensorSource | None:
    """Return importance in the shape of its tensor; None if it does not fit.

    One number for each channel holds for all that the channel is an input of.
    """
    if role == "squares":
        return reshape(source, tensor.shape, source.name) if source.shape == tensor.shape else None
    if role == "gram" and source.shape == tensor.shape and len(tensor.shape) > 1:
        return None  # a whole matrix of a square layer
    return spread(source, tensor.shape, source.name, relative=role == "activation")


def _tie(found: dict[str, TensorSource], model: Checkpoint) -> None:
    """Add the importance of a tied head, which is that of the embedding, or the other way round."""
    if not ties_head(model.config):
        return
    heads = [name for name in model.tensors if is_head(name)]
    for head in heads:
        for embedding in embeddings(model.tensors):
            if embedding.shape != model.tensors[head].shape:
                continue
            if embedding.name in found and head not in found:
                found[head] = replace(found[embedding.name], name=head)
            elif head in found and embedding.name not in found:
                found[embedding.name] = replace(found[head], name=embedding.name)


def _notes(
    file: ImportanceFile,
    role: str,
    of: tuple[str, Checkpoint],
    found: Mapping[str, TensorSource],
    given: int,
) -> list[str]:
    label, model = of
    notes = []
    if file.model and file.model != model_digest(model):
        notes.append(f"{file.path}: made from another model than {label}: its header differs")
    if given > len(found):
        extra = counted(given - len(found), "tensors are not in the model, and ignored")
        notes.append(f"{file.path}: {extra}")
    weights = [
        name
        for name, tensor in model.tensors.items()
        if tensor.dtype.kind is Kind.FLOAT and not is_computed(name, tensor.shape)
    ]
    absent = [name for name in weights if name not in found]
    if absent and role == "squares":
        count = counted(len(absent), "tensors have no importance, which counts as 0")
        notes.append(f"{file.path}: {count}: {first_names(absent)}")
    return notes


class _Place(NamedTuple):
    """Where an entry of a model is stored: its file, and the bytes [offset, stop)."""

    offset: int
    stop: int
    name: str
    transposed: bool


@dataclass(frozen=True)
class _Swap:
    """Replaces the stored tensors of a model by their importance, in any rearrangement of them."""

    found: Mapping[str, TensorSource]
    stored: Mapping[str, list[_Place]]  # by file, in order of offset
    derived: Mapping[str, str]

    @classmethod
    def of_model(cls, model: Checkpoint, found: Mapping[str, TensorSource]) -> _Swap:
        stored: dict[str, list[_Place]] = {}
        derived: dict[str, str] = {}
        # Tensors that share their bytes: the one with importance comes last, and is found.
        for name in sorted(model.tensors, key=lambda name: name in found):
            source = model.tensors[name]
            inner, transposed = source, False
            if isinstance(source, DerivedTensor):
                derived[_key(source)] = name
                if not isinstance(source, TransposedTensor):
                    continue
                inner, transposed = source.inputs[0], True
            if isinstance(inner, StoredTensor):
                place = _Place(inner.offset, inner.offset + inner.nbytes, name, transposed)
                stored.setdefault(inner.file, []).append(place)
        for places in stored.values():
            places.sort(key=lambda place: place.offset)
        return cls(found, stored, derived)

    def of(self, source: TensorSource) -> TensorSource | None:
        """Return the importance of a tensor; None if no part of it has any."""
        if isinstance(source, StoredTensor):
            return self._stored(source)
        name = self.derived.get(_key(source))
        if name is not None:
            return self.found.get(name) and reshape(self.found[name], source.shape, source.name)
        parts = [self.of(part) for part in source.inputs]
        if not any(parts):
            return None
        inputs = [
            part or zeros(own.shape, own.name)
            for part, own in zip(parts, source.inputs, strict=True)
        ]
        wide = any(part.dtype.bits > 32 for part in inputs)
        same = {part.dtype for part in inputs}
        dtype = same.pop() if len(same) == 1 else BY_NAME["F64" if wide else "F32"]
        if isinstance(source, GatheredRows):
            return source.over(tuple(inputs), dtype)
        return replace(source, inputs=tuple(inputs), dtype=dtype, declared_dtype=None)

    def _stored(self, source: StoredTensor) -> TensorSource | None:
        places = self.stored.get(source.file, [])
        number = bisect_right(places, source.offset, key=lambda place: place.offset) - 1
        if number < 0 or source.offset + source.nbytes > places[number].stop:
            return None
        place = places[number]
        found = self.found.get(place.name)
        if found is None:
            return None
        if place.transposed:
            found = transpose(found, found.name)
        first = (source.offset - place.offset) // source.dtype.bytes
        if source.count != found.count:
            flat = reshape(found, (found.count,), found.name)
            found = slice_axis(flat, 0, first, first + source.count, source.name)
        return reshape(found, source.shape, source.name)


def _key(source: TensorSource) -> str:
    """Return a text that two tensors share if they are computed alike from the same bytes."""
    if isinstance(source, StoredTensor):
        return f"{source.file}:{source.offset}:{source.nbytes}"
    inner = [_key(part) for part in source.inputs]
    return json.dumps([source.kind, source.fingerprint(), inner], default=str)
