"""Parse recipe text into a Recipe; report every fault with its line. Reads nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .. import methods
from ..dtypes import FLOATS
from ..errors import UsageError
from ..messages import nearest, printable
from ..method import Method
from .key_map import parse_rule
from .parameters import Given, Parameters, Setting, convert, parse_setting, scalars
from .schema import (
    KeyRule,
    ModelRef,
    Module,
    Recipe,
    Slice,
    Source,
    TokenizerChoice,
    TokenRule,
    find_method,
    parse_model,
    plays_base,
)
from .stages import arrange
from .validation import broken_rules
from .yaml_document import Document, Path, read_documents

TOP_LEVEL_KEYS = (
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
    "name",
    "key_map",
    "include",
    "exclude",
    "dequantize",
)


def parse(text: str, where: str = "recipe") -> Recipe:
    """Parse a YAML or JSON text; of several documents, return the last one with its stages.

    Raises UsageError with every fault of all documents, each with its line.
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
        self.unknown(top, (), TOP_LEVEL_KEYS)
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
            self.fault((key,), f"expected a string, got {printable(repr(value))[:60]}")
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


def read_choice(reader: _Reader, top: Mapping[str, object]) -> TokenizerChoice | None:
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
        reader.fault((*path, "pad_to_multiple_of"), f"expected a number of rows, got {multiple!r}")
        multiple = 0
    here: Path = (*path, "tokens")
    tokens = reader.mapping(body.get("tokens") or {}, here, "'tokens'")
    rules = {token: _rule(reader, value, (*here, token)) for token, value in tokens.items()}
    source = _source(reader, body.get("source") or "union", (*path, "source"))
    return TokenizerChoice(source, rules, multiple, place)


def _source(reader: _Reader, value: object, path: Path) -> str | ModelRef:
    if value in ("union", "base"):
        return str(value)
    if isinstance(value, str) and value.startswith("model:"):
        reader.fault(path, f"write the model alone: {printable(value[6:])}")
        return "union"
    return reader.model(value, path)


def _rule(reader: _Reader, value: object, path: Path) -> TokenRule:
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


def read_key_map(reader: _Reader, top: Mapping[str, object]) -> Iterator[KeyRule]:
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
            yield KeyRule(parse_rule(body), str(model) if model else None, place)
        except ValueError as error:
            reader.fault(path, str(error))


def read_tokenizer(reader: _Reader, top: Mapping[str, object]) -> TokenizerChoice | None:
    """The choice of `tokenizer` or `tokenizer_source`, or None where there is neither."""
    if top.get("tokenizer_source") is None and top.get("tokenizer") is None:
        return None
    return read_choice(reader, top)


def read_patterns(reader: _Reader, top: Mapping[str, object], key: str) -> tuple[str, ...]:
    """`include` or `exclude`: one pattern or a list."""
    given = top.get(key)
    found = [given] if isinstance(given, str) else reader.sequence(given, (key,)) if given else []
    for item in found:
        if not isinstance(item, str) or not item.strip("."):
            reader.fault((key,), f"expected a tensor name or a pattern like *.mlp.*, got {item!r}")
    return tuple(str(item) for item in found)


def read_flag(reader: _Reader, top: Mapping[str, object], key: str) -> bool:
    given = top.get(key, False)
    if not isinstance(given, bool):
        reader.fault((key,), f"{given!r} is neither true nor false")
    return given is True
