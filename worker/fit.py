"""One vocabulary for all models: what the recipe's `tokenizer` and `chat_template` make of them.

Without a `tokenizer` all models must have the same rows, and the base's files are taken as they
are. With one, every vocabulary tensor of every model gets the rows of the result's tokens.
"""

from __future__ import annotations

from dataclasses import replace

from .by_token import fitted
from .chat_template import asked_template, with_template
from .checkpoint import Checkpoint
from .heads import settle_heads
from .recipe import Recipe
from .same_tokens import differences
from .text import Inputs, Text


def fit(recipe: Recipe, inputs: Inputs) -> tuple[tuple[Checkpoint, ...], Text]:
    """The models with one vocabulary, and what goes with them. UsageError, InputError."""
    models, notes = settle_heads(inputs.models, inputs.labels)
    inputs = replace(inputs, models=models)
    if recipe.tokenizer is None:
        text = Text(inputs.besides[0], notes=tuple(differences(recipe, inputs)))
    else:
        models, text = fitted(recipe, recipe.tokenizer, inputs)
    if recipe.chat_template:
        where, besides = recipe.where, inputs.besides
        template = asked_template(recipe.chat_template, besides, inputs.relative_to, where)
        made = with_template(text.beside, template) if template else {}
        text = text.with_made(made)
    return models, replace(text, notes=(*notes, *text.notes))
