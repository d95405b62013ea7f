"""Documents that make a mixture of experts: `merge_method: moe`, and the files of mergekit-moe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..messages import counted, nearest, printable
from .reader import DocumentReader
from .schema import Expert, Mixture, ModelRef, Module, Recipe, Slice, Source
from .yaml_document import Place

MOE = "moe"
"""The value of `merge_method`, which the files of mergekit-moe leave out."""

TOP_LEVEL_KEYS = (
    "merge_method",
    "base_model",
    "architecture",
    "gate_mode",
    "gate_std",
    "gate_center",
    "per_prompt",
    "experts_per_token",
    "experts",
    "shared_experts",
    "dtype",
    "out_dtype",
    "chat_template",
    "name",
    "dequantize",
)
EXPERT_KEYS = (
    "source_model",
    "model",
    "positive_prompts",
    "negative_prompts",
    "prompts_file",
    "residual_scale",
    "noise_scale",
)


class GateMode(NamedTuple):
    """A way to make the gates of a mixture: whether it reads prompts, and with the base's layers.

    `centered`: the mean over the experts is taken off unless the recipe says otherwise.
    """

    name: str
    help: str
    reads_prompts: bool = True
    reads_layers: bool = False
    centered: bool = False


GATE_MODES = {
    mode.name: mode
    for mode in (
        GateMode("hidden", "the last token's input of each layer", True, True),
        GateMode("hidden_avg", "the mean input of each layer", True, True),
        GateMode("mlp_input", "the mean input of each MLP, centred", True, True, True),
        GateMode("cheap_embed", "the sum of the tokens' embeddings"),
        GateMode("random", "numbers of N(0, 1) times gate_std", False),
        GateMode("uniform_random", "uniform numbers of ±1/√(hidden size)", False),
        GateMode("zeros", "zeros, to be trained", False),
    )
}
ALIASES = {"hidden_last": "hidden"}


def is_mixture(value: object) -> bool:
    """Return whether a document makes a mixture of experts."""
    if not isinstance(value, dict):
        return False
    method = value.get("merge_method")
    return str(method).lower() == MOE if method is not None else "experts" in value


def read_mixture(reader: DocumentReader, top: Mapping[str, Any], text: str) -> Recipe:
    """Read a document that makes a mixture; faults and warnings are those of the reader."""
    base = ModelRef("?")
    if top.get("base_model"):
        base = reader.model(top["base_model"], ("base_model",))
    else:
        reader.fault(
            ("base_model",),
            "missing; it gives the embeddings, the attention, the tokenizer and the config",
        )
    given = top.get("experts")
    experts = tuple(_experts(reader, given, "experts")) if "experts" in top else ()
    if "experts" not in top:
        reader.fault(("experts",), "missing; a list of models whose MLPs become experts")
    shared = tuple(_experts(reader, top.get("shared_experts"), "shared_experts", least=0))
    mode = _gate_mode(reader, top)
    place = reader.document.place(("base_model",))
    mixture = Mixture(
        experts=experts,
        shared=shared,
        gate_mode=mode.name,
        experts_per_token=_per_token(reader, top, len(experts)),
        target=reader.text(top, "architecture"),
        gate_std=_number(reader, top, ("gate_std",), 1.0, least=0.0),
        center=_flag(reader, top, "gate_center"),
        per_prompt=bool(_flag(reader, top, "per_prompt")),
        places={key: reader.document.place((key,)) for key in TOP_LEVEL_KEYS},
    )
    _check_prompts(reader, mixture, mode)
    whole = Slice((Source(base, None, {}, place),), None, {}, place)
    return Recipe(
        text=text,
        where=reader.document.where,
        method=MOE,
        modules=(Module("default", (whole,), {}),),
        base=base,
        parameters={},
        dtype=reader.dtype(top, "dtype"),
        out_dtype=reader.dtype(top, "out_dtype"),
        chat_template=reader.text(top, "chat_template"),
        name=reader.text(top, "name"),
        dequantize=reader.flag(top.get("dequantize", False), ("dequantize",)),
        mixture=mixture,
    )


def _gate_mode(reader: DocumentReader, top: Mapping[str, Any]) -> GateMode:
    given = reader.text(top, "gate_mode") or "hidden"
    name = ALIASES.get(given.lower(), given.lower())
    if name not in GATE_MODES:
        known = ", ".join(GATE_MODES)
        hint = nearest(name, list(GATE_MODES))
        reader.fault(
            ("gate_mode",), f"unknown mode '{printable(given)[:60]}'{hint}; one of {known}"
        )
    mode = GATE_MODES.get(name, GATE_MODES["random"])
    if "gate_std" in top and name != "random":
        reader.warn(("gate_std",), "only gate_mode: random reads it")
    for key in ("gate_center", "per_prompt"):
        if key in top and not mode.reads_prompts:
            reader.warn((key,), f"gate_mode: {mode.name} does not read it")
    return mode


def _experts(reader: DocumentReader, given: object, key: str, least: int = 1) -> Iterator[Expert]:
    if given is None and not least:
        return
    listed = given if least == 0 and given == [] else reader.sequence(given, (key,))
    for number, item in enumerate(listed if isinstance(listed, list) else ()):
        expert = _expert(reader, item, (key, number))
        if expert is not None:
            yield expert


def _expert(reader: DocumentReader, item: object, path: Place) -> Expert | None:
    if isinstance(item, str):
        item = {"source_model": item}
    body = reader.mapping(item, path, "an expert", EXPERT_KEYS)
    if not isinstance(item, dict):
        return None
    named = [key for key in ("source_model", "model") if body.get(key)]
    if len(named) != 1:
        both = "both 'source_model' and 'model'; keep one" if named else "no 'source_model' in it"
        reader.fault(path, both)
        return None
    file = body.get("prompts_file")
    if file is not None and not (isinstance(file, str) and file):
        reader.fault((*path, "prompts_file"), f"expected a path, got {printable(repr(file))[:60]}")
        file = None
    return Expert(
        model=reader.model(body[named[0]], (*path, named[0])),
        positive=_prompts(reader, body, path, "positive_prompts"),
        negative=_prompts(reader, body, path, "negative_prompts"),
        prompts_file=file if isinstance(file, str) else None,
        residual_scale=_number(reader, body, (*path, "residual_scale"), 1.0),
        noise_scale=_number(reader, body, (*path, "noise_scale"), 0.0, least=0.0),
        place=reader.document.place(path),
    )


def _prompts(
    reader: DocumentReader, body: Mapping[str, object], path: Place, key: str
) -> tuple[str, ...]:
    """Read texts: a list, or one alone."""
    given, here = body.get(key), (*path, key)
    items = [given] if isinstance(given, str) else given
    if given is None or given == []:
        return ()
    if not isinstance(items, list):
        reader.fault(here, f"expected a list of texts, got {printable(repr(given))[:60]}")
        return ()
    for number, item in enumerate(items):
        if not isinstance(item, str):
            shown = printable(repr(item))[:60]
            reader.fault((*here, number), f"a prompt is a text, not {shown}; put it in quotes")
        elif not item.strip():
            reader.fault((*here, number), "an empty prompt; its gates would be of nothing")
    return tuple(item for item in items if isinstance(item, str))


def _number(
    reader: DocumentReader,
    body: Mapping[str, object],
    path: Place,
    default: float,
    least: float = -math.inf,
) -> float:
    """Read a finite number of at least `least`; null is the default."""
    value = body.get(str(path[-1]))
    if value is None:
        return default
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a text
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, int | float) and type(value) is not bool:
        with suppress(OverflowError):
            number = float(value)
            if math.isfinite(number) and number >= least:
                return number
    kind = "a number" if least == -math.inf else f"a number of at least {least:g}"
    reader.fault(path, f"expected {kind}, got {printable(repr(value))[:60]}")
    return default


def _flag(reader: DocumentReader, top: Mapping[str, Any], key: str) -> bool | None:
    return None if top.get(key) is None else reader.flag(top[key], (key,))


def _per_token(reader: DocumentReader, top: Mapping[str, Any], experts: int) -> int | None:
    value = top.get("experts_per_token")
    if value is None:
        return None
    if type(value) is not int or value < 1:
        shown = printable(repr(value))[:60]
        reader.fault(("experts_per_token",), f"expected a number of at least 1, got {shown}")
        return None
    if experts and value > experts:
        reader.fault(
            ("experts_per_token",),
            f"{value} for each token, but the recipe has {counted(experts, 'experts')}",
        )
    return value


def _check_prompts(reader: DocumentReader, mixture: Mixture, mode: GateMode) -> None:
    """Note a fault for each expert without the prompts that its gates are made from."""
    if not mode.reads_prompts:
        if not reader.faults and any(
            expert.has_prompts for expert in (*mixture.experts, *mixture.shared)
        ):
            reader.warn(("gate_mode",), f"{mode.name} reads no prompts; those given are not used")
        return
    for expert in mixture.experts:
        if not expert.has_prompts:
            reader.faults.append(
                f"{expert.place}: no 'positive_prompts', from which gate_mode: {mode.name} makes "
                f"the gates; add some, or choose gate_mode: random"
            )
    texts = {(set_of(e.positive), set_of(e.negative), e.prompts_file) for e in mixture.experts}
    if len(mixture.experts) > 1 and len(texts) == 1 and mixture.experts[0].has_prompts:
        reader.fault(
            ("experts",),
            "all experts have the same prompts, so that all gates would be equal; give each its "
            "own, or choose gate_mode: random",
        )


def set_of(prompts: tuple[str, ...]) -> frozenset[str]:
    """Return prompts without their order, which no gate depends on."""
    return frozenset(prompts)
