"""`tokenizer` and `tokenizer_source` of a recipe → TokenizerChoice; only the text is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from .errors import printable
from .recipe import ModelRef, TokenizerChoice, TokenRule
from .yaml_text import Document, Path


class Reader(Protocol):
    """What the reader of the whole recipe does for its parts."""

    document: Document

    def fault(self, path: Path, text: str) -> None: ...
    def mapping(self, value: object, path: Path, what: str) -> dict[str, object]: ...
    def unknown(self, body: Mapping[str, object], path: Path, allowed: Sequence[str]) -> None: ...
    def model(self, value: object, path: Path) -> ModelRef: ...


def read_choice(reader: Reader, top: Mapping[str, object]) -> TokenizerChoice | None:
    """The choice of a recipe that makes one; None where it makes two."""
    short, long = top.get("tokenizer_source"), top.get("tokenizer")
    if "tokenizer_source" in top and "tokenizer" in top:
        reader.fault(("tokenizer_source",), "stands beside 'tokenizer'; keep one of the two")
        return None
    path: Path = ("tokenizer_source",) if long is None else ("tokenizer",)
    place = reader.document.place(path)
    if long is None:
        return TokenizerChoice(_source(reader, short, path), place=place)
    body = reader.mapping(long, path, "'tokenizer'")
    reader.unknown(body, path, ["source", "tokens", "pad_to_multiple_of"])
    multiple = body.get("pad_to_multiple_of") or 0
    if type(multiple) is not int or multiple < 0:
        reader.fault((*path, "pad_to_multiple_of"), f"{multiple!r} is no number of rows")
        multiple = 0
    here: Path = (*path, "tokens")
    tokens = reader.mapping(body.get("tokens") or {}, here, "'tokens'")
    rules = {token: _rule(reader, value, (*here, token)) for token, value in tokens.items()}
    source = _source(reader, body.get("source") or "union", (*path, "source"))
    return TokenizerChoice(source, rules, multiple, place)


def _source(reader: Reader, value: object, path: Path) -> str | ModelRef:
    if value in ("union", "base"):
        return str(value)
    if isinstance(value, str) and value.startswith("model:"):
        reader.fault(path, f"write the model alone: {printable(value[6:])}")
        return "union"
    return reader.model(value, path)


def _rule(reader: Reader, value: object, path: Path) -> TokenRule:
    body = reader.mapping(value if value is not None else {}, path, "a token")
    reader.unknown(body, path, ["source", "force"])
    source, force = body.get("source"), body.get("force") or False
    here: Path = (*path, "source")
    if not isinstance(force, bool):
        reader.fault((*path, "force"), f"{force!r} is neither true nor false")
    if source is None:
        if force:
            reader.fault(path, "'force' without a 'source' to take the row from")
        return TokenRule()
    if not isinstance(source, dict) or "kind" not in source:
        return TokenRule(reader.model(source, here), force=bool(force))
    kind = source["kind"]
    if kind == "zero":
        reader.unknown(source, here, ["kind"])
        return TokenRule(zero=True, force=bool(force))
    reader.unknown(source, here, ["kind", "model", "token", "token_id"])
    token, number = source.get("token"), source.get("token_id")
    fits = isinstance(token, str) if number is None else token is None and type(number) is int
    if kind != "model_token" or "model" not in source or not fits:
        reader.fault(
            here,
            "is a model, {kind: zero}, or {kind: model_token, model: M, token: T} "
            "(or token_id: N in place of token)",
        )
        return TokenRule()
    model = reader.model(source["model"], (*here, "model"))
    return TokenRule(model, token if number is None else number, force=bool(force))
