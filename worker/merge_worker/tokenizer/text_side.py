"""The text side of a merge: tokenizer files, token ids and row counts, without tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..messages import counted
from ..recipe.schema import ModelRef
from ..structure.embeddings import config_vocab_size, sections
from ..structure.layers import is_vision_or_audio
from .files import SideFiles

_IDS = re.compile(
    r"(\w+_)?token_ids?|\w+_token_index|(begin_)?suppress_tokens|bad_words_ids|forced_decoder_ids"
)
_OF_TOKENIZER = re.compile(r"(bos|eos|pad|unk|sep|cls|mask)_token_id")


@dataclass(frozen=True)
class TokenizerResult:
    """The text side of a result: files, token ids, row counts and notes for the user.

    `side_files` are those the tokenizer comes from, `foreign` if not those of the first model.
    """

    side_files: SideFiles
    foreign: bool = False
    rows: tuple[int, int] | None = None  # before and after
    appended: tuple[str, ...] = ()
    ids: Mapping[int, int | None] = field(default_factory=dict)
    donor: Mapping[str, Any] = field(default_factory=dict)  # config of a foreign tokenizer's model
    notes: tuple[str, ...] = ()
    before: SideFiles | None = None  # files of the tokenizer that was extended

    def with_overrides(self, overrides: Mapping[str, bytes | None]) -> TokenizerResult:
        return replace(self, side_files=self.side_files.replaced(overrides))

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a config with the ids and rows of the result."""
        changed = with_token_ids(config, self.ids, self.donor) if self.foreign else dict(config)
        return with_vocab_size(changed, self.rows[1]) if self.rows else changed

    @property
    def summary(self) -> str:
        """Describe the change of the number of rows; empty if nothing changes."""
        if self.rows is None or (self.rows[0] == self.rows[1] and not self.appended):
            return ""
        more = f", {counted(len(self.appended), 'tokens')} appended" if self.appended else ""
        return f"{self.rows[0]} rows become {self.rows[1]}{more}"

    @property
    def digest(self) -> str:
        """Identify the content that the files of the result depend on."""
        files = self.side_files
        hashes = [
            (name, None if raw is None else hashlib.sha256(raw).hexdigest())
            for name, raw in sorted(files.overrides.items())
        ]
        return repr((self.foreign and str(files.folder), hashes))


@dataclass(frozen=True)
class TokenizerInputs:
    """The models of a recipe by number, with labels and side files.

    `find` returns the side files of a model that is not among them.
    """

    models: tuple[Checkpoint, ...]
    labels: Sequence[str]
    side_files: Sequence[SideFiles]
    numbers: Mapping[ModelRef, int]
    relative_to: Path
    find: Callable[[ModelRef], SideFiles]


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
