"""Tensors with a row for every token: embeddings, and heads that may share them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..checkpoint.reader import samples_differ
from ..tensors.source import StoredTensor, TensorSource
from .layers import is_vision_or_audio


def sections(config: Mapping[str, Any]) -> list[tuple[str | None, Mapping[str, Any]]]:
    """Return the config and its sections, except those for vision or audio, with their keys."""
    inner = [(k, v) for k, v in config.items() if isinstance(v, dict)]
    return [(None, config), *((k, v) for k, v in inner if not is_vision_or_audio(k))]


def config_vocab_size(config: Mapping[str, Any]) -> int | None:
    """Return the `vocab_size` of the text section, else of the config, else of any section."""
    text = config.get("text_config")
    inner = text.get("vocab_size") if isinstance(text, dict) else None
    sizes = [inner, *(section.get("vocab_size") for _, section in sections(config))]
    return next((rows for rows in sizes if type(rows) is int), None)


_EMBEDDINGS = (
    "embed_tokens",
    "wte",
    "embed_in",
    "word_embeddings",
    "tok_embeddings",
    "shared",
    "embeddings",
    "embedding",
    "token_embedding",
    "emb",
    "embed",
    "embed_tokens_per_layer",
)
_HEADS = (
    "lm_head",
    "embed_out",
    "output_layer",
    "output",
    "vocab_projector",
    "head",
    "decoder",
    "predictions",
    "lm_head_bias",
    "unembed",
)


def ties_head(config: Mapping[str, Any]) -> bool:
    """Whether the config says that the head is the embedding."""
    return bool(_declared_tie(config))


def _declared_tie(config: Mapping[str, Any]) -> object:
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    return config.get("tie_word_embeddings", inner)


def tied(model: Checkpoint) -> bool:
    """Whether the head is the embedding: as the config says, else whether none is stored.

    A stored head with other values is a head of its own, whatever the config says: transformers 5
    loads it as such.
    """
    return _tied(model.config, model.tensors)


def _tied(config: Mapping[str, Any], tensors: Mapping[str, TensorSource]) -> bool:
    declared = _declared_tie(config)
    if declared is not None:
        return bool(declared) and not _has_own_head(tensors)
    return bool(config) and not any(map(is_head, tensors))


def _has_own_head(tensors: Mapping[str, TensorSource]) -> bool:
    """Whether a stored head differs from the embedding, as far as samples of both show."""
    stored = [info for info in tensors.values() if isinstance(info, StoredTensor)]
    embeddings = [info for info in stored if _word(info.name) in _EMBEDDINGS]
    for head in (info for info in stored if is_head(info.name)):
        alike = [info for info in embeddings if info.shape == head.shape]
        if alike and all(samples_differ(head, embedding) for embedding in alike):
            return True
    return False


def is_head(name: str) -> bool:
    """Return whether a tensor is the head of the model itself, and of no module in a sub-folder."""
    return name.rsplit(".", 2)[-2:] == ["lm_head", "weight"] and "/" not in name


def _word(name: str) -> str:
    """Return the last module of a name: `lm_head` for `lm_head.weight`."""
    parts = name.rsplit(".", 2)
    return parts[-2] if len(parts) > 1 and parts[-1] in ("weight", "bias") else ""


def tied_head(
    name: str,
    shape: tuple[int, ...],
    tensors: Mapping[str, TensorSource],
    config: Mapping[str, Any],
) -> TensorSource | None:
    """Return the embedding that serves as the head `name` in a model that ties the two."""
    if not is_head(name) or not _tied(config, tensors):
        return None
    embedding = _embedding(tensors, shape)
    return replace(embedding, name=name) if embedding and embedding.shape == shape else None


def tied_name(embedding: TensorSource, config: Mapping[str, Any]) -> str | None:
    """Return the name of the head that a tied language model makes of an embedding.

    None if the tensor is not an embedding of tokens, or the model has no head.
    """
    classes = config.get("architectures") or ()
    has_head = any(re.search(r"For(CausalLM|Conditional)|LMHead", str(name)) for name in classes)
    word = _word(embedding.name)
    if not has_head or word not in _EMBEDDINGS or word.endswith("_per_layer"):
        return None
    # The head stands beside the model of the text, not in it.
    place = re.match(r"((?:\w+\.)*?)(model|transformer)\.", embedding.name)
    return f"{place[1] if place else ''}lm_head.weight"


def _embedding(tensors: Mapping[str, TensorSource], shape: tuple[int, ...]) -> TensorSource | None:
    """Return the embedding for a head of this shape; rows may differ between models."""
    embeddings = (info for info in tensors.values() if _word(info.name) in _EMBEDDINGS)
    return next((info for info in embeddings if info.shape[1:] == shape[1:]), None)


def embeddings(tensors: Mapping[str, TensorSource]) -> list[TensorSource]:
    """Return the matrices whose names say that they embed tokens."""
    matrices = (info for info in tensors.values() if len(info.shape) == 2)
    return [info for info in matrices if _word(info.name) in _EMBEDDINGS]


def rows_of(model: Checkpoint) -> int | None:
    """Return the rows of the token embedding; None if no tensor looks like it."""
    rows = [info.shape[0] for info in embeddings(model.tensors)]
    declared = config_vocab_size(model.config)
    return declared if declared in rows else rows[0] if rows else None


def vocabulary_names(model: Checkpoint) -> list[str]:
    """Return the tensors with a row for every token: embeddings, heads, and their biases."""
    rows = rows_of(model)  # None is the extent of no tensor
    tensors = model.tensors.items()
    return [name for name, info in tensors if info.shape[:1] == (rows,) and is_vocabulary(name)]


def is_vocabulary(name: str) -> bool:
    """Whether a tensor of that name has a row for every token, if it has as many rows."""
    return _word(name) in (*_EMBEDDINGS, *_HEADS)


def unify_tied_heads(
    models: Sequence[Checkpoint], labels: Sequence[str]
) -> tuple[tuple[Checkpoint, ...], list[str]]:
    """Return the models with heads, or without, as the first one's config has it; and notes.

    A tied model gains no copy of its embedding; a head that is needed and not stored is added.
    """
    first, notes, settled = models[0], [], []
    for model, label in zip(models, labels, strict=True):
        tensors = dict(model.tensors)
        if tied(first):
            for name in filter(is_head, model.tensors):
                # Where nothing looks like the embedding, the head is not one that may go.
                if _embedding(model.tensors, tensors[name].shape) is None:
                    continue
                del tensors[name]
                if not tied(model):
                    notes.append(
                        f"{label}: its {name} is left out, since {labels[0]}, whose config counts, "
                        f"has its embedding for a head"
                    )
        elif tied(model):
            for name in filter(is_head, first.tensors):
                embedding = _embedding(model.tensors, first.tensors[name].shape)
                if embedding is not None and name not in tensors:
                    tensors[name] = replace(embedding, name=name)
                    notes.append(
                        f"{label}: has its embedding for a head, which is merged as {name}, since "
                        f"{labels[0]}, whose config counts, has a head of its own"
                    )
        settled.append(replace(model, tensors=tensors) if tensors != model.tensors else model)
    return tuple(settled), notes
