"""Texts that a merge runs its models on: found and digested with the plan, read when it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, UsageError, input_errors
from ..messages import counted
from ..recipe.schema import ModelRef, Recipe
from .options import PlanOptions


@dataclass(frozen=True)
class TextInput:
    """The texts of one model of a recipe; `sha256` is the digest of the file."""

    model: ModelRef
    path: Path
    sha256: str


def open_texts(recipe: Recipe, options: PlanOptions) -> tuple[TextInput, ...]:
    """Return the texts of every model beside the base; none if the recipe names none.

    Raises UsageError if only some models have texts or layers are picked, InputError for missing
    files.
    """
    sources = [
        source for module in recipe.modules for part in module.slices for source in part.sources
    ]
    models = [source for source in sources if source.model != recipe.base]
    given = [source for source in models if source.data]
    if not given:
        return ()
    if any(source.layers is not None for source in sources) or len(recipe.modules) > 1:
        raise UsageError(
            f"{given[0].place}: 'data' works with 'models', not with slices or modules"
        )
    if lacking := [str(source.model) for source in models if not source.data]:
        raise UsageError(
            f"{given[0].place}: other models have no data: {', '.join(lacking)}; name a file of "
            f"texts for each"
        )
    return _digested([(source.model, str(source.data)) for source in given], options)


def _digested(words: Sequence[tuple[ModelRef, str]], options: PlanOptions) -> tuple[TextInput, ...]:
    found, faults = list[TextInput](), list[str]()
    for model, word in words:
        path = options.relative_to / Path(word).expanduser()
        try:
            with input_errors(path):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found.append(TextInput(model, path, digest))
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return tuple(found)


def notes_on_texts(texts: Sequence[TextInput]) -> list[str]:
    """Return what a merge takes beside what its plan counts, if models are run."""
    if not texts:
        return []
    return [
        f"{counted(len(texts), 'models')} are run on texts before the merge: that takes "
        f"transformers, and memory and files beside those of the plan"
    ]
