"""The data classes of a parsed recipe: models, slices, parameters by scope. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .. import methods
from ..errors import UsageError
from ..messages import nearest, printable
from ..method import BaseRole, Method
from .key_map import LayoutRule
from .parameters import Parameters


@dataclass(frozen=True)
class ModelRef:
    """`path[@revision][+lora[@revision]]`: a model as named in a recipe."""

    path: str
    revision: str | None = None
    lora: str | None = None
    lora_revision: str | None = None
    architecture: str | None = None

    def __str__(self) -> str:
        text = self.path + (f"@{self.revision}" if self.revision else "")
        if self.lora:
            text += f"+{self.lora}" + (f"@{self.lora_revision}" if self.lora_revision else "")
        return text


@dataclass(frozen=True)
class Source:
    """One model of a slice; `layers` is half-open, None for all of them.

    `implied` is the base that is not listed: where whole models are merged, it takes part.
    """

    model: ModelRef
    layers: tuple[int, int] | None
    parameters: Parameters
    place: str = field(default="", compare=False)
    implied: bool = False


@dataclass(frozen=True)
class Slice:
    """A run of output layers and the sources it is merged from."""

    sources: tuple[Source, ...]
    base: ModelRef | None
    parameters: Parameters
    place: str = field(default="", compare=False)

    @property
    def length(self) -> int | None:
        """Number of output layers; None where whole models are merged."""
        layers = self.sources[0].layers
        return layers[1] - layers[0] if layers else None


@dataclass(frozen=True)
class Module:
    """One part of the model with slices of its own; ordinary models have just `default`."""

    name: str
    slices: tuple[Slice, ...]
    parameters: Parameters
    place: str = field(default="", compare=False)

    @property
    def sliced(self) -> bool:
        """Whether layers are picked; else whole models are merged."""
        return any(part.length is not None for part in self.slices)


@dataclass(frozen=True)
class TokenRule:
    """The row of a token in models that lack it (in all of them, if `force`).

    `model` is whose row it is: that of the same token, of another one, or of an id; without a
    model it is zeros if `zero`, else what the rules for other tokens say.
    """

    model: ModelRef | None = None
    token: str | int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True)
class TokenizerChoice:
    """`tokenizer` of a recipe: `source` is "union", "base" or the model whose tokenizer it is."""

    source: str | ModelRef = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    multiple: int = 0  # rows are rounded up to a multiple of it
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class KeyRule:
    """A rule of `key_map`: how tensors of other models (or of one) become those of the first."""

    rule: LayoutRule
    model: str | None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `text` is the recipe as given.

    `stages` are the other documents of the text, whose results this one uses by their names as
    models; each stands after those that it uses.
    """

    text: str
    where: str
    method: str
    modules: tuple[Module, ...]
    base: ModelRef | None
    parameters: Parameters
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerChoice | None = None
    chat_template: str | None = None
    name: str | None = None
    warnings: tuple[str, ...] = field(default=(), compare=False)
    stages: tuple[Recipe, ...] = ()
    key_map: tuple[KeyRule, ...] = ()
    include: tuple[str, ...] = ()  # patterns of the tensors that are merged; all if there are none
    exclude: tuple[str, ...] = ()
    dequantize: bool = False

    def model_refs(self) -> tuple[ModelRef, ...]:
        """Return every input model once, those of stages included, but not their results."""
        names = {stage.name for stage in self.stages}
        refs = [ref for recipe in (*self.stages, self) for ref in recipe.all_refs()]
        return tuple(dict.fromkeys(ref for ref in refs if ref.path not in names))

    def all_refs(self) -> tuple[ModelRef, ...]:
        """Return `own_refs` and the model that gives only its tokenizer."""
        source = self.tokenizer.source if self.tokenizer else None
        donor = [source] if isinstance(source, ModelRef) else []
        return tuple(dict.fromkeys((*self.own_refs(), *donor)))

    def own_refs(self) -> tuple[ModelRef, ...]:
        """Return every model of this document once: the base, then in order of appearance."""
        refs = [self.base]
        for part in (part for module in self.modules for part in module.slices):
            refs += [part.base, *(source.model for source in part.sources)]
        return tuple(dict.fromkeys(ref for ref in refs if ref))


def parse_model(word: str) -> ModelRef:
    """Parse PATH, PATH@REVISION or PATH+LORA. Raises ValueError that names the fault."""
    parts = word.split("+")
    if len(parts) > 2:
        raise ValueError(f"'{printable(word)}' has more than one '+'; a model is BASE or BASE+LORA")
    pairs = []
    for part in parts:
        path, *revision = part.split("@")
        if len(revision) > 1 or not path:
            raise ValueError(f"'{printable(word)}' is not PATH, PATH@REVISION or PATH+LORA")
        pairs.append((path, revision[0] if revision else None))
    lora = pairs[1] if len(pairs) > 1 else (None, None)
    return ModelRef(*pairs[0], *lora)


def find_method(name: str, place: str) -> Method:
    known = methods.names()
    word = name.lower()
    if word not in known:
        raise UsageError(
            f"{place}: unknown method '{printable(name)}'{nearest(name, known)}\n"
            f"  methods: {', '.join(known)}"
        )
    return methods.get(word)


def plays_base(method: Method) -> bool:
    """Whether `base_model` has a part of its own; else it joins the models."""
    return method.base is not BaseRole.IGNORED
