"""References of a recipe → checkpoints: located, opened, dequantized, adapted, in one layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from ..adapters.apply import Adapted, open_adapted
from ..checkpoint.folder import Checkpoint, exists, is_hub_id, open_checkpoint
from ..checkpoint.fp8 import dequantized, obsolete_labels, refuse_quantized
from ..checkpoint.hub import Hub
from ..conversion.convert import convert_models
from ..errors import InputError, UsageError
from ..messages import nearest, printable
from ..recipe.other_files import is_other_file
from ..recipe.schema import ModelRef, Recipe, parse_model
from ..recipe.yaml_document import read_documents
from ..structure.config_differences import config_differences
from ..structure.embeddings import rows_of
from ..structure.sizes import Sized, depth_fault, width_fault
from ..tokenizer.adapter_files import adapted_files
from ..tokenizer.files import SideFiles
from ..tokenizer.text_side import TokenizerInputs
from .configured import Configured, GivenConfig, configured, read_given
from .options import MatchOptions, PlanOptions
from .shared_weights import share_weights
from .stages import PlannedCheckpoint, StageResults


@dataclass(frozen=True)
class Inputs(TokenizerInputs):
    """The models of one document, in the layout of the first; `notes` name the conversions."""

    notes: tuple[str, ...] = ()
    stored: Sequence[Checkpoint] = ()  # the models in their own layouts


def open_inputs(recipe: Recipe, options: PlanOptions, results: StageResults) -> Inputs:
    """Open every model that a document refers to.

    Raises InputError with all models that cannot be opened, are quantized, or differ in size or
    layout, and UsageError for a `key_map` that does not fit.
    """
    numbers, labels, opened = _open_models(recipe.own_refs(), options, results)
    opened, file_notes = share_weights(opened, labels)
    refuse_quantized(opened, labels)
    # Of the experts of a mixture only the MLPs are taken, which `mixture` compares itself.
    alike = recipe.mixture is None
    if alike and [module.name for module in recipe.modules] == ["default"]:
        _refuse_other_sizes(opened, labels, options.matching_of(recipe), recipe.modules[0].sliced)
    models = opened
    notes: list[str] = []
    texts = [_side_files(model) for model in opened]
    shapes = [{name: source.shape for name, source in m.tensors.items()} for m in opened]
    if alike and (recipe.key_map or any(other != shapes[0] for other in shapes[1:])):
        models, notes = convert_models(opened, labels, recipe.key_map)
    return Inputs(
        models=models,
        labels=labels,
        side_files=[files for files, _ in texts],
        numbers=numbers,
        relative_to=options.relative_to,
        stored=opened,
        find=partial(_find_side_files, options=options, results=results),
        notes=(
            *(note for model in opened for note in model.notes),
            *(note for _, found in texts for note in found),
            *file_notes,
            *obsolete_labels(opened, labels),
            *(config_differences(opened, labels) if alike else ()),
            *notes,
        ),
    )


def open_reference(
    word: str, relative_to: Path, hub: Hub | None = None
) -> tuple[Checkpoint, SideFiles, str]:
    """Open one model as a recipe names it: a folder or Hub name, or `base+adapter`.

    Returns its tensors, its side files, and the name that it has in messages. Raises InputError.
    """
    try:
        ref = parse_model(word, relative_to)
    except ValueError as error:
        raise UsageError(f"'{printable(word)}': {error}") from None
    options = PlanOptions(relative_to=relative_to, hub=hub or Hub())
    _, labels, (model,) = _open_models([ref], options, {})
    return model, _side_files(model)[0], labels[0]


def _side_files(model: Checkpoint) -> tuple[SideFiles, list[str]]:
    """Return the side files of a model, and notes on what an adapter does to them."""
    if isinstance(model, PlannedCheckpoint | Configured):
        return model.side_files, []
    files = SideFiles(model.folder)
    if not isinstance(model, Adapted):
        return files, []
    return adapted_files(files, model.adapter, rows_of(model))


def _open_models(
    refs: Sequence[ModelRef], options: PlanOptions, results: StageResults
) -> tuple[dict[ModelRef, int], tuple[str, ...], tuple[Checkpoint, ...]]:
    """Open every folder once. Return the number of the model of each reference, the first reference
    to each model as its name in messages, and the models."""
    faults: list[str] = []
    given = given_config(options)
    numbers: dict[ModelRef, int] = {}
    by_paths: dict[tuple[Path, ...], int] = {}
    labels: list[str] = []
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
                model = dequantized(model) if options.dequantize else model
                model = open_adapted(model, lora) if lora else model
                models.append(model if result else _with_config(model, str(ref), given))
                labels.append(str(ref))
                by_paths[paths] = len(models) - 1
            numbers[ref] = by_paths[paths]
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return numbers, tuple(labels), tuple(models)


def given_config(options: PlanOptions) -> GivenConfig | None:
    """Return the config of `--config`, if there is one. Raises InputError."""
    if options.config is None:
        return None
    try:
        ref = parse_model(options.config, options.relative_to)
    except ValueError as error:
        raise UsageError(f"--config {printable(options.config)}: {error}") from None
    return read_given(options.config, locate(ref, options.relative_to, options.hub), options.hub)


def _with_config(model: Checkpoint, label: str, given: GivenConfig | None) -> Checkpoint:
    if given is not None and isinstance(model, Adapted):
        raise UsageError(
            f"{label}: --config does not go with adapters; merge-worker convert the base first"
        )
    return configured(model, label, given)


def _refuse_other_sizes(
    models: Sequence[Checkpoint], labels: Sequence[str], options: MatchOptions, sliced: bool
) -> None:
    """Raise InputError for models of another width than the first, or depth if merged whole."""
    sized = [Sized.of(m, n, options.merges) for m, n in zip(models, labels, strict=True)]
    faults = []
    for other in sized[1:]:
        width, depth = width_fault(sized[0], other), depth_fault(sized[0], other)
        if width:
            faults.append(width)
        # Layers that only one has are left to the user who asked for it.
        elif depth and not sliced and not options.allows(surplus=depth.deeper):
            faults.append(depth.text)
    if faults:
        raise InputError("\n".join(faults))


def _find_side_files(ref: ModelRef, options: PlanOptions, results: StageResults) -> SideFiles:
    """Return the side files of a model that only lends its tokenizer."""
    result = results.get(ref.path)
    if result:
        return result.side_files
    files = SideFiles(locate(ref, options.relative_to, options.hub))
    if ref.lora is None:
        return files
    adapter = locate(ModelRef(ref.lora, ref.lora_revision), options.relative_to, options.hub)
    return adapted_files(files, adapter)[0]


def locate(ref: ModelRef, relative_to: Path, hub: Hub) -> Path:
    """Return the folder or file of a model. Raises InputError if it does not exist."""
    try:
        path = relative_to / Path(ref.path).expanduser()
    except RuntimeError:
        raise InputError(f"{ref}: no such user; give the folder from / on") from None
    if not ref.revision and exists(path):
        return path
    if not is_hub_id(str(ModelRef(ref.path, ref.revision))):
        elsewhere = str(path) != str(ref) and relative_to.resolve() != Path.cwd()
        place = f" ({path})" if elsewhere else ""
        near = printable(nearest(path.name, _sibling_names(path)))
        raise InputError(f"{ref}: no such folder{place}{near}; Hub models are written org/name")
    return hub.resolve_revision(ref.path, ref.revision)


def _sibling_names(path: Path) -> list[str]:
    """Return up to 1000 names in the parent folder, to suggest the one that was meant."""
    try:
        return [other.name for other in islice(path.parent.iterdir(), 1000)]
    except (OSError, ValueError):
        return []


def with_missing_models(error: UsageError, text: str, folder: Path) -> UsageError:
    """Return the error with a line for each missing model that `text` names."""
    return UsageError("\n".join([str(error), *missing_models(text, folder)]))


def missing_models(text: str, folder: Path) -> list[str]:
    """Return a fault for each missing model; none if `text` is not YAML, or not a recipe."""
    try:
        documents = [d.value for d in read_documents(text, "") if not is_other_file(d.value)]
    except UsageError:  # reported already
        return []
    results = {str(value.get("name")) for value in documents if isinstance(value, dict)}
    faults = []
    words = [word for value in documents for word in model_words(value)]
    for word in dict.fromkeys(word for word in words if word not in results):
        try:
            ref = parse_model(word, folder)
            if not is_hub_id(str(replace(ref, lora=None, lora_revision=None))):
                locate(ref, folder, Hub())
        except InputError as error:
            faults.append(str(error))
        except ValueError:  # reported with the faults of the recipe
            pass
    return faults


def model_words(value: object) -> Iterator[str]:
    """Yield every text at a place where a recipe names a model."""
    for item in value if isinstance(value, list) else ():
        yield from model_words(item)
    for key, item in value.items() if isinstance(value, dict) else ():
        if key in ("model", "base_model", "source_model") and isinstance(item, str):
            yield item
        elif key == "models" and isinstance(item, list):
            yield from (model for model in item if isinstance(model, str))
        yield from model_words(item)
