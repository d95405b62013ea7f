"""References of a recipe → checkpoints: located, opened, dequantized, adapted, in one layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from ..adapters.apply import open_adapted
from ..checkpoint.folder import Checkpoint, exists, is_hub_id, open_checkpoint
from ..checkpoint.fp8 import dequantized, refuse_quantized
from ..checkpoint.hub import Hub
from ..conversion.convert import convert_models
from ..errors import InputError
from ..messages import nearest, printable
from ..recipe.schema import ModelRef, Recipe
from ..tokenizer.files import SideFiles
from ..tokenizer.text_side import TokenizerInputs
from .options import PlanOptions
from .stages import PlannedCheckpoint, StageResults


@dataclass(frozen=True)
class Inputs(TokenizerInputs):
    """The models of one document, in the layout of the first; `notes` name the conversions."""

    notes: tuple[str, ...] = ()


def open_inputs(recipe: Recipe, options: PlanOptions, results: StageResults) -> Inputs:
    """Open every model that a document refers to.

    Raises InputError with all models that cannot be opened, are quantized or differ in layout,
    and UsageError for a `key_map` that does not fit.
    """
    numbers, opened = _open_models(recipe.own_refs(), options, results)
    labels = _labels(numbers)
    refuse_quantized(opened, labels)
    models, notes = _convert_layouts(opened, labels, recipe)
    return Inputs(
        models=models,
        labels=labels,
        side_files=[_side_files(model) for model in models],
        numbers=numbers,
        relative_to=options.relative_to,
        find=partial(_find_side_files, options=options, results=results),
        notes=tuple(notes),
    )


def _open_models(
    refs: Sequence[ModelRef], options: PlanOptions, results: StageResults
) -> tuple[dict[ModelRef, int], tuple[Checkpoint, ...]]:
    """Open every folder once. Return the number of its model for each reference, and the models."""
    faults: list[str] = []
    numbers: dict[ModelRef, int] = {}
    by_paths: dict[tuple[Path, ...], int] = {}
    models: list[Checkpoint] = []
    for ref in refs:
        try:
            result = results.get(ref.path) if not (ref.revision or ref.lora) else None
            path = result.path if result else locate(ref, options.relative_to, options.hub)
            adapter = ModelRef(ref.lora, ref.lora_revision) if ref.lora else None
            lora = locate(adapter, options.relative_to, options.hub) if adapter else None
            paths = (path.resolve(), *([lora.resolve()] if lora else []))
            if paths not in by_paths:
                model = result or open_checkpoint(path, options.hub)
                models.append(_prepare(model, options, lora))
                by_paths[paths] = len(models) - 1
            numbers[ref] = by_paths[paths]
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return numbers, tuple(models)


def _prepare(model: Checkpoint, options: PlanOptions, lora: Path | None) -> Checkpoint:
    if options.dequantize:
        model = dequantized(model)
    return open_adapted(model, lora) if lora else model


def _labels(numbers: Mapping[ModelRef, int]) -> tuple[str, ...]:
    """Return the name of each model in messages: the first that the recipe has for it."""
    labels: dict[int, str] = {}
    for ref, number in numbers.items():
        labels.setdefault(number, str(ref))
    return tuple(labels.values())


def _convert_layouts(
    models: tuple[Checkpoint, ...], labels: Sequence[str], recipe: Recipe
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Return the models in the layout of the first, and notes on what was converted."""
    shapes = [{name: source.shape for name, source in m.tensors.items()} for m in models]
    if not recipe.key_map and all(other == shapes[0] for other in shapes[1:]):
        return models, []
    return convert_models(models, labels, recipe.key_map)


def _side_files(model: Checkpoint) -> SideFiles:
    if isinstance(model, PlannedCheckpoint):
        return model.side_files
    return SideFiles(model.folder)


def _find_side_files(ref: ModelRef, options: PlanOptions, results: StageResults) -> SideFiles:
    """Return the side files of a model that only lends its tokenizer."""
    result = results.get(ref.path)
    if result:
        return result.side_files
    return SideFiles(locate(ref, options.relative_to, options.hub))


def locate(ref: ModelRef, relative_to: Path, hub: Hub) -> Path:
    """Return the folder or file of a model. Raises InputError if it does not exist."""
    try:
        path = relative_to / Path(ref.path).expanduser()
    except RuntimeError:
        raise InputError(f"{ref}: no such user; give the folder from / on") from None
    if not ref.revision and exists(path):
        return path
    if not is_hub_id(str(ModelRef(ref.path, ref.revision))):
        place = f" ({path})" if str(path) != str(ref) else ""
        near = printable(nearest(path.name, _sibling_names(path)))
        raise InputError(f"{ref}: no such folder{place}{near}; Hub models are written org/name")
    return hub.resolve_revision(ref.path, ref.revision)


def _sibling_names(path: Path) -> list[str]:
    """Return up to 1000 names in the parent folder, to suggest the one that was meant."""
    try:
        return [other.name for other in islice(path.parent.iterdir(), 1000)]
    except (OSError, ValueError):
        return []
