"""Which tensors of files become what of an adapter: modules as transformers has them in memory.

Linear layers and the experts' matrices get factors. What PEFT can give no factors (norms, kernels,
routers, single parameters) is kept whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..checkpoint.folder import Checkpoint
from ..conversion.known_layouts import NAMES_IN_MEMORY, TRANSPOSED_EXPERTS
from ..dtypes import Kind
from ..structure.embeddings import is_head, ties_head
from ..tensors.source import TensorSource

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_KERNEL = re.compile(r"(.+\.)([qkv])_(conv1d\.(?:weight|bias))")
_EMBEDDING = re.compile(r".*embed.*|wte|wpe|shared|relative_attention_bias")
# Layers of transformers that store their weights as (in, out).
_TURNED = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
# PEFT gives these modules of Mamba's relatives no factors, since their kernels bypass them.
_MAMBAS = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
_TAKEN = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


class Run(NamedTuple):
    """Elements [start, stop) of a tensor of a file."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Target:
    """A module or parameter with factors: equal matrices (one, or one for each expert).

    Each matrix consists of runs; `turned`: what is factored is its transpose.
    """

    name: str
    shape: tuple[int, int]
    matrices: tuple[tuple[Run, ...], ...]
    kind: str = "linear"  # or "embedding", "experts"
    turned: bool = False
    parameter: str = ""  # what PEFT has to wrap, where it is no module

    @property
    def key(self) -> str:
        """The name that patterns of ranks are matched with."""
        return self.parameter or self.name


@dataclass(frozen=True)
class Whole:
    """A tensor that is kept as it is: those of the files, one after the other.

    `module` if PEFT can hold a trained copy of the module; else it goes into the base at loading.
    """

    name: str
    parts: tuple[str, ...]
    module: str | None = None


@dataclass(frozen=True)
class Arranged:
    targets: tuple[Target, ...]
    wholes: tuple[Whole, ...]


def arrange(model: Checkpoint, embed_lora: bool = False) -> Arranged:
    """All floating tensors of a model, those of one parameter together."""
    found = _Arranger(model, embed_lora)
    floats = {n: info for n, info in model.tensors.items() if info.dtype.kind is Kind.FLOAT}
    for name, info in floats.items():
        found.add(name, info)
    targets = [*found.targets, *found.experts()]
    if any(target.kind == "experts" for target in targets):
        targets = [_as_parameter(target) for target in targets]
    kernels = (
        Whole(name, tuple(parts[part] for part in "qkv" if part in parts))
        for name, parts in found.kernels.items()
    )
    return Arranged(tuple(targets), (*found.wholes, *kernels))


def _as_parameter(target: Target) -> Target:
    """Beside experts, PEFT takes modules of these names for experts of earlier versions."""
    last = target.name.rpartition(".")[2]
    if target.kind == "experts":
        return replace(target, parameter=target.name)
    return replace(target, parameter=f"{target.name}.weight") if last in _TAKEN else target


class _Arranger:
    def __init__(self, model: Checkpoint, embed_lora: bool) -> None:
        self.model = model
        self.kind = str(model.config.get("model_type", ""))
        self.tied = ties_head(model.config)
        self.embed_lora = embed_lora
        self.targets: list[Target] = []
        self.wholes: list[Whole] = []
        self.kernels: dict[str, dict[str, str]] = {}
        self.apart: dict[str, dict[str, dict[int, TensorSource]]] = {}

    def add(self, name: str, info: TensorSource) -> None:
        memory = self.in_memory(name)
        module, _, end = memory.rpartition(".")
        if match := _EXPERT.fullmatch(name):
            place = self.in_memory(name).split(".experts.")[0] + ".experts"
            words = self.apart.setdefault(place, {})
            words.setdefault(match[3], {})[int(match[2])] = info
        elif match := _KERNEL.fullmatch(name):
            self.kernels.setdefault(self.in_memory(match[1] + match[3]), {})[match[2]] = name
        elif len(info.shape) == 3 and ".experts." in memory:
            count, rows, columns = info.shape
            size = rows * columns
            runs = tuple((Run(name, n * size, (n + 1) * size),) for n in range(count))
            turned = self.kind in TRANSPOSED_EXPERTS
            self.targets.append(Target(memory, (rows, columns), runs, "experts", turned))
        elif len(info.shape) == 2 and end == "weight":
            self.matrix(name, memory, module, info)
        else:
            held = end in ("weight", "bias") and self.is_norm(name)
            self.wholes.append(Whole(memory, (name,), module if held else None))

    def matrix(self, name: str, memory: str, module: str, info: TensorSource) -> None:
        last = module.rpartition(".")[2]
        shape = (info.shape[0], info.shape[1])
        runs = ((Run(name, 0, info.count),),)
        if _EMBEDDING.fullmatch(last) or is_head(name):
            embedding = not is_head(name)
            if self.embed_lora and not (self.tied and not embedding):
                kind = "embedding" if embedding else "linear"
                self.targets.append(Target(module, shape, runs, kind, embedding))
            else:
                # A copy of its own would part it from the head that shares it.
                self.wholes.append(Whole(memory, (name,), None if self.tied else module))
        elif self.routes(name) or (last == "out_proj" and self.kind in _MAMBAS):
            self.wholes.append(Whole(memory, (name,)))
        else:
            self.targets.append(Target(module, shape, runs, turned=self.kind in _TURNED))

    def routes(self, name: str) -> bool:
        """Whether a matrix stands beside experts; in memory it may be no linear layer."""
        place = re.sub(r"\.[^.]+(\.layer)?\.weight$", "", name)
        direct = (f"{place}.experts.", f"{place}.input_linear.")
        alone = ".experts." not in name and not re.search(r"\.(shared_)?experts?\.", name)
        return (
            alone and "_proj" not in name and any(n.startswith(direct) for n in self.model.tensors)
        )

    def is_norm(self, name: str) -> bool:
        weight = self.model.tensors.get(re.sub(r"\.bias$", ".weight", name))
        return weight is not None and len(weight.shape) == 1

    def in_memory(self, name: str) -> str:
        if self.kind == "nemotron_h":
            name = re.sub(r"^backbone\.", "model.", name)
        for pattern, text in NAMES_IN_MEMORY:
            name = re.sub(pattern, text, name)
        return name

    def experts(self) -> Iterator[Target]:
        """Of experts that are stored one by one: gate and up in one, as they are in memory."""
        for place, words in self.apart.items():
            named = {
                {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(w, w): w for w in words
            }
            groups = {"gate_up_proj": ["gate_proj", "up_proj"]} if "gate_proj" in named else {}
            rest = [word for word in ("up_proj", "down_proj") if word in named]
            groups |= {word: [word] for word in rest if not (groups and word == "up_proj")}
            for name, parts in groups.items():
                yield _stacked(f"{place}.{name}", [words[named[part]] for part in parts])


def _stacked(name: str, parts: list[Mapping[int, TensorSource]]) -> Target:
    matrices = tuple(
        tuple(Run(part[number].name, 0, part[number].count) for part in parts)
        for number in sorted(parts[0])
    )
    first = [part[min(part)] for part in parts]
    return Target(name, (sum(x.shape[0] for x in first), first[0].shape[1]), matrices, "experts")
