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
    changed = dict(config)
    for key, value in config.items():
        if isinstance(value, dict) and not is_vision_or_audio(key):
            inner = donor.get(key, donor)
            changed[key] = with_token_ids(value, ids, inner if isinstance(inner, dict) else {})
        elif _OF_TOKENIZER.fullmatch(key) and donor.get(key) is not None:
            changed[key] = donor[key]
        elif _IDS.fullmatch(key):
            changed[key] = _moved(value, ids)
    return changed


def _moved(value: Any, ids: Mapping[int, int | None]) -> Any:
    if isinstance(value, list):
        moved = [(item, _moved(item, ids)) for item in value]
        return [new for item, new in moved if new is not None or item is None]
    return ids.get(value, value) if type(value) is int else value


def with_vocab_size(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the config with `vocab_size` wherever it was that of the text."""
    before, changed = config_vocab_size(config), dict(config)
    if not config or before == rows:
        return changed
    keys = [key for key, section in sections(config) if section.get("vocab_size") == before]
    if before is None:  # left out, since it is the default of the model type
        keys = ["text_config" if isinstance(config.get("text_config"), dict) else None]
    for key in keys:
        changed |= {key: {**config[key], "vocab_size": rows}} if key else {"vocab_size": rows}
    return changed
