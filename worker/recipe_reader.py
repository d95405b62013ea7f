"""Recipe text → Recipe, every fault at once with its line; nothing but the text is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from . import methods
from .documents import arrange
from .dtypes import FLOATS
from .errors import UsageError, nearest, printable
from .methods import Method
from .recipe import ModelRef, Module, Recipe, Slice, Source, find_method, parse_model
from .recipe_names import read_flag, read_key_map, read_patterns, read_tokenizer
from .recipe_rules import broken_rules, plays_base
from .settings import Given, Parameters, Setting, convert, parse_setting, scalars
from .yaml_text import Document, Path, read_documents

_TOP = ["merge_method", "models", "slices", "modules", "base_model", "parameters"]
_TOP += ["dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template", "name", "key_map"]
_TOP += ["include", "exclude", "dequantize"]


def read_recipe(text: str, where: str) -> Recipe:
    """The recipe of a text; of several documents the last one, with its stages.

    UsageError lists every fault of all documents.
    """
    documents = read_documents(text, where)
    if not documents:
        raise UsageError(f"{where}: empty; a recipe is one YAML document, or several with names")
    recipes, faults = [], []
    for document in documents:
        try:
            recipes.append(_Reader(document).recipe(text))
        except UsageError as error:
            faults.append(str(error))
    if faults:
        raise UsageError("\n".join(faults))
    if len(recipes) == 1:
        return recipes[0]
    return arrange(recipes)


class _Reader:
    """One document on its way to a Recipe; collects faults instead of stopping at the first."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.faults: list[str] = []
        self.warnings: list[str] = []
        self.method: Method | None = None
        self.base: Source | None = None

    def fault(self, path: Path, text: str) -> None:
        self.faults.append(f"{self.document.place(path)}: {text}")

    def recipe(self, text: str) -> Recipe:
        top = self.mapping(self.document.value, (), "a recipe")
        if self.faults:
            raise UsageError(self.faults[0])
        for path in self.document.duplicates:
            self.fault(path, "stands twice; the first would be lost")
        self.unknown(top, (), _TOP)
        self.method = self.find_method(top)
        place = self.document.place(("base_model",))
        if top.get("base_model"):
            base = self.model(top["base_model"], ("base_model",))
            self.base = Source(base, None, {}, place, implied=True)
        recipe = Recipe(
            text=text,
            where=self.document.where,
            method=self.method.name if self.method else "?",
            modules=tuple(self.modules(top)),
            base=self.base.model if self.base else None,
            parameters=self.parameters(top, (), "shared"),
            dtype=self.dtype(top, "dtype"),
            out_dtype=self.dtype(top, "out_dtype"),
            tokenizer=read_tokenizer(self, top),
            chat_template=self.text(top, "chat_template"),
            name=self.text(top, "name"),
            key_map=tuple(read_key_map(self, top)),
            include=read_patterns(self, top, "include"),
            exclude=read_patterns(self, top, "exclude"),
            dequantize=read_flag(self, top, "dequantize"),
        )
        # The rules count models, so they wait until every model is understood.
        if self.method and not self.faults:
            self.faults += broken_rules(recipe, self.method)
        if self.faults:
            # What is never read is often what is missed.
            raise UsageError("\n".join([*self.faults, *self.warnings]))
        return replace(recipe, warnings=tuple(self.warnings))

    def find_method(self, top: Mapping[str, object]) -> Method | None:
        if not isinstance(top.get("merge_method"), str):
            self.fault(("merge_method",), f"missing; one of {', '.join(methods.names())}")
            return None
        name = str(top["merge_method"])
        try:
            return find_method(name, self.document.place(("merge_method",)))
        except UsageError as error:
            self.faults.append(str(error))
            return None

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
                yield self.module(str(name), inner, path)
        else:
            yield Module("default", tuple(self.slices(top, ())), {})

    def module(self, name: str, body: Mapping[str, object], path: Path) -> Module:
        if bool(body.get("models")) == bool(body.get("slices")):
            self.fault(path, "a module has either 'models' or 'slices'")
            return Module(name, (), {})
        slices = tuple(self.slices(body, path))
        parameters = self.parameters(body, path, "shared")
        return Module(name, slices, parameters, self.document.place(path))

    def slices(self, body: Mapping[str, object], path: Path) -> Iterator[Slice]:
        if body.get("models"):
            here = (*path, "models")
            models = self.sequence(body["models"], here)
            found = [self.source(m, (*here, i)) for i, m in enumerate(models)]
            sources = [s for s in found if s]
            if self.base and all(source.model != self.base.model for source in sources):
                sources.append(self.base)
            yield Slice(tuple(sources), None, {}, self.document.place(here))
            return
        for number, item in enumerate(self.sequence(body.get("slices"), (*path, "slices"))):
            yield self.slice(item, (*path, "slices", number))

    def slice(self, item: object, path: Path) -> Slice:
        body = self.mapping(item, path, "a slice")
        self.unknown(body, path, ["sources", "base_model", "parameters", "residual_weight"])
        given = body.get("base_model")
        base = self.model(given, (*path, "base_model")) if given else None
        listed = self.sequence(body.get("sources"), (*path, "sources"))
        found = [self.sliced_source(s, (*path, "sources", i), base) for i, s in enumerate(listed)]
        if "residual_weight" in body:
            place = self.document.place((*path, "residual_weight"))
            self.warnings.append(f"{place}: nothing reads this key, in mergekit neither")
        return Slice(
            tuple(s for s in found if s),
            base,
            self.parameters(body, path, "shared"),
            self.document.place(path),
        )

    def source(self, item: object, path: Path) -> Source | None:
        """An entry of `models`: all of one model."""
        body = self.mapping({"model": item} if isinstance(item, str) else item, path, "a source")
        if "layer_range" in body:
            place = self.document.place((*path, "layer_range"))
            self.warnings.append(f"{place}: not read here; layers are picked under 'slices'")
        return self.any_source(body, path, self.base.model if self.base else None)

    def sliced_source(self, item: object, path: Path, base: ModelRef | None) -> Source | None:
        """An entry of `sources`: some layers of one model."""
        body = self.mapping(item, path, "a source")
        layers = self.layer_range(body.get("layer_range"), (*path, "layer_range"))
        source = self.any_source(body, path, base or (self.base.model if self.base else None))
        return replace(source, layers=layers) if source else None

    def any_source(
        self, body: Mapping[str, object], path: Path, base: ModelRef | None
    ) -> Source | None:
        self.unknown(body, path, ["model", "parameters", "layer_range"])
        if "model" not in body:
            self.fault(path, "no 'model' in it")
            return None
        model = self.model(body["model"], (*path, "model"))
        parameters = self.parameters(body, path, "base" if model == base else "model")
        return Source(model, None, parameters, self.document.place(path))

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

    def parameters(self, body: Mapping[str, object], path: Path, owner: str) -> Parameters:
        """Settings by name; `owner` is "shared", or the "model" or "base" that they are of."""
        given = body.get("parameters")
        if given is None:
            return {}
        found = {}
        for name, value in self.mapping(given, (*path, "parameters"), "'parameters'").items():
            here = (*path, "parameters", name)
            try:
                setting = parse_setting(value)
                found[name] = Given(setting, self.document.place(here))
                self.check_parameter(name, setting, here, owner)
            except ValueError as error:
                self.fault(here, str(error))
        return found

    def check_parameter(self, name: str, setting: Setting, path: Path, owner: str) -> None:
        """Warn of what nothing reads. ValueError for a value that is not of its type."""
        if self.method is None:
            return
        known = {p.name: p for p in (*self.method.parameters, *self.method.modifiers)}
        why = ""
        if name not in known:
            why = f"{self.method.name} does not read it{nearest(name, known)}"
        elif owner != "shared" and not known[name].per_model:
            why = "one value for all models, which nothing reads under a model; move it up"
        elif owner == "base" and plays_base(self.method):
            why = f"the base of {self.method.name} has none"
        if why:
            self.warnings.append(f"{self.document.place(path)}: {why}")
            return
        for value in scalars(setting):
            convert(value, known[name].type)

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
