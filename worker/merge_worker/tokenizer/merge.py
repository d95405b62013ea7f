"""A recipe with a `tokenizer`: every vocabulary tensor gets the rows of the result's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import CONFIG
from ..errors import InputError
from ..messages import first_names
from ..recipe.schema import ModelRef, Recipe, TokenizerChoice
from ..structure.embeddings import rows_of, unify_tied_heads
from .adapter_files import note_on_unnamed_rows, unnamed_rows
from .chat_template import asked_template, own_template, with_template
from .compatibility import check_same_vocabulary, way_out
from .files import SideFiles, Vocabulary, to_json, vocabulary, with_rows
from .row_sources import Alignment
from .text_side import TokenizerInputs, TokenizerResult, with_token_ids
from .vocabulary import edited, joined, notes_on_older_forms

GENERATION = "generation_config.json"


def align_by_token(
    recipe: Recipe, choice: TokenizerChoice, inputs: TokenizerInputs
) -> tuple[tuple[Checkpoint, ...], TokenizerResult]:
    """Rows of models, files of the tokenizer, ids in the config. UsageError, InputError."""
    rows = [rows_of(model) or 0 for model in inputs.models]
    vocabularies, notes = _vocabularies(choice, inputs, rows)
    donor = _donor(choice, inputs)
    files, start = inputs.side_files[0], with_rows(vocabularies[0], rows[0])
    if donor is not None:
        files, start = donor, _tokens_of(donor, f"{choice.place}: {choice.source}")
        vocabularies = _named_by(start, vocabularies, inputs.models)
    notes += _notes_on_rows(inputs.models, vocabularies)
    kept = [with_rows(own, count) for own, count in zip(vocabularies, rows, strict=True)]
    named = list(zip(inputs.labels, kept, strict=True)) if choice.source == "union" else []
    tokens = joined(start, named, choice.tokens)
    if donor is None:
        tokens = replace(tokens, removed=frozenset(vocabularies[0].ids.keys() - start.ids.keys()))
    base = inputs.numbers[recipe.base] if recipe.base else None
    alignment = Alignment(choice, inputs.numbers, [own.ids for own in kept], rows, tokens.ids, base)
    changed = edited(files, start, tokens)
    text = TokenizerResult(
        replace(files, vocabulary=tokens.vocabulary(start)),
        donor is not None,
        (rows[0], alignment.size),
        tuple(token for token in tokens.appended if token not in start.ids),
        {number: tokens.ids.get(token) for token, number in kept[0].ids.items()},
        donor.json(CONFIG) if donor else {},
        (*notes, *tokens.notes, *notes_on_older_forms(files, changed)),
        files,
    ).with_overrides(changed)
    if donor is not None:
        text = text.with_overrides(_generation(inputs.side_files[0], donor, text))
    return alignment.aligned(inputs.models), text


def _donor(choice: TokenizerChoice, inputs: TokenizerInputs) -> SideFiles | None:
    """Return the files of a tokenizer that is not the first model's."""
    if not isinstance(choice.source, ModelRef):
        return None
    number = inputs.numbers.get(choice.source)
    if number == 0:
        return None
    return inputs.find(choice.source) if number is None else inputs.side_files[number]


def _tokens_of(files: SideFiles, name: str) -> Vocabulary:
    tokens = vocabulary(files)
    if tokens is None:
        raise InputError(f"{name}: has no tokenizer files, such as tokenizer.json")
    return tokens


def _vocabularies(
    choice: TokenizerChoice, inputs: TokenizerInputs, rows: Sequence[int]
) -> tuple[list[Vocabulary], list[str]]:
    """Return the tokens of every model, those of the first for one without a tokenizer."""
    first = _tokens_of(inputs.side_files[0], f"{choice.place}: {inputs.labels[0]}")
    if not rows[0]:
        raise InputError(f"{choice.place}: {inputs.labels[0]} has no embedding with known name")
    others = [vocabulary(files) for files in inputs.side_files[1:]]
    notes = [
        f"{label}: has no tokenizer; its tokens are taken to be those of {inputs.labels[0]}"
        for label, own in zip(inputs.labels[1:], others, strict=True)
        if own is None
    ]
    return [first, *(own or first for own in others)], notes


def _named_by(
    donor: Vocabulary, vocabularies: Sequence[Vocabulary], models: Sequence[Checkpoint]
) -> list[Vocabulary]:
    """Return the tokens of models; those of the donor where it alone names rows of an adapter."""
    return [
        donor if unnamed_rows(model, own) and own.ids.items() <= donor.ids.items() else own
        for own, model in zip(vocabularies, models, strict=True)
    ]


def _notes_on_rows(
    models: Sequence[Checkpoint], vocabularies: Sequence[Vocabulary | None]
) -> list[str]:
    pairs = zip(models, vocabularies, strict=True)
    counts = [(model, unnamed_rows(model, own)) for model, own in pairs]
    return [note_on_unnamed_rows(model, count) for model, count in counts if count]


def _generation(own: SideFiles, donor: SideFiles, text: TokenizerResult) -> dict[str, bytes]:
    """Return the generation config with the ids of a tokenizer from elsewhere."""
    before = own.json(GENERATION)
    after = with_token_ids(before, text.ids, donor.json(CONFIG) | donor.json(GENERATION))
    return {GENERATION: to_json(after)} if after != before else {}


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
        differences = check_same_vocabulary(recipe, inputs)
        unnamed = _notes_on_rows(models, [None] * len(models))
        text = TokenizerResult(inputs.side_files[0], notes=(*differences, *unnamed))
    else:
        models, text = align_by_token(recipe, recipe.tokenizer, inputs)
    if recipe.chat_template:
        side_files, where = inputs.side_files, recipe.where
        template = asked_template(recipe.chat_template, side_files, inputs.relative_to, where)
        if template:
            text = text.with_overrides(with_template(text.side_files, template))
    else:
        notes += _lost_template(recipe, inputs, text)
    return models, replace(text, notes=(*notes, *text.notes))


def _lost_template(recipe: Recipe, inputs: TokenizerInputs, text: TokenizerResult) -> list[str]:
    """Return a note if models have a chat template and the tokenizer of the result has none."""
    try:
        if text.side_files.folder is None or own_template(text.side_files) is not None:
            return []
        pairs = zip(inputs.labels, inputs.side_files, strict=True)
        having = [label for label, files in pairs if own_template(files)]
    except InputError:  # damaged files, of which only the template would be read
        return []
    if not having:
        return []
    donor = recipe.tokenizer.source if recipe.tokenizer and text.foreign else inputs.labels[0]
    return [
        f"{recipe.name or 'the result'}: no chat template, since {donor} has none, unlike "
        f"{first_names(having)}\n  {way_out(recipe)}: chat_template: auto"
    ]
