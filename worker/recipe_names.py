"""What a recipe says of tensor names: rules between layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from .forms import one_way
from .recipe import KeyRule, ModelRef
from .yaml_text import Document, Path


class Reader(Protocol):
    """What the reader of a recipe offers for its parts."""

    document: Document

    def fault(self, path: Path, text: str) -> None: ...

    def mapping(self, value: object, path: Path, what: str) -> dict[str, object]: ...

    def sequence(self, value: object, path: Path) -> list[object]: ...

    def unknown(self, body: Mapping[str, object], path: Path, allowed: Sequence[str]) -> None: ...

    def model(self, value: object, path: Path) -> ModelRef: ...


def read_key_map(reader: Reader, top: Mapping[str, object]) -> Iterator[KeyRule]:
    """Rules for tensors that other models have under other names, or in other pieces."""
    given = top.get("key_map")
    for number, item in enumerate(reader.sequence(given, ("key_map",)) if given else ()):
        path: Path = ("key_map", number)
        body = reader.mapping(item, path, "a rule")
        reader.unknown(body, path, ["from", "to", "axis", "transpose", "model"])
        model = reader.model(body["model"], (*path, "model")) if body.get("model") else None
        place = reader.document.place(path)
        try:
            yield KeyRule(one_way(body), str(model) if model else None, place)
        except ValueError as error:
            reader.fault(path, str(error))
