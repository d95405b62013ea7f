"""The models that a recipe names → checkpoints: found, opened, plain, adapted, in one layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from ..adapters.apply import open_adapted
from ..checkpoint import hub
from ..checkpoint.folder import Checkpoint, exists, is_hub_id, open_checkpoint
from ..checkpoint.fp8 import dequantised
from ..conversion.convert import convert_models
from ..errors import InputError
from ..messages import nearest, printable
from ..recipe.schema import ModelRef, Recipe
from ..tokenizer.files import SideFiles
from .options import PlanOptions
from .stages import PlannedCheckpoint


def open_all(
    refs: Sequence[ModelRef], options: PlanOptions, results: Mapping[str, PlannedCheckpoint]
) -> tuple[dict[ModelRef, int], tuple[Checkpoint, ...]]:
    """Every folder once, and its number by reference; all that cannot be opened are named."""
    faults: list[str] = []
    numbers: dict[ModelRef, int] = {}
    by_place: dict[tuple[Path, ...], int] = {}
    models: list[Checkpoint] = []
    for ref in refs:
        try:
            result = results.get(ref.path) if not (ref.revision or ref.lora) else None
            path = result.path if result else locate(ref, options.relative_to)
            adapter = ModelRef(ref.lora, ref.lora_revision) if ref.lora else None
            lora = locate(adapter, options.relative_to) if adapter else None
            place = (path.resolve(), *([lora.resolve()] if lora else []))
            if place not in by_place:
                model = result or open_checkpoint(path)
                models.append(_prepare(model, options, lora))
                by_place[place] = len(models) - 1
            numbers[ref] = by_place[place]
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return numbers, tuple(models)


def _prepare(model: Checkpoint, options: PlanOptions, lora: Path | None) -> Checkpoint:
    if options.dequantize:
        model = dequantised(model)
    if lora:
        model = open_adapted(model, lora)
    return model


def model_labels(numbers: Mapping[ModelRef, int]) -> Iterator[str]:
    """What to call the models in messages: as the recipe first does."""
    seen = set()
    for ref, number in numbers.items():
        if number not in seen:
            seen.add(number)
            yield str(ref)


def side_files_of(
    ref: ModelRef, relative_to: Path, results: Mapping[str, PlannedCheckpoint]
) -> SideFiles:
    """The files of a model that only its tokenizer is taken from."""
    found = results.get(ref.path)
    return found.beside if found else SideFiles(locate(ref, relative_to))


def locate(ref: ModelRef, relative_to: Path) -> Path:
    """The folder or file of a model. InputError if it is none."""
    try:
        path = relative_to / Path(ref.path).expanduser()
    except RuntimeError:
        raise InputError(f"{ref}: no such user; give the folder from / on") from None
    if not ref.revision and exists(path):
        return path
    if not is_hub_id(str(ModelRef(ref.path, ref.revision))):
        place = f" ({path})" if str(path) != str(ref) else ""
        near = printable(nearest(path.name, _beside(path)))
        raise InputError(f"{ref}: no such folder{place}{near}; models of the hub are org/name")
    return hub.resolve_revision(ref.path, ref.revision)


def _beside(path: Path) -> list[str]:
    """Names in the folder where a path would be, to find the one that was meant."""
    try:
        return [other.name for other in islice(path.parent.iterdir(), 1000)]
    except (OSError, ValueError):
        return []


def _alike(models: Sequence[Checkpoint]) -> bool:
    """Whether the tensors of all models have the same names and shapes."""
    first = {name: source.shape for name, source in models[0].tensors.items()}
    return all({n: s.shape for n, s in m.tensors.items()} == first for m in models[1:])


def convert_layouts(
    models: tuple[Checkpoint, ...], labels: Sequence[str], recipe: Recipe
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """The models in the layout of the first, and what was done. UsageError, InputError."""
    if not recipe.key_map and _alike(models):
        return models, []
    return convert_models(models, labels, recipe.key_map)
