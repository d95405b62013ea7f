"""Recipe + headers → Plan: every output tensor, its sources, values and place. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import methods
from .assemble import Assembly, assemble
from .checkpoint import Checkpoint, exists, open_checkpoint
from .effort import notes as effort_notes
from .errors import InputError, UsageError
from .layer_config import restacked_config
from .layout import Layout, lay_out
from .match import Matches, match
from .memory import Memory, budget
from .methods import Method
from .recipe import ModelRef, Recipe
from .resolve import PlanOptions, Resolver
from .step import Step

__all__ = ["Plan", "PlanOptions", "locate", "make_plan", "usable_cpus"]


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
    layout: Layout
    memory: Memory
    warnings: tuple[str, ...]
    config: Mapping[str, Any]  # of the first model, following the layers taken
    key: str  # digest of all that the result depends on

    @property
    def input_bytes(self) -> int:
        return sum(info.nbytes for step in self.steps for info in step.sources)

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.layout.shards)


def make_plan(recipe: Recipe, options: PlanOptions | None = None) -> Plan:
    """Plan a merge. UsageError for faults of the recipe, InputError for faults of the inputs."""
    options = options or PlanOptions()
    method = methods.get(recipe.method)
    warnings = list(recipe.warnings)
    if options.strict and warnings:
        raise UsageError("\n".join([*warnings, "  --strict makes these errors"]))
    if recipe.tokenizer not in (None, "base"):
        raise UsageError(
            f"{recipe.where}: only 'tokenizer_source: base' can be merged yet; drop 'tokenizer'"
        )
    numbers, models = _open_all(recipe.model_refs(), options.relative_to)
    labels = tuple(_labels(numbers))
    assembly = assemble(recipe, models, numbers)
    matches = match(assembly.groups, models, labels, options.rules)
    drafts = list(Resolver(recipe, method, options).drafts(matches))
    config, notes = _config(recipe, models, assembly)
    layout = lay_out([draft.output for draft in drafts], options.shard_bytes)
    steps = tuple(
        draft.step(shard, offset, options.block)
        for draft, (shard, offset) in zip(drafts, layout.places, strict=True)
    )
    threads = options.threads or usable_cpus()
    memory = budget(steps, options.memory_bytes, threads)
    warnings += [*assembly.notes, *matches.notes, *notes, *effort_notes(steps, memory, threads)]
    key = _key(recipe, options, models, steps, config)
    return Plan(
        recipe, options, method, models, labels, matches, steps, layout, memory,
        tuple(warnings), config, key,
    )  # fmt: skip


def usable_cpus() -> int:
    """CPUs that this process may use, which is what a scheduler granted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_all(
    refs: Sequence[ModelRef], relative_to: Path
) -> tuple[dict[ModelRef, int], tuple[Checkpoint, ...]]:
    """Every folder once, and its number by reference; all that cannot be opened are named."""
    faults: list[str] = []
    numbers: dict[ModelRef, int] = {}
    by_place: dict[Path, int] = {}
    models: list[Checkpoint] = []
    for ref in refs:
        try:
            path = locate(ref, relative_to)
            place = path.resolve()
            if place not in by_place:
                models.append(open_checkpoint(path))
                by_place[place] = len(models) - 1
            numbers[ref] = by_place[place]
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return numbers, tuple(models)


def _labels(numbers: Mapping[ModelRef, int]) -> Iterator[str]:
    """What to call the models in messages: as the recipe first does."""
    seen = set()
    for ref, number in numbers.items():
        if number not in seen:
            seen.add(number)
            yield str(ref)


def locate(ref: ModelRef, relative_to: Path) -> Path:
    """The folder or file of a model. InputError if it is none."""
    try:
        path = relative_to / Path(ref.path).expanduser()
    except RuntimeError:
        raise InputError(f"{ref}: no such user; give the folder from / on") from None
    if ref.lora:
        raise InputError(f"{ref}: adapters cannot be merged yet; merge it into its base first")
    if ref.revision or not exists(path):
        raise InputError(
            f"{ref}: no such folder ({path}); models of the hub cannot be fetched yet, "
            f"download it and give the folder"
        )
    return path


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


def _key(
    recipe: Recipe,
    options: PlanOptions,
    models: tuple[Checkpoint, ...],
    steps: tuple[Step, ...],
    config: Mapping[str, Any],
) -> str:
    """Digest of recipe values, inputs, layout and seed: what the bytes of the result depend on."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, default=str, separators=(",", ":")).encode() + b"\n")

    add([recipe.method, options.seed, options.block, config])
    files: dict[str, int] = {}
    for model in models:
        for shard in model.shards:
            real = Path(shard.path).resolve()
            files[shard.path] = len(files)
            add([real, shard.size, real.stat().st_mtime_ns, shard.header_sha256])
    for step in steps:
        task, values = step.task, dict[str, Any](step.task.values if step.task else {})
        sources = [(files[info.file], info.offset) for info in step.sources]
        place = [step.name, step.dtype.name, step.shape, step.shard, step.offset]
        # The same sources with or without one of them as the base are two merges.
        role = [step.method and step.method.name, task and [task.scale, task.models, task.has_base]]
        add([*place, values, role, sources])
    return digest.hexdigest()
