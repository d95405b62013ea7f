"""A YAML document on its way to a Recipe: values of the expected kind, and faults with lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..dtypes import FLOATS
from ..messages import nearest, printable
from .schema import ModelRef, parse_model, parse_path
from .yaml_document import Document, Place


class DocumentReader:
    """One document; collects faults instead of stopping at the first."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.faults: list[str] = []
        self.warnings: list[str] = []

    def fault(self, path: Place, text: str) -> None:
        self.faults.append(f"{self.document.place(path)}: {text}")

    def warn(self, path: Place, text: str) -> None:
        self.warnings.append(f"{self.document.place(path)}: {text}")

    def model(self, value: object, path: Place) -> ModelRef:
        try:
            if isinstance(value, str):
                return parse_model(value, self.folder)
            keys = ["model", "lora", "override_architecture"]
            body = self.mapping(value, path, "a model", keys)
            word, revision = self.located(body.get("model"))
            lora, lora_revision = self.located(body["lora"]) if body.get("lora") else (None, None)
            override = body.get("override_architecture")
            architecture = str(override) if override else None
            if word is None:
                raise ValueError("no 'model' in it")
            return ModelRef(word, revision, lora, lora_revision, architecture)
        except ValueError as error:
            self.fault(path, str(error))
            return ModelRef("?")

    def located(self, value: object) -> tuple[str | None, str | None]:
        if isinstance(value, dict):
            path, revision = value.get("path"), value.get("revision")
            return str(path) if path else None, str(revision) if revision else None
        if not isinstance(value, str):
            return None, None
        return parse_path(value, self.folder)

    def text(self, top: Mapping[str, object], key: str) -> str | None:
        value = top.get(key)
        if value is not None and not isinstance(value, str):
            self.fault((key,), f"expected a string, got {printable(repr(value))[:60]}")
        return value if isinstance(value, str) else None

    def dtype(self, top: Mapping[str, object], key: str) -> str | None:
        value = top.get(key)
        if value is None:
            return None
        plain = str(value).removeprefix("torch.")
        if plain in (*FLOATS, "int64"):
            return plain
        short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
        hint = f" (did you mean '{short[plain]}'?)" if plain in short else nearest(plain, FLOATS)
        self.fault((key,), f"unknown dtype '{printable(plain)}'{hint}; one of {', '.join(FLOATS)}")
        return None

    def flag(self, value: object, path: Place) -> bool:
        if not isinstance(value, bool):
            self.fault(path, f"{value!r} is neither true nor false")
        return value is True

    def mapping(
        self, value: object, path: Place, kind: str, keys: Sequence[str] = ()
    ) -> dict[str, object]:
        """Return a mapping with keys as text, and warn of those that are not `keys`, if given."""
        if not isinstance(value, dict):
            shown = printable(repr(value))[:60]
            self.fault(path, f"{kind} is a mapping of names to values, not {shown}")
            return {}
        body = {str(key): item for key, item in value.items()}
        if keys:
            self.unknown(body, path, keys)
        return body

    def sequence(self, value: object, path: Place) -> list[object]:
        if isinstance(value, list) and value:
            return value
        self.fault(path, "a list with at least one entry belongs here")
        return []

    def unknown(self, body: Mapping[str, object], path: Place, allowed: Sequence[str]) -> None:
        for key in body:
            if key not in allowed:
                self.warn((*path, key), f"nothing reads this key{nearest(key, allowed)}")
