"""Ids of tokens in `config.json` and `generation_config.json`, and the number of rows. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..structure.components import is_vision_or_audio
from ..structure.embeddings import config_vocab_size, sections

_IDS = re.compile(
    r"(\w+_)?token_ids?|\w+_token_index|(begin_)?suppress_tokens|bad_words_ids|forced_decoder_ids"
)
_OF_TOKENIZER = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token_id")


def with_token_ids(
    config: Mapping[str, Any], ids: Mapping[int, int | None], donor: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the config with new token ids; `donor` decides what belongs to a foreign tokenizer.

    The id of a removed token becomes None, or is dropped from a list.
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and not is_vision_or_audio(key):
            inner = donor.get(key, donor)
            found[key] = with_token_ids(value, ids, inner if isinstance(inner, dict) else {})
        elif _OF_TOKENIZER.fullmatch(key) and donor.get(key) is not None:
            found[key] = donor[key]
        else:
            found[key] = _moved(value, ids) if _IDS.fullmatch(key) else value
    return found


def _moved(value: Any, ids: Mapping[int, int | None]) -> Any:
    if isinstance(value, list):
        moved = [(item, _moved(item, ids)) for item in value]
        return [new for item, new in moved if new is not None or item is None]
    return ids.get(value, value) if type(value) is int else value


def with_vocab_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The config with `vocab_size` wherever it was that of the text."""
    before, changed = config_vocab_size(config), dict(config)
    if not config or before == rows:
        return changed
    if before is None:
        # Left out where it is the default of the model type.
        if isinstance(config.get("text_config"), dict):
            changed["text_config"] = {**config["text_config"], "vocab_size": rows}
        else:
            changed["vocab_size"] = rows
    for key, section in sections(config):
        if before is not None and section.get("vocab_size") == before:
            if key is None:
                changed["vocab_size"] = rows
            else:
                changed[key] = {**section, "vocab_size": rows}
    return changed
