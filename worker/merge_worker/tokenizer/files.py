"""The tokens of a model and their ids, read from its tokenizer's files. No torch, no model code.

tokenizer.json, sentencepiece and tiktoken models, vocab.json and vocab.txt are read as they are;
for other kinds transformers is asked.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..messages import printable

FULL, SETTINGS, OLD_ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
PIECES = "tokenizer.model"
LARGEST = 512 << 20
"""A larger file is not taken for a tokenizer: it is neither read nor copied blindly (bytes)."""

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
class SideFiles:
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
        """Parse a JSON object; empty without the file. Raises InputError if it is damaged."""
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


def vocabulary(beside: SideFiles) -> Vocabulary | None:
    """All tokens with their ids; None without a tokenizer. InputError if its files are damaged."""
    if beside.known is not None:
        return beside.known
    try:
        return _vocabulary(beside)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(f"{beside.folder}: the tokenizer's files are damaged") from None


def _vocabulary(beside: SideFiles) -> Vocabulary | None:
    if beside.read(FULL) is not None:
        full = beside.json(FULL)
        listed = full["model"]["vocab"]
        plain = listed if isinstance(listed, dict) else {t: i for i, (t, *_) in enumerate(listed)}
        added = [(token["content"], token["id"], token) for token in full.get("added_tokens") or ()]
        return _joined(plain, [*added, *_declared(beside)])
    found = _plain(beside)
    if found is None:
        known = [name for name in beside.names() if not name.startswith("chat_template")]
        return _asked(beside) if known else None
    return _joined(found, list(_declared(beside)))


def _joined(plain: Mapping[str, int], added: list[tuple[str, int, Any]]) -> Vocabulary:
    ids = {str(token): int(number) for token, number in plain.items()}
    flags: dict[str, Mapping[str, Any]] = {}
    for token, number, given in added:
        if token not in flags:
            ids[token] = int(number)
            flags[token] = {key: bool(given.get(key)) for key in FLAGS}
    return Vocabulary(ids, flags, len(plain))


def _declared(beside: SideFiles) -> Iterator[tuple[str, int, Any]]:
    """Added tokens as the settings have them, or the older file."""
    settings = beside.json(SETTINGS)
    listed = settings.get("added_tokens_decoder") or {}
    for number, token in listed.items():
        yield token["content"], int(number), token
    if not listed:
        names = json.dumps([beside.json("special_tokens_map.json"), settings])
        for token, number in beside.json(OLD_ADDED).items():
            special = json.dumps(token) in names
            yield token, number, {"special": special, "normalized": not special}


def _plain(beside: SideFiles) -> Mapping[str, int] | None:
    """The tokens of a tokenizer without tokenizer.json, if its kind can be read here."""
    names = [PIECES, *(name for name in beside.names() if name.endswith(".tiktoken"))]
    for name in (*names, "tiktoken.model"):
        raw = beside.read(name)
        if raw is not None:
            return {t: i for i, t in enumerate(pieces(raw))} if raw[:1] == b"\n" else ranks(raw)
    if beside.read("vocab.json") is not None:
        return beside.json("vocab.json")
    raw = beside.read("vocab.txt")
    if raw is not None:
        return {line: i for i, line in enumerate(raw.decode().splitlines())}
    return None


def pieces(raw: bytes) -> Iterator[str]:
    """Pieces of a sentencepiece model in the order of ids: field 1 of field 1 of the message."""
    for field_number, value in _fields(raw):
        if field_number == 1 and isinstance(value, bytes):
            named = [v for n, v in _fields(value) if n == 1 and isinstance(v, bytes)]
            yield named[0].decode()


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Fields of a protobuf message: number and value."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = 0
        for shift in range(0, 70, 7):
            byte = raw[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("no number is that long")

    while position < len(raw):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        count = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield tag >> 3, raw[position : position + count]
        position += count


def ranks(raw: bytes) -> dict[str, int]:
    """Tokens of a tiktoken file, whose bytes are written as byte-level tokenizers write them."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    found = {}
    for line in raw.splitlines():
        if line.strip():
            token, number = line.split()
            found["".join(letters[b] for b in base64.b64decode(token))] = int(number)
    return found


def _asked(beside: SideFiles) -> Vocabulary:
    """Read the vocabulary of other kinds of files with transformers."""
    try:
        import transformers
    except ImportError:
        raise UsageError(
            f"{beside.folder}: a tokenizer of {', '.join(beside.names())} is read by transformers, "
            f"which is not here; install it: pip install transformers sentencepiece"
        ) from None
    try:
        # Without a word about code of theirs, transformers would ask at the terminal.
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            beside.folder, trust_remote_code=False, local_files_only=True
        )
        flags = {
            token.content: {key: bool(getattr(token, key)) for key in FLAGS}
            for token in tokenizer.added_tokens_decoder.values()
        }
        ids = dict(tokenizer.get_vocab())
        return Vocabulary(ids, flags, max(ids.values()) + 1)
    except Exception as error:
        reason = printable(str(error).strip().split("\n")[0])[:200]
        raise InputError(
            f"{beside.folder}: transformers cannot read its tokenizer: {reason}"
        ) from None
