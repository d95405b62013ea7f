"""The data classes of a parsed recipe: models, slices, parameters by scope. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import UsageError
from ..messages import nearest, printable
from ..method import BaseRole, Method
from ..registry import OWN, Registry
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


class ImportanceWord(NamedTuple):
    """An importance file as named in a recipe, and the place where it stands."""

    word: str
    place: str


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
    importance: ImportanceWord | None = None
    data: str = ""  # file of texts that the model is run on


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
class Expert:
    """One expert of a mixture: the model whose MLPs it has, and the texts that its gates read.

    `residual_scale` multiplies its down projections; noise of N(0, 1) times `noise_scale` is added
    to all its matrices before. `prompts_file` is a path with further positive prompts.
    """

    model: ModelRef
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    prompts_file: str | None = None
    residual_scale: float = 1.0
    noise_scale: float = 0.0
    place: str = field(default="", compare=False)

    @property
    def has_prompts(self) -> bool:
        """Whether there is a text that its gates can be made from."""
        return bool(self.positive or self.prompts_file)


@dataclass(frozen=True)
class Mixture:
    """The part of a recipe on a mixture of experts; see `recipe.experts` for its keys.

    `center` None: as is usual for the mode. `target` is the start of the name of a model type, as
    it was given; None for the first that fits.
    """

    experts: tuple[Expert, ...]
    shared: tuple[Expert, ...] = ()
    gate_mode: str = "hidden"
    experts_per_token: int | None = None
    target: str | None = None
    gate_std: float = 1.0
    center: bool | None = None
    per_prompt: bool = False
    places: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """The models of all experts, the shared ones last."""
        return tuple(expert.model for expert in (*self.experts, *self.shared))


@dataclass(frozen=True)
class RunRequest:
    """Checkpoints of a training run, asked for by their steps.

    `run`: a folder of checkpoints, such a folder with a pattern of names (`DIR/*-hf`), or revisions
    of a Hub model by a pattern (`org/name@step*`). `numbers`: steps `from` and `to` (both included)
    and `every` N, counted from `from` or 0; the `last` N of these; at least `min`. `steps`: exactly
    these. `skip_incomplete`: leave unfinished checkpoints out wherever they stand.
    """

    run: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    skip_incomplete: bool = False
    schedule: str | None = None

    def as_mapping(self) -> dict[str, object]:
        """Return the request as a recipe writes it."""
        return {
            "run": self.run,
            **self.numbers,
            **({"steps": list(self.steps)} if self.steps else {}),
            **({"skip_incomplete": True} if self.skip_incomplete else {}),
            **({"schedule": self.schedule} if self.schedule else {}),
        }


@dataclass(frozen=True)
class Run:
    """The run that the models of a document are picked from.

    Until it is `listed`, the document has the run itself in place of its models.
    """

    request: RunRequest
    listed: bool = True
    summary: str = field(default="", compare=False)  # of the checkpoints that were picked
    notes: tuple[str, ...] = field(default=(), compare=False)  # on those that were not


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
    mixture: Mixture | None = None  # then the only slice holds the base alone
    methods: Registry = field(default=OWN, compare=False)
    run: Run | None = None  # that the models are checkpoints of

    @property
    def listed(self) -> bool:
        """Whether the models are known: those of a run may have to be picked first."""
        return all(r.run is None or r.run.listed for r in (*self.stages, self))

    def runs(self) -> tuple[Run, ...]:
        """Return the runs of all documents."""
        return tuple(r.run for r in (*self.stages, self) if r.run)

    def model_refs(self) -> tuple[ModelRef, ...]:
        """Return every input model once, those of stages included, but not their results."""
        names = {stage.name for stage in self.stages}
        refs = [ref for recipe in (*self.stages, self) for ref in recipe.all_refs()]
        return tuple(dict.fromkeys(ref for ref in refs if ref.path not in names))

    def importance_words(self) -> tuple[str, ...]:
        """Return every importance file once, as it is named, those of stages included."""
        parts = (p for r in (*self.stages, self) for module in r.modules for p in module.slices)
        sources = (source for part in parts for source in part.sources)
        return tuple(dict.fromkeys(s.importance.word for s in sources if s.importance))

    def data_words(self) -> tuple[str, ...]:
        """Return every file of texts once, as it is named."""
        parts = (p for r in (*self.stages, self) for module in r.modules for p in module.slices)
        sources = (source for part in parts for source in part.sources)
        return tuple(dict.fromkeys(source.data for source in sources if source.data))

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
        refs += self.mixture.refs if self.mixture else ()
        return tuple(dict.fromkeys(ref for ref in refs if ref))


def parse_model(word: str, folder: Path = Path()) -> ModelRef:
    """Parse `PATH`, `PATH@REVISION`, or two of them joined by `+`: a base and its adapter.

    A path that exists, seen from `folder`, is that path, whatever signs its name holds.
    Raises ValueError.
    """
    if _exists(word, folder):
        return ModelRef(word)
    pairs = [(word[: m.start()], word[m.end() :]) for m in re.finditer(r"\+", word)]
    if not pairs:
        return ModelRef(*parse_path(word, folder))
    # Of several signs, one separates a base that exists; the others are part of a name.
    here = [pair for pair in pairs if _exists(pair[0], folder)]
    both = [pair for pair in here if _exists(pair[1], folder)]
    choices = both or here or pairs
    if len(choices) > 1:
        raise ValueError(
            f"'{printable(word)}' has more than one '+'; a model is BASE or BASE+LORA, "
            f"or a path that exists"
        )
    base, lora = (parse_path(part, folder) for part in choices[0])
    return ModelRef(*base, *lora)


def parse_path(word: str, folder: Path) -> tuple[str, str | None]:
    """Parse `PATH` or `PATH@REVISION`; a path that exists is that path. Raises ValueError."""
    path, at, revision = word.rpartition("@")
    if not at or _exists(word, folder):
        path, revision = word, ""
    if not path or (at and "@" in path and not _exists(path, folder)):
        raise ValueError(f"'{printable(word)}' is not PATH, PATH@REVISION or PATH+LORA")
    return path, revision or None


def _exists(word: str, folder: Path) -> bool:
    try:
        return bool(word) and os.path.lexists(folder / Path(word).expanduser())
    except (RuntimeError, ValueError):  # no such user; a null byte
        return False


def find_method(
    name: str, place: str, methods: Registry = OWN, others: tuple[str, ...] = ()
) -> Method:
    """Return a method. UsageError with the nearest name, which may be one of `others`."""
    try:
        return methods.get(name.lower())
    except KeyError:
        known = (*methods.names(), *others)
        raise UsageError(
            f"{place}: unknown method '{printable(name)}'{nearest(name, known)}\n"
            f"  methods: {', '.join(known)}"
        ) from None


def plays_base(method: Method) -> bool:
    """Whether `base_model` has a part of its own; else it joins the models."""
    return method.base is not BaseRole.IGNORED
