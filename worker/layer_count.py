"""Where a `config.json` says how many layers there are. Names of fields, no architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

FIELDS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers"),
    *("decoder_layers", "num_decoder_layers", "encoder_layers", "num_encoder_layers", "depth"),
)
LISTS = ("layers_block_type", "layer_types", "hybrid_override_pattern", "block_configs")
_TEXT = ("text_config", "llm_config", "language_config", "text_model", "thinker_config", "text")


class Count(NamedTuple):
    """One field that tells the number of layers: the keys that lead to it, and the number."""

    path: tuple[str, ...]
    value: int
    main: bool  # of the language model, as far as sections tell
    listed: bool = False  # the field is a list with an entry per layer


def counts(config: Mapping[str, Any]) -> list[Count]:
    """Every layer count of a config, sections included."""
    found = list(_counts(config, ()))
    text = [c for c in found if any(key in _TEXT for key in c.path[:-1])]
    main = text or [c for c in found if len(c.path) == 1] or found
    return [c._replace(main=c in main) for c in found]


def extra_layers(config: Mapping[str, Any]) -> int:
    """Prediction heads that some checkpoints store as layers after the last."""
    for section in (config, *(config[k] for k in _TEXT if isinstance(config.get(k), dict))):
        value = section.get("num_nextn_predict_layers")
        if type(value) is int and value > 0:
            return value
    return 0


def _counts(section: Mapping[str, Any], path: tuple[str, ...]) -> list[Count]:
    found = []
    for key, value in section.items():
        if key in FIELDS and type(value) is int:
            found.append(Count((*path, key), value, False))
        elif isinstance(value, dict) and len(path) < 3:
            found += _counts(value, (*path, key))
    if not any(count.path[:-1] == path for count in found):
        for key in LISTS:
            value = section.get(key)
            if isinstance(value, list | str) and value:
                found.append(Count((*path, key), len(value), False, listed=True))
    return found
