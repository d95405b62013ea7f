"""Recipe + headers → Plan: every output tensor, its sources, values and place. No torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import methods
from .checkpoint import Checkpoint, open_checkpoint
from .errors import InputError, UsageError, nearest
from .layout import Layout, lay_out
from .match import Matches, match_by_name
from .memory import Memory, budget
from .methods._define import Base, Method
from .recipe import ModelRef, Recipe, Slice, Source
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
    part = _the_slice(recipe)
    warnings = [*recipe.warnings, *_unread(recipe, method)]
    if options.strict and warnings:
        raise UsageError("\n".join([*warnings, "  --strict makes these errors"]))
    order = _model_order(recipe, part, method)
    models = tuple(_open_all([ref for ref, _ in order], options.relative_to))
    labels = tuple(str(ref) for ref, _ in order)
    matches = match_by_name(models, labels, options.rules)
    resolver = Resolver(recipe, part, method, tuple(source for _, source in order), options)
    drafts = list(resolver.drafts(matches))
    layout = lay_out([draft.output for draft in drafts], options.shard_bytes)
    steps = tuple(
        draft.step(shard, offset, options.block)
        for draft, (shard, offset) in zip(drafts, layout.places, strict=True)
    )
    memory = budget(steps, options.memory_bytes, options.threads or usable_cpus())
    warnings += matches.notes
    key = _key(recipe, options, models, steps)
    return Plan(
        recipe, options, method, models, labels, matches, steps, layout, memory,
        tuple(warnings), key,
    )  # fmt: skip


def usable_cpus() -> int:
    """CPUs that this process may use, which is what a scheduler granted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _the_slice(recipe: Recipe) -> Slice:
    if len(recipe.modules) != 1 or len(recipe.modules[0].slices) != 1 or recipe.sliced:
        raise UsageError(
            f"{recipe.where}: 'slices' and 'modules' cannot be merged yet; use 'models'"
        )
    if recipe.tokenizer not in (None, "base"):
        raise UsageError(
            f"{recipe.where}: only 'tokenizer_source: base' can be merged yet; drop 'tokenizer'"
        )
    return recipe.modules[0].slices[0]


def _model_order(recipe: Recipe, part: Slice, method: Method) -> list[tuple[ModelRef, Source]]:
    """The models, the one first whose names, config and tokenizer the output has."""
    sources = list(part.sources)
    listed = [source.model for source in sources]
    twice = [str(ref) for i, ref in enumerate(listed) if ref in listed[:i]]
    if twice:
        raise UsageError(
            f"{recipe.where}: model '{twice[0]}' is listed twice; give one larger weight"
        )
    base = recipe.base
    if method.base is Base.REQUIRED and base is None:
        raise UsageError(
            f"{recipe.where}: {method.name} needs a base: add 'base_model: …' "
            f"(the model that the others were trained from)"
        )
    if base is not None and base not in listed:
        sources.append(Source(base, None, {}))
    count = len(sources) - (base is not None and method.base is not Base.IGNORED)
    most = method.most_models
    if count < method.least_models or (most is not None and count > most):
        allowed = f"at least {method.least_models}"
        if most is not None:
            fixed = most == method.least_models
            allowed = f"{most}" if fixed else f"{method.least_models} to {most}"
        raise UsageError(
            f"{recipe.where}: {method.name} merges {allowed} models"
            f"{' beside the base' if method.base is not Base.IGNORED else ''}; found {count}"
        )
    sources.sort(key=lambda source: source.model != base)
    return [(source.model, source) for source in sources]


def _open_all(refs: list[ModelRef], relative_to: Path) -> Iterator[Checkpoint]:
    """Open every model; all that cannot be opened are named at once."""
    faults = []
    for ref in refs:
        try:
            yield open_checkpoint(locate(ref, relative_to))
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))


def locate(ref: ModelRef, relative_to: Path) -> Path:
    """The folder or file of a model. InputError if it is none."""
    path = relative_to / Path(ref.path).expanduser()
    if ref.lora:
        raise InputError(f"{ref}: adapters cannot be merged yet; merge it into its base first")
    if ref.revision or not path.exists():
        raise InputError(
            f"{ref}: no such folder ({path}); models of the hub cannot be fetched yet, "
            f"download it and give the folder"
        )
    return path


def _unread(recipe: Recipe, method: Method) -> Iterator[str]:
    """Parameters that the method does not read, which mergekit would ignore silently."""
    known = {parameter.name for parameter in method.parameters}
    given: dict[str, None] = dict.fromkeys(recipe.parameters)
    for module in recipe.modules:
        given |= dict.fromkeys(module.parameters)
        for part in module.slices:
            given |= dict.fromkeys(part.parameters)
            for source in part.sources:
                given |= dict.fromkeys(source.parameters)
    for name in given:
        if name not in known:
            hint = nearest(name, known)
            yield f"{recipe.where}: {method.name} does not read the parameter '{name}'{hint}"


def _key(
    recipe: Recipe, options: PlanOptions, models: tuple[Checkpoint, ...], steps: tuple[Step, ...]
) -> str:
    """Digest of recipe values, inputs, layout and seed: what the bytes of the result depend on."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        digest.update(json.dumps(value, default=str, separators=(",", ":")).encode() + b"\n")

    add([recipe.method, options.seed, options.block])
    for model in models:
        for shard in model.shards:
            real = Path(shard.path).resolve()
            add([real, shard.size, real.stat().st_mtime_ns, shard.header_sha256])
    for step in steps:
        values: Mapping[str, Any] = step.task.values if step.task else {}
        add([step.name, step.dtype.name, step.shape, step.shard, step.offset, values])
    return digest.hexdigest()
