"""What a recipe says of names: of tensors, rules and which are merged; of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from .forms import one_way
from .recipe import KeyRule, ModelRef, TokenizerChoice
from .recipe_tokenizer import read_choice
from .yaml_text import Document, Path


class Reader(Protocol):
    """What the reader of a recipe offers for its parts."""

    document: Document

    def fault(self, path: Path, text: str) -> None: ...

    def mapping(self, value: object, path: Path, what: str) -> dict[str, object]: ...

    def unknown(self, body: Mapping[str, object], path: Path, allowed: Sequence[str]) -> None: ...

    def sequence(self, value: object, path: Path) -> list[object]: ...

    def model(self, value: object, path: Path) -> ModelRef: ...


def read_key_map(reader: Reader, top: Mapping[str, object]) -> Iterator[KeyRule]:
    """Rules for tensors that other models have under other names, or in other pieces."""
    given = top.get("key_map")
    if not given:
        return
    for number, item in enumerate(reader.sequence(given, ("key_map",))):
        path: Path = ("key_map", number)
        body = reader.mapping(item, path, "a rule")
        model = reader.model(body["model"], (*path, "model")) if body.get("model") else None
        place = reader.document.place(path)
        try:
            yield KeyRule(one_way(body), str(model) if model else None, place)
        except ValueError as error:
            reader.fault(path, str(error))


def read_tokenizer(reader: Reader, top: Mapping[str, object]) -> TokenizerChoice | None:
    """The choice of `tokenizer` or `tokenizer_source`, or None where there is neither."""
    if top.get("tokenizer_source") is None and top.get("tokenizer") is None:
        return None
    return read_choice(reader, top)


def read_patterns(reader: Reader, top: Mapping[str, object], key: str) -> tuple[str, ...]:
    """`include` or `exclude`: one pattern or a list."""
    given = top.get(key)
    found = [given] if isinstance(given, str) else reader.sequence(given, (key,)) if given else []
    for item in found:
        if not isinstance(item, str) or not item.strip("."):
            reader.fault((key,), f"{item!r} is no tensor name or pattern, like *.mlp.*")
    return tuple(str(item) for item in found)


def read_flag(reader: Reader, top: Mapping[str, object], key: str) -> bool:
    given = top.get(key, False)
    if not isinstance(given, bool):
        reader.fault((key,), f"{given!r} is neither true nor false")
    return given is True
