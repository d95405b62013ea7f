"""Which parts of the worker (worker/features.py) a merge needs: what its recipe and options say.

What only models show is known where they are on this machine, from the plan; else it is carried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .settings import WorkerOptions

if TYPE_CHECKING:
    from worker.recipe import ModelRef, Recipe

UNSEEN = frozenset({"layouts", "pickled", "vocabularies"})
"""What headers and files of the models tell."""

SAID: dict[str, Callable[[Recipe, WorkerOptions], bool]] = {
    "adapters": lambda recipe, _: any(ref.lora for ref in recipe.own_refs()),
    "chat_template": lambda recipe, _: recipe.chat_template is not None,
    "dequantize": lambda recipe, options: options.dequantize or recipe.dequantize,
    "documents": lambda recipe, _: "---" in recipe.text,
    "hub": lambda recipe, options: bool(options.push) or any(map(_on_hub, recipe.all_refs())),
    "layers": lambda recipe, _: any(module.sliced for module in recipe.modules),
    "layouts": lambda recipe, _: bool(recipe.key_map),
    "schedule": lambda recipe, _: "schedule" in recipe.text,
    "tokenizer": lambda recipe, _: recipe.tokenizer is not None,
}


def _on_hub(ref: ModelRef) -> bool:
    from worker.checkpoint import is_hub_id

    return any(word and is_hub_id(word) for word in (ref.path, ref.lora))


def said(recipe: Recipe, options: WorkerOptions) -> frozenset[str]:
    """What the documents of a recipe and the options ask for, whatever the models are."""
    documents = (recipe, *recipe.stages)
    return frozenset(
        feature for feature, asks in SAID.items() if any(asks(each, options) for each in documents)
    )
