"""Parse recipe text into a Recipe; report every fault with its line. Reads nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from ..messages import nearest, printable
from ..method import Method
from ..registry import OWN, Registry
from .experts import MOE, is_mixture, read_mixture
from .experts import TOP_LEVEL_KEYS as MIXTURE_KEYS
from .key_map import parse_rule
from .other_files import refuse_other_files
from .parameters import Given, Parameters, Setting, convert, parse_setting, scalars
from .reader import DocumentReader
from .recipe_file import RecipeText
from .runs import PICKED_FROM, Find, asks_for_run, list_runs, read_run, unlisted, with_found
from .schema import (
    ImportanceWord,
    KeyRule,
    ModelRef,
    Module,
    Recipe,
    Run,
    Slice,
    Source,
    TokenizerChoice,
    TokenRule,
    find_method,
    plays_base,
)
from .stages import arrange
from .validation import broken_rules
from .yaml_document import Document, Place, read_documents

MOST_PADDING = 1 << 16
"""Rows that a vocabulary is rounded up to; more would be a slip, and fill the disk with zeros."""

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
    "importance",
    PICKED_FROM,
)


def parse(
    text: str | RecipeText,
    where: str = "recipe",
    folder: Path = Path(),
    methods: Registry = OWN,
    find: Find | None = None,
) -> Recipe:
    """Parse a YAML or JSON text; of several documents, return the last one with its stages.

    Relative paths start at `folder`; whether they exist decides what `+` and `@` in them mean.
    `methods` are those that `merge_method` can name. `find` lists the checkpoints of runs, and the
    text of the recipe is then the one with them; without it such a recipe is not `listed`. Raises
    UsageError with every fault of all documents, each with its line.
    """
    text, first_line = RecipeText(text) if isinstance(text, str) else text
    documents = read_documents(text, where, first_line)
    if not documents:
        raise UsageError(f"{where}: empty; a recipe is one YAML document, or several with names")
    documents, text, found = list_runs(documents, text, find, folder, methods)
    recipes, faults = list[Recipe](), list[str]()
    for number, document in enumerate(documents):
        refuse_other_files(document)
        try:
            recipe = _Reader(document, folder, methods).recipe(text)
            recipes.append(with_found(recipe, found.get(number)))
        except UsageError as error:
            faults.append(str(error))
    if faults:
        raise UsageError("\n".join(faults))
    return arrange(recipes) if len(recipes) > 1 else recipes[0]


class Misplaced(NamedTuple):
    """A value where nothing reads it: its name and place, and a text that says where it belongs.

    `beside`: the same value also stands right there where it is read.
    """

    name: str
    path: Place
    text: str
    beside: bool = False


class _Reader(DocumentReader):
    """One document on its way to a Recipe."""

    def __init__(self, document: Document, folder: Path, methods: Registry) -> None:
        super().__init__(document, folder)
        self.methods = methods
        self.method: Method | None = None
        self.base: Source | None = None
        self.run: Run | None = None
        self.given: set[str] = set()  # names of values where they are read
        self.shared: set[str] = set()  # those of all models
        self.misplaced: list[Misplaced] = []

    def recipe(self, text: str) -> Recipe:
        mixed = is_mixture(self.document.value)
        keys = MIXTURE_KEYS if mixed else TOP_LEVEL_KEYS
        top = self.mapping(self.document.value, (), "a recipe")
        if self.faults:
            raise UsageError(self.faults[0])
        for path in self.document.duplicates:
            # Recipes keep anchors under one repeated key of their own, which nothing reads.
            if path[0] in keys:
                self.fault(path, "stands twice; the first would be lost")
        if mixed:
            self.unknown(top, (), keys)
            return self.checked(read_mixture(self, top, text))
        self.method = self.find_method(top)
        self.unknown(top, (), keys)
        if top.get("base_model"):
            base = self.model(top["base_model"], ("base_model",))
            place = self.document.place(("base_model",))
            importance = read_importance(
                self, {"importance": top.get("importance")}, (), is_base=True
            )
            self.base = Source(base, None, {}, place, implied=True, importance=importance)
        elif top.get("importance") is not None:
            self.fault(
                ("importance",), "is that of base_model, which is missing; name it per model"
            )
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
            dequantize=self.flag(top.get("dequantize", False), ("dequantize",)),
            methods=self.methods,
            run=self.run,
        )
        for value in self.misplaced:
            (self.fault if self.is_missed(value) else self.warn)(value.path, value.text)
        # The rules count models, so they wait until every model is understood.
        if self.method and not self.faults and recipe.listed:
            self.faults += broken_rules(recipe, self.method)
        return self.checked(recipe)

    def checked(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the warnings. Raises UsageError with all faults."""
        if self.faults:
            # What is never read is often what is missed.
            raise UsageError("\n".join([*self.faults, *self.warnings]))
        return replace(recipe, warnings=tuple(self.warnings))

    def find_method(self, top: Mapping[str, object]) -> Method | None:
        name = top.get("merge_method")
        if not isinstance(name, str):
            known = ", ".join((*self.methods.names(), MOE))
            self.fault(("merge_method",), f"missing; one of {known}")
            return None
        try:
            place = self.document.place(("merge_method",))
            return find_method(name, place, self.methods, (MOE,))
        except UsageError as error:
            self.faults.append(str(error))
            return None

    def modules(self, top: Mapping[str, object]) -> Iterator[Module]:
        given = [key for key in ("models", "slices", "modules") if top.get(key)]
        if top.get(PICKED_FROM) is not None:
            self.run = Run(read_run(self, top[PICKED_FROM], (PICKED_FROM,)))
        if given == ["models"] and asks_for_run(top["models"]):
            self.run, module = unlisted(self, top["models"])
            yield module
        elif len(given) != 1:
            listed = " and ".join(f"'{key}'" for key in given) or "none of them"
            self.fault((), f"a recipe has one of 'models', 'slices' or 'modules'; found {listed}")
        elif given == ["modules"]:
            named = self.mapping(top["modules"], ("modules",), "'modules'")
            for name, body in named.items():
                path: Place = ("modules", name)
                inner = self.mapping(body, path, "a module", ["models", "slices", "parameters"])
                yield self.module(name, inner, path)
        else:
            yield Module("default", tuple(self.slices(top, ())), {})

    def module(self, name: str, body: Mapping[str, object], path: Place) -> Module:
        if bool(body.get("models")) == bool(body.get("slices")):
            self.fault(path, "a module has either 'models' or 'slices'")
            return Module(name, (), {})
        slices = tuple(self.slices(body, path))
        parameters = self.parameters(body, path, "shared")
        return Module(name, slices, parameters, self.document.place(path))

    def slices(self, body: Mapping[str, object], path: Place) -> Iterator[Slice]:
        if body.get("models"):
            here = (*path, "models")
            models = self.sequence(body["models"], here)
            read = [self.source(m, (*here, i)) for i, m in enumerate(models)]
            sources = [source for source in read if source]
            if self.base and all(source.model != self.base.model for source in sources):
                sources.append(self.base)
            yield Slice(tuple(sources), None, {}, self.document.place(here))
            return
        here = (*path, "slices")
        listed = self.sequence(body.get("slices"), here)
        parts = [self.slice(item, (*here, number)) for number, item in enumerate(listed)]
        if parts and all(part.sources and part.length == 0 for part in parts):
            self.fault(here, "no layers at all; a layer_range is [first, last)")
        # The first slice gives the tensors before the layers, the last one those after them.
        for number, part in enumerate(parts[1:-1], start=1):
            if part.sources and part.length == 0:
                self.warn((*here, number), "takes no layers, so it has no effect")
        yield from parts

    def slice(self, item: object, path: Place) -> Slice:
        keys = ["sources", "base_model", "parameters", "residual_weight"]
        body = self.mapping(item, path, "a slice", keys)
        given = body.get("base_model")
        base = self.model(given, (*path, "base_model")) if given else None
        here = (*path, "sources")
        listed = self.sequence(body.get("sources"), here)
        read = [self.source(s, (*here, i), base, sliced=True) for i, s in enumerate(listed)]
        if "residual_weight" in body:
            self.warn((*path, "residual_weight"), "nothing reads this key, in mergekit neither")
        parameters = self.parameters(body, path, "shared")
        sources = tuple(source for source in read if source)
        return Slice(sources, base, parameters, self.document.place(path))

    def source(
        self, item: object, path: Place, base: ModelRef | None = None, sliced: bool = False
    ) -> Source | None:
        """Read an entry of `models`, or of the `sources` of a slice, which takes some layers."""
        if isinstance(item, str) and not sliced:
            item = {"model": item}
        body = self.mapping(item, path, "a source")
        layers = None
        if sliced:
            layers = self.layer_range(body.get("layer_range"), (*path, "layer_range"))
        elif "layer_range" in body:
            self.warn((*path, "layer_range"), "not read here; layers are picked under 'slices'")
        self.unknown(body, path, ["model", "parameters", "layer_range", "importance", "data"])
        if "model" not in body:
            self.fault(path, "no 'model' in it")
            return None
        model = self.model(body["model"], (*path, "model"))
        base = base or (self.base.model if self.base else None)
        parameters = self.parameters(body, path, "base" if model == base else "model")
        importance = read_importance(self, body, path, is_base=model == base)
        if importance is None and self.base and model == self.base.model:
            importance = self.base.importance
        place = self.document.place(path)
        data = read_data(self, body, path, is_base=model == base)
        return Source(model, layers, parameters, place, importance=importance, data=data)

    def layer_range(self, value: object, path: Place) -> tuple[int, int] | None:
        if isinstance(value, list) and len(value) == 2 and all(type(n) is int for n in value):
            first, last = value
            if 0 <= first <= last:
                return first, last
        self.fault(path, f"{value!r} is not [first, last) with 0 <= first <= last")
        return None

    def parameters(self, body: Mapping[str, object], path: Place, owner: str) -> Parameters:
        """Read settings; `owner` is "shared", or the "model" or "base" that they belong to."""
        if body.get("parameters") is None:
            return {}
        settings = {}
        path = (*path, "parameters")
        for name, value in self.mapping(body["parameters"], path, "'parameters'").items():
            here = (*path, name)
            if name in importance_keys(self.method):
                if owner == "shared":
                    self.fault(here, "belongs to one model; write it beside the model")
                continue
            if value is None and self.method and self.method.importance:
                continue  # ota-merge's recipes write null for what is off
            try:
                setting = parse_setting(value)
                settings[name] = Given(setting, self.document.place(here))
                self.check_parameter(name, setting, here, owner)
            except ValueError as error:
                self.fault(here, str(error))
        return settings

    def check_parameter(self, name: str, setting: Setting, path: Place, owner: str) -> None:
        """Warn of what nothing reads. ValueError for a value that is not of its type."""
        if self.method is None:
            return
        known = {p.name: p for p in (*self.method.parameters, *self.method.modifiers)}
        why = ""
        if name not in known:
            why = f"{self.method.name} does not read it{nearest(name, known)}"
        elif owner != "shared" and not known[name].per_model:
            text = "one value for all models; it belongs under 'parameters:' of the recipe"
            self.misplaced.append(Misplaced(name, path, text))
            return
        elif owner == "base" and plays_base(self.method):
            why = f"the base of {self.method.name} has none"
        if why:
            self.warn(path, why)
            return
        (self.shared if owner == "shared" else self.given).add(name)
        for value in scalars(setting):
            convert(value, known[name].type)

    def unknown(self, body: Mapping[str, object], path: Place, allowed: Sequence[str]) -> None:
        """Warn of keys that nothing reads; keep the values of the method among them."""
        known = (*self.method.parameters, *self.method.modifiers) if self.method else ()
        names = {p.name for p in known} if "parameters" in allowed else set()
        stray = [key for key in body if key in names]
        given = body.get("parameters")
        beside = given if isinstance(given, dict) else {}
        for name in stray:
            text = f"a value of {self.method.name if self.method else '?'}; it belongs under "
            text += "'parameters:' beside this key"
            self.misplaced.append(Misplaced(name, (*path, name), text, name in beside))
        super().unknown({key: body[key] for key in body if key not in stray}, path, allowed)

    def is_missed(self, value: Misplaced) -> bool:
        """Return whether the method needs a value that stands only where it is not read."""
        parameters = self.method.parameters if self.method else ()
        needed = any(p.name == value.name and p.required for p in parameters)
        scopes = self.shared if len(value.path) > 1 else self.shared | self.given
        return needed and not value.beside and value.name not in scopes


def importance_keys(method: Method | None) -> tuple[str, ...]:
    """Return the names by which recipes of a method give importance; ota-merge has its own."""
    return ("importance", *(["preconditioner_path"] if method and method.name == "ota" else []))


def read_importance(
    reader: _Reader, body: Mapping[str, object], path: Place, *, is_base: bool
) -> ImportanceWord | None:
    """Read the importance file of a model, beside it or among its parameters."""
    inner = body.get("parameters")
    parameters = inner if isinstance(inner, dict) else {}
    keys = importance_keys(reader.method)
    given = [((*path, "importance"), body["importance"])] if body.get("importance") else []
    found = ((key, parameters.get(key)) for key in keys)
    given += [((*path, "parameters", key), value) for key, value in found if value]
    if not given:
        return None
    here, value = given[0]
    if len(given) > 1:
        reader.fault(given[1][0], "a second importance file of this model; keep one")
    elif not isinstance(value, str):
        shown = printable(repr(value))[:60]
        reader.fault(here, f"expected the path of an importance file, got {shown}")
    elif method := reader.method:
        plain = not is_base or not plays_base(method)
        if plain and not method.importance:
            reader.warn(here, f"{method.name} does not read the importance of models")
            return None
        return ImportanceWord(value, reader.document.place(here))
    return None


def read_data(reader: _Reader, body: Mapping[str, object], path: Place, *, is_base: bool) -> str:
    """Read the file of texts of a model, for methods that run models; "" without one."""
    value, here = body.get("data"), (*path, "data")
    if value is None:
        return ""
    if not isinstance(value, str) or not value:
        shown = printable(repr(value))[:60]
        reader.fault(here, f"expected the path of a file of texts, got {shown}")
    elif body.get("importance"):
        reader.fault(here, "stands beside 'importance'; keep one of the two")
    elif reader.method and not reader.method.reads_texts:
        reader.warn(here, f"{reader.method.name} does not read texts; nothing is run on them")
    elif is_base:
        reader.warn(here, "the base is not run on texts; nothing reads this key")
    else:
        return value
    return ""


def read_tokenizer(reader: _Reader, top: Mapping[str, object]) -> TokenizerChoice | None:
    """Read `tokenizer` or `tokenizer_source`; None where there is neither, or both."""
    short, long = top.get("tokenizer_source"), top.get("tokenizer")
    if short is None and long is None:
        return None
    if "tokenizer_source" in top and "tokenizer" in top:
        reader.fault(("tokenizer_source",), "stands beside 'tokenizer'; keep one of the two")
        return None
    path: Place = ("tokenizer_source",) if long is None else ("tokenizer",)
    place = reader.document.place(path)
    if long is None:
        return TokenizerChoice(_source(reader, short, path), place=place)
    keys = ["source", "tokens", "pad_to_multiple_of"]
    body = reader.mapping(long, path, "'tokenizer'", keys)
    multiple = body.get("pad_to_multiple_of") or 0
    if type(multiple) is not int or not 0 <= multiple <= MOST_PADDING:
        reader.fault(
            (*path, "pad_to_multiple_of"),
            f"expected a number of rows up to {MOST_PADDING}, got {printable(repr(multiple)[:40])}",
        )
        multiple = 0
    here: Place = (*path, "tokens")
    tokens = reader.mapping(body.get("tokens") or {}, here, "'tokens'")
    rules = {token: _rule(reader, value, (*here, token)) for token, value in tokens.items()}
    source = _source(reader, body.get("source") or "union", (*path, "source"))
    return TokenizerChoice(source, rules, multiple, place)


def _source(reader: _Reader, value: object, path: Place) -> str | ModelRef:
    if value in ("union", "base"):
        return str(value)
    if isinstance(value, str) and value.startswith("model:"):
        reader.fault(path, f"write the model alone: {printable(value[6:])}")
        return "union"
    return reader.model(value, path)


def _rule(reader: _Reader, value: object, path: Place) -> TokenRule:
    body = reader.mapping({} if value is None else value, path, "a token", ["source", "force"])
    source, here = body.get("source"), (*path, "source")
    force = reader.flag(body.get("force") or False, (*path, "force"))
    if source is None:
        if body.get("force"):
            reader.fault(path, "'force' without a 'source' to take the row from")
        return TokenRule()
    if not isinstance(source, dict) or "kind" not in source:
        return TokenRule(reader.model(source, here), force=force)
    kind = source["kind"]
    if kind == "zero":
        reader.unknown(source, here, ["kind"])
        return TokenRule(zero=True, force=force)
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
    return TokenRule(model, token if number is None else number, force=force)


def read_key_map(reader: _Reader, top: Mapping[str, object]) -> Iterator[KeyRule]:
    """Read rules for tensors with other names, or in other pieces, in other models."""
    given = top.get("key_map")
    for number, item in enumerate(reader.sequence(given, ("key_map",)) if given else []):
        path: Place = ("key_map", number)
        body = reader.mapping(item, path, "a rule")
        model = reader.model(body["model"], (*path, "model")) if body.get("model") else None
        place = reader.document.place(path)
        try:
            yield KeyRule(parse_rule(body), str(model) if model else None, place)
        except ValueError as error:
            reader.fault(path, str(error))


def read_patterns(reader: _Reader, top: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Read `include` or `exclude`: one pattern or a list."""
    given = top.get(key)
    items = [given] if isinstance(given, str) else reader.sequence(given, (key,)) if given else []
    for item in items:
        if not isinstance(item, str) or not item.strip("."):
            reader.fault((key,), f"expected a tensor name or a pattern like *.mlp.*, got {item!r}")
    return tuple(str(item) for item in items)
