"""The files of a tokenizer beside a model's weights, and the tokens in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import InputError

FULL, SETTINGS, OLD_ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
PIECES = "tokenizer.model"
LARGEST = 512 << 20
"""A file above this is no tokenizer; whatever it is, it is neither read nor copied blindly."""

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

_OF_TOKENIZER = re.compile(
    r"tokenizer.*|tokenization_.*\.py|special_tokens_map\.json|added_tokens\.json|merges\.txt"
    r"|vocab(ulary)?\..*|.*\.(tiktoken|spm)|tekken\.json|(spiece|spm|sentencepiece.*|bpe)\.model"
    r"|chat_template\..*|additional_chat_templates/.*"
)


def of_tokenizer(name: str) -> bool:
    """Whether a file beside the weights belongs to the tokenizer."""
    return _OF_TOKENIZER.fullmatch(name) is not None


@dataclass(frozen=True)
class Vocabulary:
    """Ids by token: `regular` ones, and `added` ones with their flags; a token may be both."""

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    regular: int = 0

    @property
    def size(self) -> int:
        """Rows that an embedding of all these tokens has."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True)
class Beside:
    """The files beside a model's weights: those of a folder, and what replaces some of them."""

    folder: Path | None
    made: Mapping[str, bytes] = field(default_factory=dict)
    known: Vocabulary | None = None  # of a tokenizer that is not written yet

    def read(self, name: str) -> bytes | None:
        """The content of a file, None if there is none. InputError if it cannot be read."""
        if name in self.made:
            return self.made[name]
        path = self.folder / name if self.folder else None
        try:
            if path is None or not path.is_file():
                return None
            if path.stat().st_size > LARGEST:
                raise InputError(f"{path}: {path.stat().st_size} bytes are no tokenizer's")
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file, empty if there is no such file. InputError if it is damaged."""
        raw = self.read(name)
        try:
            value = json.loads(raw) if raw is not None else {}
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InputError(f"{self.folder}/{name}: not valid JSON")
        return value

    def names(self) -> list[str]:
        """The tokenizer's files."""
        there = self.folder.iterdir() if self.folder and self.folder.is_dir() else ()
        names = {path.name for path in there if path.is_file()} | set(self.made)
        return sorted(name for name in names if of_tokenizer(name))


def stripped(found: Vocabulary, rows: int) -> Vocabulary:
    """The tokens that have a row."""
    if found.size <= rows:
        return found
    ids = {token: number for token, number in found.ids.items() if number < rows}
    added = {token: flags for token, flags in found.added.items() if token in ids}
    return Vocabulary(ids, added, min(found.regular, rows))


def as_json(value: object) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # halves of characters, as JSON escapes them
