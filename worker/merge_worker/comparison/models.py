"""The tensors of several models that can be compared: same name, same shape, floating. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.fp8 import is_quantized, way_out
from ..dtypes import Kind
from ..errors import InputError
from ..messages import counted, first_names, printable
from ..method import matrix_shape
from ..planning.shared_weights import share_weights
from ..structure.components import component_of, place_of
from ..structure.embeddings import tied_head
from ..structure.sizes import Sized, size_differences
from ..tensors.source import StoredTensor, TensorSource


@dataclass(frozen=True, slots=True)
class Shared:
    """A tensor that all models have; `infos` in the order of the models."""

    name: str
    component: str
    stack: str
    layer: int
    infos: tuple[StoredTensor, ...]
    sketched: bool  # the largest matrix of its layer and component

    @property
    def shape(self) -> tuple[int, ...]:
        return self.infos[0].shape

    @property
    def count(self) -> int:
        return self.infos[0].count


@dataclass(frozen=True)
class Models:
    """The models, the base first if there is one, and the tensors they share."""

    labels: tuple[str, ...]
    has_base: bool
    tensors: tuple[Shared, ...]
    left_out: tuple[str, ...]  # messages: tensors that cannot be compared, and why
    mergeable: bool  # no floating tensor is left out

    @property
    def own(self) -> range:
        """Indices of the models other than the base."""
        return range(int(self.has_base), len(self.labels))

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Indices of every two models other than the base."""
        return [(i, j) for i in self.own for j in self.own if i < j]


def open_models(paths: Sequence[str], base: str | None) -> Models:
    """Read the headers of all models. InputError names all that cannot be opened or compared."""
    words = [*([base] if base else []), *paths]
    faults: list[str] = []
    models: list[Checkpoint] = []
    for word in words:
        try:
            models.append(open_checkpoint(Path(word).expanduser()))
        except (InputError, RuntimeError) as error:
            faults.append(str(error))
    faults += [
        f"{m.path}: {why}\n  {way_out(m, str(m.path))}" for m in models if (why := is_quantized(m))
    ]
    if faults:
        raise InputError("\n".join(faults))
    return align(models, short_labels(words), base is not None)


def short_labels(words: Sequence[str]) -> tuple[str, ...]:
    """Return the last parts of the paths, as many as are needed to make them distinct."""
    parts = [Path(word).resolve().parts for word in words]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = [printable("/".join(part[-length:])) for part in parts]
        if len(set(names)) == len({*parts}):
            break
    # A folder given twice is numbered.
    return tuple(
        n if names.count(n) == 1 else f"{n} ({names[:i].count(n) + 1})" for i, n in enumerate(names)
    )


def align(models: Sequence[Checkpoint], labels: tuple[str, ...], has_base: bool) -> Models:
    """Match tensors by name and shape. InputError if none matches."""
    first, missing, integers = models[0], set[str](), 0
    shared: list[tuple[str, tuple[StoredTensor, ...]]] = []
    shapes: list[str] = []
    for name, info in first.tensors.items():
        infos = [_find(model, name, info) for model in models]
        kinds = {peer.dtype.kind for peer in infos if peer}
        if kinds == {Kind.INTEGER}:
            integers += 1
        elif None in infos or kinds != {Kind.FLOAT}:
            missing.add(name)
        elif len({peer.shape for peer in infos if peer}) > 1:
            sizes = ", ".join(str(list(peer.shape)) for peer in infos if peer)
            shapes.append(f"{printable(name)} ({sizes})")
        else:
            shared.append((name, tuple(peer for peer in infos if peer)))
    for model in models:
        missing |= {
            name
            for name, info in model.tensors.items()
            if name not in first.tensors
            and info.dtype.kind is Kind.FLOAT
            and None in (_find(other, name, info) for other in models)  # not tied in the others
        }
    sized = [Sized(n, m.config, m.tensors) for n, m in zip(labels, models, strict=True)]
    differences = {m.label: size_differences(sized[0], m) for m in sized[1:]}
    sizes_apart = [f"{label}: {text} in {labels[0]}" for label, text in differences.items() if text]
    if not shared and sizes_apart:
        raise InputError("\n".join([*sizes_apart, "  models of other sizes are not compared"]))
    if not shared:
        raise InputError(
            f"{', '.join(labels)}: no floating tensor has the same name and shape in all of them; "
            f"these models do not share an architecture"
        )
    left_out = (*sizes_apart, *_left_out(sorted(missing), shapes, integers))
    # Modules in sub-folders that only some models have do not keep the others from being merged.
    kept, _ = share_weights(models, labels)
    mergeable = not shapes and not any(missing & model.tensors.keys() for model in kept)
    return Models(labels, has_base, tuple(_in_layers(shared)), left_out, mergeable)


def _find(model: Checkpoint, name: str, info: TensorSource) -> StoredTensor | None:
    """Return the tensor, or the embedding that serves as head in a model with tied embeddings."""
    tensor = model.tensors.get(name) or tied_head(name, info.shape, model.tensors, model.config)
    return tensor if isinstance(tensor, StoredTensor) else None


def _left_out(missing: list[str], shapes: list[str], integers: int) -> list[str]:
    reasons = {"tensors are not in all models": missing, "tensors differ in shape": shapes}
    lines = [
        f"{counted(len(names), text)}: {first_names(names)}"
        for text, names in reasons.items()
        if names
    ]
    if integers:
        lines.append(counted(integers, "tensors of integers or booleans are not compared"))
    return lines


def _in_layers(shared: Sequence[tuple[str, tuple[StoredTensor, ...]]]) -> list[Shared]:
    """Sort tensors by layer, and mark the largest matrix of each layer and component."""
    stacks: dict[str, int] = {"input": -1}
    keys = {name: (component_of(name), *place_of(name)) for name, _ in shared}
    for _, stack, _ in keys.values():
        stacks.setdefault(stack, len(stacks))
    stacks["output"] = len(stacks)
    largest: dict[tuple[str, str, int], tuple[int, str]] = {}
    for name, infos in shared:
        matrix = matrix_shape(infos[0].shape)
        if matrix and min(matrix) > 1 and infos[0].count > largest.get(keys[name], (0, ""))[0]:
            largest[keys[name]] = (infos[0].count, name)
    marked = {name for _, name in largest.values()}
    tensors = [Shared(name, *keys[name], infos, name in marked) for name, infos in shared]
    return sorted(tensors, key=lambda tensor: (stacks[tensor.stack], tensor.layer))
