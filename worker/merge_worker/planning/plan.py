"""Recipe + headers → Plan: every output tensor, its inputs, values and position. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..errors import UsageError, input_errors
from ..messages import counted
from ..method import Method
from ..options import SAFETENSORS
from ..recipe.schema import Recipe
from ..structure.layer_config import layers_followed
from ..structure.layers import Restacked
from ..tensors.chunks import ChunkedTensor
from ..tensors.source import DerivedTensor, TensorSource
from ..tokenizer.adapter_files import with_tokenizer_of
from ..tokenizer.files import SideFiles
from ..tokenizer.merge import merge_tokenizers
from ..tokenizer.text_side import TokenizerResult
from ..units import size
from .dcp_layout import DCP, assign_dcp
from .groups import group_sources
from .importance import ImportanceInputs, open_importances
from .inputs import open_inputs
from .matching import Matches, match_tensors
from .memory import Memory
from .mixture import MixturePlan, base_alone, plan_mixture
from .options import PlanOptions
from .resolve import place_steps, resolve_parameters
from .runs import with_listed_runs
from .shards import ShardLayout, assign_shards
from .stages import (
    LazilyMerged,
    PlannedCheckpoint,
    StageResults,
    input_keys,
    merge_lazily,
    planned_checkpoint,
)
from .step import Step
from .texts import TextInput, notes_on_texts, open_texts


@dataclass(frozen=True)
class Plan:
    """Everything known about a merge before weights are read: a function of headers and options."""

    recipe: Recipe
    options: PlanOptions
    method: Method
    models: tuple[Checkpoint, ...]
    labels: tuple[str, ...]
    matches: Matches
    steps: tuple[Step, ...]
    layout: ShardLayout
    memory: Memory
    warnings: tuple[str, ...]
    config: Mapping[str, Any]  # of the first model, changed as its layers and tokens are
    tokenizer: TokenizerResult
    key: str  # digest of all that the result depends on
    stages: tuple[Plan, ...] = ()  # merged first, each into its `folder`
    lazy: tuple[Plan, ...] = ()  # merged while the result streams; never on disk
    folder: Path | None = None  # output folder, if this plan is a stage
    mixture: MixturePlan | None = None  # of experts
    known_checksums: Mapping[str, str] = field(default_factory=dict)  # of shards, if reproduced
    importance: ImportanceInputs = field(default=ImportanceInputs(), repr=False)
    texts: tuple[TextInput, ...] = ()  # that the models are run on before the merge

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """Every model on disk that the merge reads, by its label, and every importance file."""
        models: dict[str, Checkpoint] = {}
        for plan in (self, *self.lazy, *self.stages):
            models |= zip(plan.labels, plan.models, strict=True)
        for plan in (self, *self.lazy, *self.stages):
            models |= zip(plan.importance.labels, plan.importance.files, strict=True)
        return {n: model for n, model in models.items() if not isinstance(model, PlannedCheckpoint)}

    @property
    def read_from(self) -> tuple[Checkpoint, ...]:
        """The models of this document, and their importance files."""
        return (*self.models, *self.importance.files)

    @property
    def input_bytes(self) -> int:
        return sum(step.bytes_read for step in self.steps)

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.layout.shards)

    def steps_in_files(self) -> list[Step]:
        """Return the steps in the order in which their results stand in the files."""
        steps = {step.name: step for step in self.steps}
        # A tensor in several files is named once.
        return [steps[name] for shard in self.layout.shards for name in shard.tensors]


def make_plan(recipe: Recipe, options: PlanOptions | None = None) -> Plan:
    """Plan a merge: the documents that others refer to, then the one that makes the result.

    Raises UsageError for faults of the recipe, InputError for faults of the inputs.
    """
    options = options or PlanOptions()
    with input_errors(recipe.where):
        recipe = with_listed_runs(recipe, options.relative_to, options.hub, options.earlier_recipes)
    if options.strict and recipe.warnings:
        raise UsageError("\n".join([*recipe.warnings, "  --strict makes these errors"]))
    with input_errors(recipe.where):
        plans: list[Plan] = []
        results: dict[str, PlannedCheckpoint] = {}
        for number, stage in enumerate(recipe.stages):
            plan, results[str(stage.name)] = _plan_stage(stage, number, options, results)
            plans.append(plan)
        return _with_stages(plan_document(recipe, options, results), plans)


def plan_document(recipe: Recipe, options: PlanOptions, results: StageResults) -> Plan:
    """Plan one document of a recipe; `results` are those of other documents, by name.

    Raises UsageError or InputError with every fault found.
    """
    method = recipe.methods.get(recipe.method)
    options = replace(options, dequantize=options.dequantize or recipe.dequantize)
    inputs = open_inputs(recipe, options, results)
    texts = open_texts(recipe, options)
    importance = open_importances(recipe, method, inputs.numbers, inputs.stored, options)
    if recipe.mixture is None:
        mixture = None
        models, tokenizer = merge_tokenizers(recipe, inputs)
        groups = group_sources(recipe, models, inputs.numbers)
    else:
        (base,), tokenizer = merge_tokenizers(recipe, base_alone(inputs))
        models = (base, *inputs.models[1:])
        mixture, groups = plan_mixture(recipe, replace(inputs, models=models), options)
    matches = match_tensors(groups.groups, inputs.labels, options.matching_of(recipe))
    resolved = resolve_parameters(recipe, method, options, matches, importance)
    outputs, sets = [step.output for step in resolved], models[0].files.sets
    if options.format == DCP:
        layout: ShardLayout = assign_dcp(outputs, options.shard_bytes, models[0].tensors)
    else:
        layout = assign_shards(outputs, options.shard_bytes, sets)
    steps = place_steps(resolved, layout, options.block)
    memory = options.budget(steps)
    config, config_notes = _config(recipe, models, groups.restacked, tokenizer)
    if mixture is not None:
        config, config_notes = tokenizer.config(mixture.config), list(mixture.notes)
    tasks = [step.task for step in steps if step.task is not None]
    notes = (
        *(inputs.notes, tokenizer.notes, importance.notes, groups.notes, matches.notes),
        notes_on_texts(texts) if texts else importance.left_out(recipe, method, tasks),
        *(config_notes, memory.notes),
    )
    digests = [tokenizer.digest, *(text.sha256 for text in texts)]
    return Plan(
        recipe=recipe,
        options=options,
        method=method,
        models=models,
        labels=tuple(inputs.labels),
        matches=matches,
        steps=steps,
        layout=layout,
        memory=memory,
        warnings=tuple(chain(recipe.warnings, *notes)),
        config=config,
        tokenizer=tokenizer,
        mixture=mixture,
        key=_key(recipe, options, (*models, *importance.files), steps, [config, *digests]),
        importance=importance,
        texts=texts,
    )


def _plan_stage(
    recipe: Recipe, number: int, options: PlanOptions, results: StageResults
) -> tuple[Plan, PlannedCheckpoint]:
    """Plan a document that others refer to: kept in float32, so that nothing is rounded twice."""
    options = replace(options, format=SAFETENSORS)
    recipe = replace(recipe, warnings=())
    declared = plan_document(recipe, replace(options, dtype=None), results)
    dtypes = {step.name: step.dtype for step in declared.steps}
    widest = "float64" if any(dtype.bits > 32 for dtype in dtypes.values()) else "float32"
    plan = plan_document(recipe, replace(options, dtype=widest), results)
    # With the key in its name, so that another recipe's result is in another folder.
    folder = options.stages_folder / f"{number}-{plan.key[:16]}"
    tensors = None if plan.texts else merge_lazily(plan.steps, dtypes, plan.key)
    config, text = final_config(declared), declared.tokenizer
    side_files = text.side_files
    files = plan.models[0].files
    if tensors is not None:
        result = PlannedCheckpoint(folder, (), tensors, like=plan.models[0])
        if text.foreign:  # the folder of the first model has another tokenizer
            side_files = with_tokenizer_of(SideFiles(result.folder), side_files)
    else:
        plan, files = replace(plan, folder=folder), replace(files, sets=plan.layout.sets())
        result = planned_checkpoint(folder, plan.layout, plan.steps, dtypes)
    result = replace(result, key=plan.key, files=files, planned_config=config)
    return plan, replace(result, side_files=side_files)


def _with_stages(final: Plan, plans: Sequence[Plan]) -> Plan:
    """Return the plan of the result with those of the documents that it depends on."""
    lazy = tuple(plan for plan in plans if plan.folder is None)
    stages = tuple(plan for plan in plans if plan.folder is not None)
    warnings = [line for plan in (final, *lazy, *stages) for line in plan.warnings]
    if stages:
        room = size(sum(plan.output_bytes for plan in stages))
        warnings.append(
            f"{counted(len(stages), 'intermediate results take')} {room} beside the "
            f"result meanwhile"
        )
    return replace(final, stages=stages, lazy=lazy, warnings=tuple(warnings))


def _config(
    recipe: Recipe,
    models: Sequence[Checkpoint],
    restacked: Sequence[Restacked],
    tokenizer: TokenizerResult,
) -> tuple[dict[str, Any], list[str]]:
    """Return the first model's config, changed as its layers and tokens are, and notes on that.

    Raises UsageError where the config cannot describe the layers that were picked.
    """
    configs = [model.config for model in models]
    try:
        config, notes = layers_followed(configs, restacked, models[0].tensors)
    except UsageError as error:
        raise UsageError(f"{recipe.where}: {error}") from None
    return tokenizer.config(config), notes


def final_config(plan: Plan) -> dict[str, Any]:
    """Return the config of the result: the plan's, with the dtype and architecture asked for."""
    config = dict(plan.config)
    asked = plan.options.dtype or plan.recipe.out_dtype or plan.recipe.dtype or "same"
    if asked != "same":
        keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
        config |= dict.fromkeys(keys, asked.removeprefix("torch."))
    architecture = plan.recipe.base.architecture if plan.recipe.base else None
    if architecture:
        config["architectures"] = [architecture]
    return config


def _key(
    recipe: Recipe,
    options: PlanOptions,
    models: tuple[Checkpoint, ...],
    steps: tuple[Step, ...],
    config: object,
) -> str:
    """Digest of recipe values, inputs, layout and seed: all that the result's bytes depend on."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, default=str, separators=(",", ":")).encode() + b"\n")

    add([recipe.method, options.seed, options.block, config])
    files: dict[str, int] = {}
    for model in models:
        for facts in input_keys(model):
            add(facts)
        if isinstance(model, PlannedCheckpoint):
            files |= {shard.path: len(files) for shard in model.shards}
            continue
        for shard in model.shards:
            files[shard.path] = len(files)
    for step in steps:
        task, values = step.task, dict[str, Any](step.task.values if step.task else {})
        sources = [_source_key(source, files) for source in step.sources]
        position: list[object] = [step.grid.block, step.shard, step.offset]
        if step.blocks is not None:
            corners = step.blocks.corners + step.blocks.places
            position.append(hashlib.sha256(corners).hexdigest())
        # The same sources with and without one of them as the base are two merges.
        role = [_method_key(step.method), task and [task.scale, task.models, task.has_base]]
        role += ["balance"] if task and task.balance else []
        if task and (task.importance or task.activations is not None):
            role.append([[entry and entry.index for entry in task.importance], task.omega])
        add([step.name, step.dtype.name, step.shape, *position, values, role, sources])
    return digest.hexdigest()


def _method_key(method: Method | None) -> object:
    """Return the name of a method, with the digest of its code if it is not our own."""
    if method is None or method.origin is None:
        return method and method.name
    return [method.name, method.origin.sha256]


def _source_key(source: TensorSource, files: Mapping[str, int]) -> list[object]:
    """Return what the elements of a source depend on, for the key."""
    if isinstance(source, LazilyMerged | ChunkedTensor):
        return [source.kind, source.fingerprint()]
    if isinstance(source, DerivedTensor):
        inputs = [_source_key(item, files) for item in source.inputs]
        return [source.kind, source.fingerprint(), inputs]
    # A tensor that a lazy document copies is in the key of that document.
    number = files.get(source.file)
    return [Path(source.file).name if number is None else number, source.offset]
