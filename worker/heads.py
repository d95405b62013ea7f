"""Output heads that share the embedding: stored in one model, implied in another. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .origin import Origin

_EMBEDDINGS = (
    *("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "shared"),
    *("embeddings", "embedding"),
)


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the config says that the head is the embedding."""
    text = config.get("text_config")
    inner = isinstance(text, dict) and text.get("tie_word_embeddings")
    return bool(config.get("tie_word_embeddings", inner))


def is_head(name: str) -> bool:
    return name.rsplit(".", 2)[-2:] == ["lm_head", "weight"]


def implied_head(
    name: str, shape: tuple[int, ...], tensors: Mapping[str, Origin], config: Mapping[str, Any]
) -> Origin | None:
    """The embedding that stands for the head `name` in a model that ties the two."""
    if not is_head(name) or not ties_head(config):
        return None
    for info in tensors.values():
        parts = info.name.rsplit(".", 2)
        embeds = len(parts) > 1 and parts[-1] == "weight" and parts[-2] in _EMBEDDINGS
        if embeds and info.shape == shape:
            return replace(info, name=name)
    return None
