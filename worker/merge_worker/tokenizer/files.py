"""The tokens of a model and their ids, read from its tokenizer's files. No torch, no model code.

tokenizer.json, sentencepiece and tiktoken models, vocab.json and vocab.txt are read as they are;
for other kinds transformers is asked.
"""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..checkpoint.header import CONFIG
from ..checkpoint.links import leads_out
from ..errors import InputError
from ..messages import printable
from ..system.packages import missing_package

FULL, SETTINGS, OLD_ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
PIECES, TEKKEN = "tokenizer.model", "tekken.json"
LARGEST = 512 << 20
"""A larger file is not taken for a tokenizer: it is neither read nor copied blindly (bytes)."""

MOST_IDS = 1 << 22
"""Ids are below this: larger vocabularies are damaged files, whose rows fill all memory."""

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

_VOCABULARY = re.compile(
    r"tokenizer\.(?!py$).*|merges\.txt|vocab(ulary)?\..*|.*\.(tiktoken|spm)|tekken\.json"
    r"|(spiece|spm|sentencepiece.*|bpe)\.model"
)
_OTHERS = re.compile(
    r"tokenizer.*|tokenization_.*\.py|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\..*|additional_chat_templates/.*"
)


def is_tokenizer_file(name: str) -> bool:
    return holds_vocabulary(name) or _OTHERS.fullmatch(name) is not None


def holds_vocabulary(name: str) -> bool:
    """Whether a file of that name lists tokens: one of the forms in which a tokenizer is saved."""
    return _VOCABULARY.fullmatch(name) is not None


@dataclass(frozen=True)
class Vocabulary:
    """Ids by token: `regular` ones, and `added` ones with their flags; a token may be both."""

    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    regular: int = 0

    @property
    def size(self) -> int:
        """Number of rows that an embedding of all these tokens has."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True)
class SideFiles:
    """The files beside a model's weights: those of a folder, and what replaces some of them.

    A file that is replaced by None is left out.
    """

    folder: Path | None
    overrides: Mapping[str, bytes | None] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None  # of a tokenizer that is not written yet

    def read(self, name: str) -> bytes | None:
        """Return the content of a file, None without it. Raises InputError if it is unreadable."""
        if name in self.overrides:
            return self.overrides[name]
        if self.folder is None:
            return None
        path = self.folder / name
        try:
            if not path.is_file() or leads_out(self.folder, name):
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
        """Return the names of the tokenizer's files."""
        paths = self.folder.iterdir() if self.folder and self.folder.is_dir() else ()
        names = {path.name for path in paths if path.is_file()} | set(self.overrides)
        left_out = {name for name, content in self.overrides.items() if content is None}
        return sorted(filter(is_tokenizer_file, names - left_out))

    def replaced(self, overrides: Mapping[str, bytes | None]) -> SideFiles:
        return replace(self, overrides={**self.overrides, **overrides})

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield a folder with the tokenizer's files and the config, for programs that read them."""
        if self.folder and not self.overrides:
            yield self.folder
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in (*self.names(), CONFIG):
                content = self.read(name)
                if content is not None:
                    (Path(folder) / name).write_bytes(content)
            yield Path(folder)


def has_vocabulary(files: SideFiles) -> bool:
    return any(map(holds_vocabulary, files.names()))


def vocabulary(files: SideFiles) -> Vocabulary | None:
    """Return all tokens; None without a tokenizer. Raises InputError if its files are damaged."""
    if files.vocabulary is not None:
        return files.vocabulary
    try:
        return _vocabulary(files)
    except (LookupError, TypeError, ValueError, AttributeError):
        raise InputError(f"{files.folder}: the tokenizer's files are damaged") from None


def with_rows(tokens: Vocabulary, rows: int) -> Vocabulary:
    """Return the tokens that have one of `rows` rows."""
    if tokens.size <= rows:
        return tokens
    ids = {token: number for token, number in tokens.ids.items() if number < rows}
    added = {token: flags for token, flags in tokens.added.items() if token in ids}
    return Vocabulary(ids, added, min(tokens.regular, rows))


def to_json(value: object) -> bytes:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # halves of characters, as JSON escapes them


def _vocabulary(files: SideFiles) -> Vocabulary | None:
    plain: Mapping[str, int] | None
    added: list[tuple[str, int, Any]]
    if files.read(FULL) is not None:
        full = files.json(FULL)
        listed = full["model"]["vocab"]
        plain = listed if isinstance(listed, dict) else {t: i for i, (t, *_) in enumerate(listed)}
        added = [(token["content"], token["id"], token) for token in full.get("added_tokens") or ()]
    else:
        plain, added = _regular_tokens(files), []
        if plain is None:
            is_template = (name.startswith("chat_template") for name in files.names())
            return None if all(is_template) else _read_by_transformers(files)
    ids = {str(token): int(number) for token, number in plain.items()}
    flags: dict[str, Mapping[str, Any]] = {}
    for token, number, given in (*added, *_added_tokens(files)):
        if token not in flags:
            ids[token] = int(number)
            flags[token] = {key: bool(given.get(key)) for key in FLAGS}
    if not all(0 <= number < MOST_IDS for number in ids.values()):
        raise ValueError("an id that no vocabulary has")
    return Vocabulary(ids, flags, len(plain))


def _added_tokens(files: SideFiles) -> Iterator[tuple[str, int, Any]]:
    """Yield added tokens as the settings have them, or the older file."""
    settings = files.json(SETTINGS)
    listed = settings.get("added_tokens_decoder") or {}
    for number, token in listed.items():
        yield token["content"], int(number), token
    if not listed:
        names = json.dumps([files.json("special_tokens_map.json"), settings])
        for token, number in files.json(OLD_ADDED).items():
            special = json.dumps(token) in names
            yield token, number, {"special": special, "normalized": not special}


def _regular_tokens(files: SideFiles) -> Mapping[str, int] | None:
    """Return those of a tokenizer without tokenizer.json, if its kind can be read here."""
    names = [PIECES, *(name for name in files.names() if name.endswith(".tiktoken"))]
    for name in (*names, "tiktoken.model"):
        raw = files.read(name)
        if raw is not None:
            return {t: i for i, t in enumerate(pieces(raw))} if raw[:1] == b"\n" else ranks(raw)
    if files.read("vocab.json") is not None:
        return files.json("vocab.json")
    raw = files.read("vocab.txt")
    if raw is not None:
        return {line: i for i, line in enumerate(raw.decode().splitlines())}
    return None


def pieces(raw: bytes) -> Iterator[str]:
    """Yield the pieces of a sentencepiece model by id: field 1 of field 1 of the message."""
    for field_number, value in _fields(raw):
        if field_number == 1 and isinstance(value, bytes):
            named = [v for n, v in _fields(value) if n == 1 and isinstance(v, bytes)]
            yield named[0].decode()


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of the fields of a protobuf message."""
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
    """Return the tokens of a tiktoken file, with bytes as byte-level tokenizers write them."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(hidden)}
    pairs = (line.split() for line in raw.splitlines() if line.strip())
    return {"".join(letters[b] for b in base64.b64decode(t)): int(number) for t, number in pairs}


def _read_by_transformers(files: SideFiles) -> Vocabulary:
    try:
        import transformers
    except ImportError:
        what = f"{files.folder}: a tokenizer of {', '.join(files.names())}"
        raise missing_package(what, "transformers", "sentencepiece") from None
    try:
        # Without a word about code of theirs, transformers would ask at the terminal.
        with files.on_disk() as folder:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
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
            f"{files.folder}: transformers cannot read its tokenizer: {reason}"
        ) from None
