"""Recipe + headers → Plan: every output tensor, its sources, values and place. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import methods
from ..checkpoint import hub
from ..checkpoint.folder import Checkpoint
from ..checkpoint.fp8 import refuse_quantised
from ..errors import UsageError, input_errors
from ..messages import counted
from ..method import Method
from ..recipe.schema import Recipe
from ..structure.layer_config import restacked_config
from ..system.cpus import usable_cpus
from ..tensors.source import DerivedTensor, TensorSource, bytes_read
from ..tokenizer.merge import merge_tokenizers
from ..tokenizer.text_side import TokenizerInputs, TokenizerResult
from ..units import gigabytes
from .groups import Assembly, group_sources
from .inputs import convert_layouts, model_labels, open_all, side_files_of
from .matching import Matches, match
from .memory import Memory, budget
from .memory import notes as effort_notes
from .options import MatchOptions, PlanOptions
from .resolve import Resolver
from .shards import ShardLayout, assign_shards
from .stages import LazilyMerged, PlannedCheckpoint, beside_of, merge_lazily, planned_checkpoint
from .step import Step


@dataclass(frozen=True)
class Plan:
    """Everything about a merge that headers tell; a pure function of recipe, headers, options."""

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
    config: Mapping[str, Any]  # of the first model, following the layers and tokens taken
    tokenizer: TokenizerResult  # tokenizer, template, and what they change
    key: str  # digest of all that the result depends on
    stages: tuple[Plan, ...] = ()  # to be done before, each into its `folder`
    lazy: tuple[Plan, ...] = ()  # made while streaming
    folder: Path | None = None  # where the result goes if it is a stage
    known_checksums: Mapping[str, str] = field(default_factory=dict)  # of shards, if reproduced

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """Every model on disk that the merge is made of, by what the recipe calls it."""
        plans = (self, *self.lazy, *self.stages)
        found = {name: m for p in plans for name, m in zip(p.labels, p.models, strict=True)}
        return {
            name: model for name, model in found.items() if not isinstance(model, PlannedCheckpoint)
        }

    @property
    def input_bytes(self) -> int:
        return sum(bytes_read(source) for step in self.steps for source in step.sources)

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.layout.shards)


def make_plan(recipe: Recipe, options: PlanOptions | None = None) -> Plan:
    """Plan a merge. UsageError for faults of the recipe, InputError for faults of the inputs."""
    with input_errors(recipe.where):
        return _make_plan(recipe, options or PlanOptions())


def _make_plan(recipe: Recipe, options: PlanOptions) -> Plan:
    if options.strict and recipe.warnings:
        raise UsageError("\n".join([*recipe.warnings, "  --strict makes these errors"]))
    stages: list[Plan] = []
    lazy: list[Plan] = []
    results: dict[str, PlannedCheckpoint] = {}
    for number, stage in enumerate(recipe.stages):
        plan, results[str(stage.name)] = _stage(stage, number, options, results)
        (lazy if plan.folder is None else stages).append(plan)
    final = _plan(recipe, options, results)
    if not recipe.stages:
        return final
    told = [line for plan in (*lazy, *stages) for line in plan.warnings]
    if stages:
        size = gigabytes(sum(plan.output_bytes for plan in stages))
        told += [
            f"{counted(len(stages), 'intermediate results take')} {size} beside the "
            f"result meanwhile"
        ]
    told = [*final.warnings, *told]
    return replace(final, stages=tuple(stages), lazy=tuple(lazy), warnings=tuple(told))


def _stage(
    recipe: Recipe, number: int, options: PlanOptions, results: Mapping[str, PlannedCheckpoint]
) -> tuple[Plan, PlannedCheckpoint]:
    """A document whose result others use: kept in float32, so that nothing is rounded twice."""
    recipe = replace(recipe, warnings=())
    said = _plan(recipe, replace(options, dtype=None), results)
    widest = "float64" if any(step.dtype.bits > 32 for step in said.steps) else "float32"
    plan = _plan(recipe, replace(options, dtype=widest), results)
    # The key in the name: what an earlier recipe left there is another folder.
    folder = options.stages_folder / f"{number}-{plan.key[:16]}"
    dtypes = {s.name: s.dtype for s in said.steps}
    made = merge_lazily(plan.steps, dtypes, plan.key)
    if made is not None:
        result = PlannedCheckpoint(folder, (), made, like=plan.models[0])
    else:
        plan = replace(plan, folder=folder)
        result = planned_checkpoint(folder, plan.layout, plan.steps, dtypes)
    return plan, replace(
        result, key=plan.key, settings=final_config(said), beside=said.tokenizer.beside
    )


def _plan(recipe: Recipe, options: PlanOptions, results: Mapping[str, PlannedCheckpoint]) -> Plan:
    """The plan of one document; `results` are those of other documents by name."""
    method = methods.get(recipe.method)
    warnings = list(recipe.warnings)
    options = replace(options, dequantize=options.dequantize or recipe.dequantize)
    numbers, models = open_all(recipe.own_refs(), options, results)
    labels = tuple(model_labels(numbers))
    refuse_quantised(models, labels)
    models, relaid_notes = convert_layouts(models, labels, recipe)
    find = partial(side_files_of, relative_to=options.relative_to, results=results)
    models, text = merge_tokenizers(
        recipe,
        TokenizerInputs(
            models, labels, [beside_of(m) for m in models], numbers, options.relative_to, find
        ),
    )
    assembly = group_sources(recipe, models, numbers)
    matches = match(assembly.groups, models, labels, _rules(recipe, options))
    drafts = list(Resolver(recipe, method, options).drafts(matches))
    config, notes = _config(recipe, models, assembly)
    config = text.config(config)
    layout = assign_shards([draft.output for draft in drafts], options.shard_bytes)
    steps = tuple(
        draft.step(shard, offset, options.block)
        for draft, (shard, offset) in zip(drafts, layout.places, strict=True)
    )
    threads = options.threads or usable_cpus()
    memory = budget(steps, options.memory_bytes, threads, options.accelerated)
    warnings += [*relaid_notes, *text.notes, *assembly.notes, *matches.notes, *notes]
    warnings += effort_notes(steps, memory, threads)
    key = _key(recipe, options, models, steps, [config, text.digest])
    return Plan(
        recipe, options, method, models, labels, matches, steps, layout, memory,
        tuple(warnings), config, text, key,
    )  # fmt: skip


def _rules(recipe: Recipe, options: PlanOptions) -> MatchOptions:
    """Those of the command, and which tensors the recipe says are merged."""
    rules = options.matching
    include, exclude = (*recipe.include, *rules.include), (*recipe.exclude, *rules.exclude)
    return replace(rules, include=include, exclude=exclude)


def _config(
    recipe: Recipe, models: Sequence[Checkpoint], assembly: Assembly
) -> tuple[dict[str, Any], list[str]]:
    """The first model's config after slices. UsageError where it cannot follow them."""
    configs = [dict(model.config) for model in models]
    notes: list[str] = []
    for restacked in assembly.restacked:
        try:
            configs[0], told = restacked_config(
                configs, restacked.stack.prefix, restacked.depths, restacked.picks
            )
        except UsageError as error:
            raise UsageError(f"{recipe.where}: {error}") from None
        notes += told
    return configs[0], notes


def final_config(plan: Plan) -> dict[str, Any]:
    """The config of the result: the first model's with what layers, dtype and recipe change."""
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
    """Digest of recipe values, inputs, layout and seed: what the bytes of the result depend on."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, default=str, separators=(",", ":")).encode() + b"\n")

    add([recipe.method, options.seed, options.block, config])
    files: dict[str, int] = {}
    for model in models:
        if isinstance(model, PlannedCheckpoint):
            add([model.key, *(shard.header_sha256 for shard in model.shards)])
            files |= {shard.path: len(files) for shard in model.shards}
            continue
        for shard in model.shards:
            files[shard.path] = len(files)
            path = Path(shard.path)
            if commit := hub.snapshot(path.parent):  # it may not be here, or not any more
                add([*commit, path.name, shard.header_sha256])
                continue
            real = path.resolve()
            add([real, shard.size, real.stat().st_mtime_ns, shard.header_sha256])
    for step in steps:
        task, values = step.task, dict[str, Any](step.task.values if step.task else {})
        sources = [_origin(source, files) for source in step.sources]
        cut = [step.grid.block, step.shard, step.offset]
        place = [step.name, step.dtype.name, step.shape, *cut]
        # The same sources with or without one of them as the base are two merges.
        role = [step.method and step.method.name, task and [task.scale, task.models, task.has_base]]
        add([*place, values, role, sources])
    return digest.hexdigest()


def _origin(source: TensorSource, files: Mapping[str, int]) -> list[object]:
    """Where the values of a source come from, for the key."""
    if isinstance(source, LazilyMerged):
        return [source.kind, source.fingerprint()]
    if isinstance(source, DerivedTensor):
        parts = [_origin(part, files) for part in source.inputs]
        return [source.kind, source.fingerprint(), parts]
    # What a document that is made on the way copies is in the key of that document.
    return [files.get(source.file, Path(source.file).name), source.offset]
