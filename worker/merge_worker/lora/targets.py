"""The tensors of a model as parts of an adapter, named like the modules of transformers in memory.

Linear layers and the matrices of experts get factors. Tensors to which PEFT cannot give factors
(norms, kernels, routers, single parameters) are kept whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..checkpoint.folder import Checkpoint
from ..conversion.known_layouts import known_layouts
from ..dtypes import Kind
from ..recipe.key_map import NUMBER
from ..structure.embeddings import is_head, ties_head
from ..tensors.source import TensorSource

_EXPERT = re.compile(rf"(.+\.experts)\.({NUMBER})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
_KERNEL = re.compile(r"(.+\.)([qkv])_(conv1d\.(?:weight|bias))")
_EMBEDDING = re.compile(r".*embed.*|wte|wpe|shared|relative_attention_bias")
# Layers of transformers that store their weights as (in, out).
_TRANSPOSED = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}
# PEFT gives these modules of Mamba's relatives no factors, since their kernels bypass them.
_MAMBAS = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
_EXPERT_NAMES = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


class Span(NamedTuple):
    """The elements [start, stop) of a tensor of a file."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Target:
    """A module or parameter with factors: equal matrices (one, or one for each expert).

    A matrix consists of spans. If `transposed`, its transpose is factored.
    """

    name: str
    shape: tuple[int, int]
    matrices: tuple[tuple[Span, ...], ...]
    kind: str = "linear"  # or "embedding", "experts"
    transposed: bool = False
    parameter: str = ""  # the parameter to wrap if it is not a module

    @property
    def key(self) -> str:
        """The key in the rank patterns."""
        return self.parameter or self.name


@dataclass(frozen=True)
class Whole:
    """A tensor kept unchanged, which consists of tensors of files one after the other.

    `module` is set if PEFT can save a trained copy of the module; otherwise PEFT loads the tensor
    into the base. A `fixed` one cannot be kept, since memory has its elements in another order.
    """

    name: str
    parts: tuple[str, ...]
    module: str | None = None
    fixed: bool = False


@dataclass(frozen=True)
class AdapterParts:
    """All floating tensors of a model, as targets with factors and as whole tensors."""

    targets: tuple[Target, ...]
    wholes: tuple[Whole, ...]


def find_parts(
    model: Checkpoint, embed_lora: bool = False, fixed: frozenset[str] | None = None
) -> AdapterParts:
    """Sort the floating tensors of a model; the tensors of one parameter form one part.

    The names are those in memory if there is a set of `fixed` ones, which are in another order.
    """
    finder = _PartFinder(model, embed_lora, fixed is not None)
    floats = {n: info for n, info in model.tensors.items() if info.dtype.kind is Kind.FLOAT}
    for name, info in floats.items():
        if fixed and name in fixed:
            finder.wholes.append(Whole(name, (name,), fixed=True))
        else:
            finder.add(name, info)
    targets = [*finder.targets, *finder.experts()]
    if any(target.kind == "experts" for target in targets):
        targets = [_as_parameter(target) for target in targets]
    kernels = (
        Whole(name, tuple(parts[part] for part in "qkv" if part in parts))
        for name, parts in finder.kernels.items()
    )
    return AdapterParts(tuple(targets), (*finder.wholes, *kernels))


def _as_parameter(target: Target) -> Target:
    """Set the parameter to wrap, also for modules named as in `_EXPERT_NAMES`.

    In models with experts, PEFT takes such modules for experts of earlier transformers.
    """
    last = target.name.rpartition(".")[2]
    if target.kind == "experts":
        return replace(target, parameter=target.name)
    return replace(target, parameter=f"{target.name}.weight") if last in _EXPERT_NAMES else target


class _PartFinder:
    def __init__(self, model: Checkpoint, embed_lora: bool, is_in_memory: bool) -> None:
        self.model = model
        self.is_in_memory = is_in_memory
        self.kind = str(model.config.get("model_type", ""))
        self.tied = ties_head(model.config) or not any(map(is_head, model.tensors))
        self.embed_lora = embed_lora
        self.targets: list[Target] = []
        self.wholes: list[Whole] = []
        self.kernels: dict[str, dict[str, str]] = {}
        self.separate_experts: dict[str, dict[str, dict[int, TensorSource]]] = {}

    def add(self, name: str, info: TensorSource) -> None:
        memory = self.in_memory(name)
        module, _, end = memory.rpartition(".")
        if not self.is_in_memory and (match := _EXPERT.fullmatch(name)):
            place = memory.split(".experts.")[0] + ".experts"
            words = self.separate_experts.setdefault(place, {})
            words.setdefault(match[3], {})[int(match[2])] = info
        elif match := _KERNEL.fullmatch(name):
            self.kernels.setdefault(self.in_memory(match[1] + match[3]), {})[match[2]] = name
        elif len(info.shape) == 3 and ".experts." in memory:
            count, rows, columns = info.shape
            size = rows * columns
            spans = tuple((Span(name, n * size, (n + 1) * size),) for n in range(count))
            transposed = self.kind in known_layouts().transposed_experts
            self.targets.append(Target(memory, (rows, columns), spans, "experts", transposed))
        elif len(info.shape) == 2 and end == "weight":
            self.add_matrix(name, memory, module, info)
        else:
            is_norm = end in ("weight", "bias") and self.is_norm(name)
            self.wholes.append(Whole(memory, (name,), module if is_norm else None))

    def add_matrix(self, name: str, memory: str, module: str, info: TensorSource) -> None:
        last = module.rpartition(".")[2]
        shape = (info.shape[0], info.shape[1])
        spans = ((Span(name, 0, info.count),),)
        if _EMBEDDING.fullmatch(last) or is_head(name):
            embedding = not is_head(name)
            if self.embed_lora and not (self.tied and not embedding):
                kind = "embedding" if embedding else "linear"
                self.targets.append(Target(module, shape, spans, kind, embedding))
            else:
                # A separate copy would untie the head.
                self.wholes.append(Whole(memory, (name,), None if self.tied else module))
        elif self.is_router(name) or (last == "out_proj" and self.kind in _MAMBAS):
            self.wholes.append(Whole(memory, (name,)))
        else:
            self.targets.append(Target(module, shape, spans, transposed=self.kind in _TRANSPOSED))

    def is_router(self, name: str) -> bool:
        """Return whether a matrix is a router's, which may not be a linear layer in memory."""
        place = re.sub(r"\.[^.]+(\.layer)?\.weight$", "", name)
        direct = (f"{place}.experts.", f"{place}.input_linear.")
        alone = ".experts." not in name and not re.search(r"\.(shared_)?experts?\.", name)
        return (
            alone and "_proj" not in name and any(n.startswith(direct) for n in self.model.tensors)
        )

    def is_norm(self, name: str) -> bool:
        module = name.rpartition(".")[0]
        weight = self.model.tensors.get(f"{module}.weight")
        # PEFT wants all of a module, also statistics that are no floating numbers.
        has_more = f"{module}.running_mean" in self.model.tensors
        return weight is not None and len(weight.shape) == 1 and not has_more

    def in_memory(self, name: str) -> str:
        if self.is_in_memory:
            return name
        if self.kind == "nemotron_h":
            name = re.sub(r"^backbone\.", "model.", name)
        for pattern, text in known_layouts().names_in_memory:
            name = re.sub(pattern, text, name)
        return name

    def experts(self) -> Iterator[Target]:
        """Yield the experts stored one by one, with gate and up joined as they are in memory."""
        for place, words in self.separate_experts.items():
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
        tuple(Span(part[number].name, 0, part[number].count) for part in parts)
        for number in sorted(parts[0])
    )
    first = [part[min(part)] for part in parts]
    return Target(name, (sum(x.shape[0] for x in first), first[0].shape[1]), matrices, "experts")
