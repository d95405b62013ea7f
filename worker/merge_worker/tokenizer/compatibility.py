"""Whether models have the same tokens, as their merge without a `tokenizer` in it assumes."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError, UsageError
from ..messages import printable
from ..recipe.schema import Recipe
from ..recipe.yaml_document import COMMAND
from ..structure.embeddings import rows_of, vocabulary_names
from ..structure.selection import tensors_of
from .files import SideFiles, vocabulary, with_rows
from .text_side import TokenizerInputs


def check_same_vocabulary(recipe: Recipe, inputs: TokenizerInputs) -> Iterable[str]:
    """Raise InputError if numbers of rows differ; yield notes if rows are of different tokens."""
    numbers, labels = _models_with_rows(recipe, inputs), inputs.labels
    if len(numbers) < 2:
        return
    rows = {number: rows_of(inputs.models[number]) for number in numbers}
    first = numbers[0]
    other = next((n for n in numbers if rows[n] != rows[first]), None)
    if other is not None:
        raise InputError(
            f"{labels[first]} has {rows[first]} rows of vocabulary, {labels[other]} has "
            f"{rows[other]}; {way_out(recipe)}:\n"
            f"tokenizer:\n  source: union   # or base: tokens that the base lacks are left out"
        )
    for number in numbers[1:]:
        files = inputs.side_files
        difference = tokenizer_difference(files[first], files[number], rows[first] or 0)
        if difference:
            yield (
                f"{labels[number]}: its tokenizer is not that of {labels[first]}: {difference}; "
                f"rows are merged by position, 'tokenizer_source: union' (or base) merges them by "
                f"token"
            )


def way_out(recipe: Recipe) -> str:
    """Return the words before the line that a recipe needs."""
    direct = recipe.where == COMMAND
    return "merge them by a recipe that says" if direct else "add to the recipe"


def _models_with_rows(recipe: Recipe, inputs: TokenizerInputs) -> list[int]:
    """Return the first model, and those that give more than middle layers."""
    names = [module.name for module in recipe.modules]
    # The config and the tokenizer of the result are those of the first model, whatever its part.
    numbers = {0} if rows_of(inputs.models[0]) else set()
    for module in recipe.modules:
        for part in (module.slices[0], module.slices[-1]):
            for number in (inputs.numbers[source.model] for source in part.sources):
                model = inputs.models[number]
                tensors = tensors_of(module.name, names, model.tensors)
                if any(name in tensors for name in vocabulary_names(model)):
                    numbers.add(number)
    return sorted(numbers)


def tokenizer_difference(a: SideFiles, b: SideFiles, rows: int) -> str:
    """Describe how the tokens of two models differ in the first `rows`; empty if they do not."""
    names = [n for n in (*a.names(), *b.names()) if "chat" not in n and "config" not in n]
    if all(a.read(name) == b.read(name) for name in names):
        return ""
    try:
        mine, theirs = vocabulary(a), vocabulary(b)
    except (InputError, UsageError):
        return ""
    if mine is None or theirs is None:
        return ""
    ids, other = with_rows(mine, rows).ids, with_rows(theirs, rows).ids
    differing = [t for t in {**ids, **other} if ids.get(t) != other.get(t)]
    if not differing:
        return ""
    token = min(differing, key=lambda t: (t not in ids or t not in other, ids.get(t, 0), t))
    more = f", and so for {len(differing) - 1} more" if len(differing) > 1 else ""
    there, here = ids.get(token, "absent"), other.get(token, "absent")
    return f"'{printable(token)}' is {there} there and {here} here{more}"
