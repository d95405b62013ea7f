"""A recipe with a `tokenizer`: every vocabulary tensor gets the rows of the result's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import CONFIG
from ..errors import InputError
from ..recipe.schema import ModelRef, Recipe, TokenizerChoice
from ..structure.embeddings import rows_of, unify_tied_heads
from .chat_template import asked_template, with_template
from .compatibility import check_same_vocabulary
from .config_ids import with_token_ids
from .files import SideFiles, Vocabulary, as_json, stripped, vocabulary
from .row_sources import Alignment
from .text_side import TokenizerInputs, TokenizerResult
from .vocabulary import edited, joined

GENERATION = "generation_config.json"


def align_by_token(
    recipe: Recipe, choice: TokenizerChoice, inputs: TokenizerInputs
) -> tuple[tuple[Checkpoint, ...], TokenizerResult]:
    """Rows of models, files of the tokenizer, ids in the config. UsageError, InputError."""
    rows = [rows_of(model) or 0 for model in inputs.models]
    found, notes = _vocabularies(choice, inputs, rows)
    withrow = [stripped(one, count) for one, count in zip(found, rows, strict=True)]
    donor = _donor(choice, inputs)
    beside, start = inputs.side_files[0], withrow[0]
    if donor is not None:
        beside, start = donor, _tokens_of(donor, f"{choice.place}: {choice.source}")
    union = choice.source == "union"
    named = list(zip(inputs.labels, found, rows, strict=True)) if union else []
    tokens = joined(start, named, choice.tokens)
    if donor is None:
        tokens = replace(tokens, removed=frozenset(found[0].ids.keys() - start.ids.keys()))
    base = inputs.numbers[recipe.base] if recipe.base else None
    alignment = Alignment(
        choice, inputs.numbers, [one.ids for one in withrow], rows, tokens.ids, base
    )
    text = TokenizerResult(
        replace(beside, known=tokens.vocabulary(start)),
        donor is not None,
        (rows[0], alignment.size),
        tuple(token for token in tokens.appended if token not in start.ids),
        {number: tokens.ids.get(token) for token, number in withrow[0].ids.items()},
        donor.json(CONFIG) if donor else {},
        (*notes, *tokens.notes),
        beside,
    )
    text = text.with_made(edited(beside, start, tokens))
    if donor is not None:
        text = text.with_made(_generation(inputs.side_files[0], donor, text))
    return alignment.aligned(inputs.models), text


def _donor(choice: TokenizerChoice, inputs: TokenizerInputs) -> SideFiles | None:
    """The files of a tokenizer that is not the first model's."""
    if not isinstance(choice.source, ModelRef):
        return None
    number = inputs.numbers.get(choice.source)
    if number == 0:
        return None
    return inputs.find(choice.source) if number is None else inputs.side_files[number]


def _tokens_of(beside: SideFiles, name: str) -> Vocabulary:
    found = vocabulary(beside)
    if found is None:
        raise InputError(f"{name}: has no tokenizer ({beside.folder})")
    return found


def _vocabularies(
    choice: TokenizerChoice, inputs: TokenizerInputs, rows: Sequence[int]
) -> tuple[list[Vocabulary], list[str]]:
    """The tokens of every model; one without a tokenizer is taken to have the first one's."""
    first = _tokens_of(inputs.side_files[0], f"{choice.place}: {inputs.labels[0]}")
    if not rows[0]:
        raise InputError(f"{choice.place}: {inputs.labels[0]} has no embedding with known name")
    found, notes = [first], []
    for label, beside in zip(inputs.labels[1:], inputs.side_files[1:], strict=True):
        own = vocabulary(beside)
        if own is None:
            notes.append(f"{label}: has no tokenizer; its tokens are taken to be those of "
                         f"{inputs.labels[0]}")  # fmt: skip
        found.append(own or first)
    return found, notes


def _generation(own: SideFiles, donor: SideFiles, text: TokenizerResult) -> dict[str, bytes]:
    """The generation config with the ids of a tokenizer from elsewhere."""
    before = own.json(GENERATION)
    said = {**donor.json(CONFIG), **donor.json(GENERATION)}
    after = with_token_ids(before, text.ids, said)
    return {GENERATION: as_json(after)} if after != before else {}


def merge_tokenizers(
    recipe: Recipe, inputs: TokenizerInputs
) -> tuple[tuple[Checkpoint, ...], TokenizerResult]:
    """Give all models one vocabulary; return them with the side files of the result.

    Without `tokenizer` in the recipe, all models must have the same rows, and the base's files are
    taken as they are. With one, every vocabulary tensor of every model gets the rows of the
    result's tokens. Raises UsageError and InputError.
    """
    models, notes = unify_tied_heads(inputs.models, inputs.labels)
    inputs = replace(inputs, models=models)
    if recipe.tokenizer is None:
        text = TokenizerResult(
            inputs.side_files[0], notes=tuple(check_same_vocabulary(recipe, inputs))
        )
    else:
        models, text = align_by_token(recipe, recipe.tokenizer, inputs)
    if recipe.chat_template:
        where, besides = recipe.where, inputs.side_files
        template = asked_template(recipe.chat_template, besides, inputs.relative_to, where)
        made = with_template(text.beside, template) if template else {}
        text = text.with_made(made)
    return models, replace(text, notes=(*notes, *text.notes))
