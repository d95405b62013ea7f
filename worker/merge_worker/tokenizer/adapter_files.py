"""The tokenizer and chat template of an adapted model, which may lie beside the adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..adapters.apply import Adapted
from ..checkpoint.folder import Checkpoint
from ..errors import InputError, UsageError
from ..messages import counted, first_names
from ..structure.embeddings import rows_of
from .chat_template import own_template, with_template
from .files import SideFiles, Vocabulary, has_vocabulary, vocabulary


def adapted_files(
    base: SideFiles, adapter: Path, rows: int | None = None
) -> tuple[SideFiles, list[str]]:
    """Return the side files of an adapted model of `rows` tokens, and notes on what is not taken.

    An adapter that was trained with other tokens than its base has brings its tokenizer, and one
    that was trained with another chat template brings that.
    """
    own = SideFiles(adapter)
    try:
        tokens = vocabulary(own) if has_vocabulary(own) else None
        before = vocabulary(base) if tokens else None
        if tokens is None or (before and _same_tokens(before, tokens)):
            return _with_template(base, own_template(own)), []
        if rows and tokens.size > rows:
            return base, [_tokens_without_rows(adapter, tokens, rows)]
        return with_tokenizer_of(base, own), []
    except (InputError, UsageError) as error:
        return base, [f"{error}\n  the tokenizer of the base is kept"]


def unnamed_rows(model: Checkpoint, tokens: Vocabulary | None) -> int:
    """Count the rows that an adapter adds to a model of `tokens`, and that none of them has."""
    if not isinstance(model, Adapted) or has_vocabulary(SideFiles(model.adapter)):
        return 0
    named = max(model.base_rows or 0, tokens.size if tokens else 0)
    return max(0, (rows_of(model) or 0) - named)


def note_on_unnamed_rows(model: Checkpoint, count: int) -> str:
    place = model.adapter if isinstance(model, Adapted) else model.path
    return (
        f"{place}: {counted(count, 'rows are')} new, and named in no tokenizer\n"
        f"  put the tokenizer it was trained with into its folder, or name one in the recipe: "
        f"tokenizer: {{source: FOLDER}}"
    )


def with_tokenizer_of(base: SideFiles, donor: SideFiles) -> SideFiles:
    """Return the side files of `base` with the tokenizer of `donor`.

    Code stays, and so does the chat template if the donor has none.
    """
    left_out = dict.fromkeys(name for name in base.names() if not name.endswith(".py"))
    given = {name: donor.read(name) for name in donor.names()}
    files = base.replaced({**left_out, **given, **donor.overrides})
    template = own_template(donor) or own_template(base)
    return _with_template(replace(files, vocabulary=donor.vocabulary), template)


def _with_template(files: SideFiles, template: str | None) -> SideFiles:
    return files.replaced(with_template(files, template)) if template else files


def _same_tokens(base: Vocabulary, own: Vocabulary) -> bool:
    """Whether both have the same ids and find the same tokens whole in a text."""
    listed = bool(base.added)  # sentencepiece models do not say which tokens are added
    return base.ids == own.ids and not (listed and base.added.keys() != own.added.keys())


def _tokens_without_rows(adapter: Path, tokens: Vocabulary, rows: int) -> str:
    """Describe a tokenizer that was trained with, whose embedding was not saved."""
    lacking = sorted((t for t in tokens.ids if tokens.ids[t] >= rows), key=tokens.ids.__getitem__)
    return (
        f"{adapter}: {counted(len(lacking), 'tokens of its tokenizer have')} no row in the weights "
        f"({first_names(lacking)}), so the tokenizer of the base is kept\n"
        f"  save the adapter with the embedding it was trained with: save_embedding_layers=True"
    )
