"""A recipe that asks for checkpoints of a run → the recipe that lists them.

What was picked is fixed at the first run: a merge that has begun or is finished goes on with its
own checkpoints, although the run has newer ones by now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..checkpoint.hub import Hub
from ..checkpoint.runs import Picked, pick
from ..errors import InputError, UsageError
from ..messages import first_names
from ..recipe.parser import parse
from ..recipe.runs import PICKED_FROM, Listed, entries
from ..recipe.schema import Recipe, RunRequest
from ..recipe.yaml_document import read_documents
from ..registry import Registry

EARLIER = "as picked by an earlier run of this merge"
MOST_BYTES = 1 << 20
"""Of the recipe of an earlier run; recipes are shorter."""


def with_listed_runs(
    recipe: Recipe, relative_to: Path, hub: Hub, recorded: Sequence[Path] = ()
) -> Recipe:
    """Return a recipe with the checkpoints of its runs as models.

    `recorded` are recipes of earlier runs of the merge; the first with the same request decides.
    Raises UsageError or InputError.
    """
    if recipe.listed:
        return recipe
    find = partial(_find, relative_to, hub, recorded)
    return parse(recipe.text, recipe.where, relative_to, recipe.methods, find)


def _find(
    relative_to: Path,
    hub: Hub,
    recorded: Sequence[Path],
    document: Mapping[str, Any],
    request: RunRequest,
    methods: Registry,
) -> Listed:
    earlier = next((m for path in recorded if (m := _recorded(path, document, request))), None)
    try:
        picked = pick(request, relative_to, hub)
        listed = entries(picked.words, document, request, methods)
    except InputError as error:
        if earlier is None:
            raise
        return Listed(earlier, EARLIER, (_kept(request, f"; {str(error).splitlines()[0]}"),))
    if earlier is None or earlier == listed:
        return Listed(listed, picked.summary, picked.notes)
    return Listed(earlier, EARLIER, (_changed(earlier, picked, request),))


def _changed(earlier: Sequence[Mapping[str, Any]], picked: Picked, request: RunRequest) -> str:
    """Return a note on checkpoints that would be picked today."""
    words = [str(entry["model"]) for entry in earlier]
    new = [Path(word).name for word in picked.words if word not in words]
    without = f", without {first_names(new)}" if new else ""
    return _kept(request, f"{without}; --no-resume or --overwrite picks anew")


def _kept(request: RunRequest, more: str) -> str:
    return f"{request.run}: this merge goes on with the checkpoints that it began with{more}"


def _recorded(path: Path, document: Mapping[str, Any], request: RunRequest) -> list[Any] | None:
    """Return the models of an earlier run with the same method and request, or None."""
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES).decode()
        values = [each.value for each in read_documents(text, str(path))]
    except (OSError, UnicodeDecodeError, UsageError):
        return None
    for value in values:
        if (
            isinstance(value, dict)
            and value.get(PICKED_FROM) == request.as_mapping()
            and value.get("merge_method") == document.get("merge_method")
            and isinstance(models := value.get("models"), list)
            and all(isinstance(m, dict) and isinstance(m.get("model"), str) for m in models)
        ):
            return models
    return None
