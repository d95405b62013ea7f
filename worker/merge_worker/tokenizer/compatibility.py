"""Whether models have the same tokens, as their merge without a `tokenizer` in it assumes."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InputError, UsageError
from ..messages import printable
from ..recipe.schema import Recipe
from ..structure.embeddings import rows_of, vocabulary_names
from ..structure.selection import tensors_of
from .files import stripped, vocabulary
from .text_side import TokenizerInputs


def _concerned(recipe: Recipe, inputs: TokenizerInputs) -> list[int]:
    """The models whose vocabulary tensors come into the result: not those of middle layers."""
    names = [module.name for module in recipe.modules]
    found: dict[int, None] = {}
    for module in recipe.modules:
        for part in (module.slices[0], module.slices[-1]):
            for number in (inputs.numbers[source.model] for source in part.sources):
                model = inputs.models[number]
                tensors = tensors_of(module.name, names, model.tensors)
                if any(name in tensors for name in vocabulary_names(model)):
                    found[number] = None
    return sorted(found)


def check_same_vocabulary(recipe: Recipe, inputs: TokenizerInputs) -> Iterable[str]:
    """InputError where rows differ in number; notes where they are of different tokens."""
    numbers, labels = _concerned(recipe, inputs), inputs.labels
    if len(numbers) < 2:
        return
    rows = {number: rows_of(inputs.models[number]) for number in numbers}
    first = numbers[0]
    other = next((n for n in numbers if rows[n] != rows[first]), None)
    if other is not None:
        direct = recipe.where == "average"
        how = "merge them by a recipe that says" if direct else "add to the recipe"
        raise InputError(
            f"{labels[first]} has {rows[first]} rows of vocabulary, {labels[other]} has "
            f"{rows[other]}; {how}:\n"
            f"tokenizer:\n  source: union   # or base: tokens that the base lacks are left out"
        )
    for number in numbers[1:]:
        told = _evidence(inputs, first, number, rows[first] or 0)
        if told:
            yield (
                f"{labels[number]}: its tokenizer is not that of {labels[first]}: {told}; rows are "
                f"merged by position, 'tokenizer_source: union' (or base) merges them by token"
            )


def _evidence(inputs: TokenizerInputs, first: int, second: int, rows: int) -> str:
    """How the tokens of two models differ, in words; empty if they do not."""
    a, b = inputs.side_files[first], inputs.side_files[second]
    names = [n for n in (*a.names(), *b.names()) if "chat" not in n and "config" not in n]
    if all(a.read(name) == b.read(name) for name in names):
        return ""
    try:
        mine, theirs = vocabulary(a), vocabulary(b)
    except (InputError, UsageError):
        return ""
    if mine is None or theirs is None:
        return ""
    one, two = stripped(mine, rows).ids, stripped(theirs, rows).ids
    differing = sorted(
        (t for t in {**one, **two} if one.get(t) != two.get(t)),
        key=lambda t: (t not in one or t not in two, one.get(t, 0), t),
    )
    if not differing:
        return ""
    token = differing[0]
    places = [f"{f[token]}" if token in f else "absent" for f in (one, two)]
    more = f", and so for {len(differing) - 1} more" if len(differing) > 1 else ""
    return f"'{printable(token)}' is {places[0]} there and {places[1]} here{more}"
