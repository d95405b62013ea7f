"""Recipe text → Recipe, every fault at once with its line; nothing but the text is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from . import methods
from .dtypes import FLOATS
from .errors import UsageError, nearest, printable
from .recipe import ModelRef, Module, Recipe, Slice, Source, find_method, parse_model
from .settings import Parameters, parse_setting
from .yaml_text import Document, Path, read_documents

_TOP = ["merge_method", "models", "slices", "modules", "base_model", "parameters"]
_TOP += ["dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template", "name"]


def read_recipe(text: str, where: str) -> Recipe:
    """The recipe of a text with one document. UsageError lists every fault."""
    documents = read_documents(text, where)
    if len(documents) != 1:
        found = "empty" if not documents else f"{len(documents)} documents"
        raise UsageError(f"{where}: {found}; a recipe is one YAML document")
    return _Reader(documents[0]).recipe(text)


class _Reader:
    """One document on its way to a Recipe; collects faults instead of stopping at the first."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.faults: list[str] = []
        self.warnings: list[str] = []

    def fault(self, path: Path, text: str) -> None:
        self.faults.append(f"{self.document.place(path)}: {text}")

    def recipe(self, text: str) -> Recipe:
        top = self.mapping(self.document.value, (), "a recipe")
        for path in self.document.duplicates:
            self.fault(path, "stands twice; the first would be lost")
        self.unknown(top, (), _TOP)
        method = self.method_name(top)
        recipe = Recipe(
            text=text,
            where=self.document.where,
            method=method,
            modules=tuple(self.modules(top)),
            base=self.model(top["base_model"], ("base_model",)) if top.get("base_model") else None,
            parameters=self.parameters(top, ()),
            dtype=self.dtype(top, "dtype"),
            out_dtype=self.dtype(top, "out_dtype"),
            tokenizer=top.get("tokenizer", top.get("tokenizer_source")),
            chat_template=self.text(top, "chat_template"),
            name=self.text(top, "name"),
        )
        if "tokenizer" in top and "tokenizer_source" in top:
            self.fault(("tokenizer_source",), "stands beside 'tokenizer'; keep one of the two")
        if self.faults:
            raise UsageError("\n".join(self.faults))
        return replace(recipe, warnings=tuple(self.warnings))

    def method_name(self, top: Mapping[str, object]) -> str:
        if not isinstance(top.get("merge_method"), str):
            self.fault(("merge_method",), f"missing; one of {', '.join(methods.names())}")
            return "linear"
        name = str(top["merge_method"])
        try:
            return find_method(name, self.document.place(("merge_method",))).name
        except UsageError as error:
            self.faults.append(str(error))
            return "linear"

    def modules(self, top: Mapping[str, object]) -> Iterator[Module]:
        given = [key for key in ("models", "slices", "modules") if top.get(key)]
        if len(given) != 1:
            found = " and ".join(f"'{key}'" for key in given) or "none of them"
            self.fault((), f"a recipe has one of 'models', 'slices' or 'modules'; found {found}")
        elif given == ["modules"]:
            named = self.mapping(top["modules"], ("modules",), "'modules'")
            for name, body in named.items():
                path: Path = ("modules", name)
                inner = self.mapping(body, path, "a module")
                self.unknown(inner, path, ["models", "slices", "parameters"])
                yield Module(name, tuple(self.slices(inner, path)), self.parameters(inner, path))
        else:
            yield Module("default", tuple(self.slices(top, ())), {})

    def slices(self, body: Mapping[str, object], path: Path) -> Iterator[Slice]:
        if body.get("models"):
            models = self.sequence(body["models"], (*path, "models"))
            sources = [self.source(m, (*path, "models", i), False) for i, m in enumerate(models)]
            yield Slice(tuple(s for s in sources if s), None, {})
            return
        for number, item in enumerate(self.sequence(body.get("slices"), (*path, "slices"))):
            here: Path = (*path, "slices", number)
            inner = self.mapping(item, here, "a slice")
            self.unknown(inner, here, ["sources", "base_model", "parameters", "residual_weight"])
            listed = self.sequence(inner.get("sources"), (*here, "sources"))
            found = [self.source(s, (*here, "sources", i), True) for i, s in enumerate(listed)]
            base = inner.get("base_model")
            yield Slice(
                tuple(s for s in found if s),
                self.model(base, (*here, "base_model")) if base else None,
                self.parameters(inner, here),
            )

    def source(self, item: object, path: Path, ranged: bool) -> Source | None:
        if isinstance(item, str) and not ranged:
            item = {"model": item}
        body = self.mapping(item, path, "a source")
        self.unknown(body, path, ["model", "parameters", "layer_range"])
        if "model" not in body:
            self.fault(path, "no 'model' in it")
            return None
        layers = None
        if ranged:
            layers = self.layer_range(body.get("layer_range"), (*path, "layer_range"))
        elif "layer_range" in body:
            self.warnings.append(
                f"{self.document.place((*path, 'layer_range'))}: not read here; "
                f"layers are picked under 'slices'"
            )
        model = self.model(body["model"], (*path, "model"))
        return Source(model, layers, self.parameters(body, path))

    def layer_range(self, value: object, path: Path) -> tuple[int, int] | None:
        if isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value):
            first, last = value
            if 0 <= first < last:
                return first, last
        self.fault(path, f"{value!r} is not [first, last) with 0 <= first < last")
        return None

    def model(self, value: object, path: Path) -> ModelRef:
        try:
            if isinstance(value, str):
                return parse_model(value)
            body = self.mapping(value, path, "a model")
            self.unknown(body, path, ["model", "lora", "override_architecture"])
            word, revision = self.located(body.get("model"))
            lora, lora_revision = self.located(body["lora"]) if body.get("lora") else (None, None)
            architecture = body.get("override_architecture")
            if word is None:
                raise ValueError("no 'model' in it")
            return ModelRef(
                word, revision, lora, lora_revision, str(architecture) if architecture else None
            )
        except ValueError as error:
            self.fault(path, str(error))
            return ModelRef("?")

    def located(self, value: object) -> tuple[str | None, str | None]:
        if isinstance(value, dict):
            path, revision = value.get("path"), value.get("revision")
            return str(path) if path else None, str(revision) if revision else None
        if not isinstance(value, str):
            return None, None
        ref = parse_model(value)
        return ref.path, ref.revision

    def parameters(self, body: Mapping[str, object], path: Path) -> Parameters:
        given = body.get("parameters")
        if given is None:
            return {}
        found = {}
        for name, value in self.mapping(given, (*path, "parameters"), "'parameters'").items():
            try:
                found[name] = parse_setting(value)
            except ValueError as error:
                self.fault((*path, "parameters", name), str(error))
        return found

    def text(self, top: Mapping[str, object], key: str) -> str | None:
        value = top.get(key)
        if value is not None and not isinstance(value, str):
            self.fault((key,), f"{printable(repr(value))[:60]} is no text")
        return value if isinstance(value, str) else None

    def dtype(self, top: Mapping[str, object], key: str) -> str | None:
        value = top.get(key)
        if value is None:
            return None
        plain = str(value).removeprefix("torch.")
        if plain not in (*FLOATS, "int64"):
            short = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
            hint = (
                f" (did you mean '{short[plain]}'?)" if plain in short else nearest(plain, FLOATS)
            )
            self.fault(
                (key,), f"unknown dtype '{printable(plain)}'{hint}; one of {', '.join(FLOATS)}"
            )
        return plain

    def mapping(self, value: object, path: Path, what: str) -> dict[str, object]:
        if isinstance(value, dict):
            return {str(key): item for key, item in value.items()}
        shown = printable(repr(value))[:60]
        self.fault(path, f"{what} is a mapping of names to values, not {shown}")
        return {}

    def sequence(self, value: object, path: Path) -> list[object]:
        if isinstance(value, list) and value:
            return value
        self.fault(path, "a list with at least one entry belongs here")
        return []

    def unknown(self, body: Mapping[str, object], path: Path, allowed: Sequence[str]) -> None:
        for key in body:
            if key not in allowed:
                place = self.document.place((*path, key))
                self.warnings.append(f"{place}: nothing reads this key{nearest(key, allowed)}")
