"""Routing of a mixture on disk: its texts, the pass over its layers, and the record of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..checkpoint.folder import Checkpoint
from ..engine.device import select_devices
from ..errors import InputError, UsageError
from ..experts.hidden import quiet_transformers
from ..experts.tokens import prompt_ids
from ..inference.model import ModelOptions, open_model
from ..inference.texts import encode, read_samples, read_tokenizer
from ..messages import printable
from ..output.files import RECIPE
from ..output.manifest import read_manifest
from ..output.model_card import public_name
from ..planning.inputs import open_reference
from ..planning.prompts import positive_prompts
from ..recipe import parse
from ..recipe.schema import Recipe
from ..system.machine import return_freed_memory
from ..tokenizer.files import SideFiles
from .mixture import refuse_dense
from .record import record_routing
from .routing import Group, Routing, measure


def route_prompts(out: Path, recipe: Recipe, start: Path, device: str) -> Routing | None:
    """Measure where the prompts of a finished mixture's recipe go, and record it in OUT.

    Paths in the recipe start at `start`. Returns None if the recipe has no prompts. InputError,
    UsageError, OutputError.
    """
    model, files, label = open_reference(str(out.absolute()), Path())
    groups = _own_groups(recipe, start, files)
    if not groups:
        return None
    routing = _measured(model, files, label, groups, device)
    record_routing(out, routing)
    return routing


def route_again(word: str, texts: Sequence[str], device: str) -> tuple[Routing, bool]:
    """Measure where texts go in a mixture, by default the prompts of its recipe.

    `texts` are words NAME=FILE. The second value is whether the result was recorded, as that of
    prompts is. Raises UsageError, InputError, OutputError.
    """
    out = Path(word).expanduser()
    if not texts and not (out / RECIPE).is_file():
        raise UsageError(
            f"{word}: no {RECIPE} with prompts in it; give texts with --texts NAME=FILE"
        )
    if not texts:
        try:
            written = (out / RECIPE).read_text(encoding="utf-8", errors="replace")
            recipe = parse(written, str(out / RECIPE))
        except UsageError as error:
            raise UsageError(f"{error}\n  give texts with --texts NAME=FILE") from None
        found = route_prompts(out, recipe, Path(), device) if read_manifest(out) else None
        if found is None:
            raise UsageError(
                f"{out / RECIPE}: no prompts of experts in it; give texts with --texts NAME=FILE"
            )
        return found, True
    model, files, label = open_reference(word, Path())
    groups = _groups_of_files(texts, files, label, _labels_in(out))
    return _measured(model, files, label, groups, device), False


def _measured(
    model: Checkpoint, files: SideFiles, label: str, groups: Sequence[Group], device: str
) -> Routing:
    refuse_dense(label, model.config)
    return_freed_memory()
    quiet_transformers()
    options = ModelOptions(device=select_devices(device)[0])
    with torch.no_grad(), open_model(model, files, label, options) as opened:
        return measure(opened, groups, model.config)


def _own_groups(recipe: Recipe, start: Path, files: SideFiles) -> list[Group]:
    """Return the positive prompts of each expert that has some."""
    if recipe.mixture is None:
        return []
    groups = []
    names = _names(recipe)
    for number, expert in enumerate(recipe.mixture.experts):
        if prompts := positive_prompts(expert, start):
            ids = tuple(tuple(one) for one in prompt_ids(files, prompts))
            groups.append(Group(names[number], ids, number))
    return groups


def _names(recipe: Recipe) -> list[str]:
    """Return a name for each expert; a model that is several of them has numbers."""
    assert recipe.mixture is not None
    plain = [public_name(expert.model) for expert in recipe.mixture.experts]
    return [
        name if plain.count(name) == 1 else f"{name} #{plain[: place + 1].count(name)}"
        for place, name in enumerate(plain)
    ]


def _labels_in(out: Path) -> list[str]:
    """Return the names of the experts of a mixture; none if it has no recipe that can be read."""
    try:
        recipe = parse((out / RECIPE).read_text(encoding="utf-8", errors="replace"), RECIPE)
        return _names(recipe) if recipe.mixture else []
    except (OSError, UsageError):
        return []


def _groups_of_files(
    words: Sequence[str], files: SideFiles, label: str, experts: Sequence[str]
) -> list[Group]:
    tokenizer = read_tokenizer(files, label)
    groups = []
    for word in words:
        name, equals, file = word.partition("=")
        if not equals or not name or not file:
            raise UsageError(f"--texts {printable(word)}: write NAME=FILE, such as math=math.txt")
        samples = read_samples(Path(file).expanduser())
        encoded = (encode(sample, tokenizer).ids for sample in samples)
        texts = tuple(ids for ids in encoded if ids)
        if not texts:
            raise InputError(f"{file}: no tokens in it")
        number = experts.index(name) if name in experts else None
        groups.append(Group(name, texts, number))
    return groups
