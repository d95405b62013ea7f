"""A base and an adapter → a checkpoint whose adapted tensors are derived as they stream. No torch.

An adapter names the modules of a model in memory; files name some of them otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..conversion.known_layouts import (
    NAMES_IN_FILES,
    SINGLE_EXPERTS,
    STACKED_EXPERTS,
    TRANSPOSED_EXPERTS,
)
from ..dtypes import BY_NAME, DType, Kind
from ..errors import InputError
from ..messages import counted, first_names, printable
from ..structure.embeddings import is_head, tied_head, ties_head
from ..tensors.lora_delta import LoraTensor, OffsetTensor
from ..tensors.source import StoredTensor, TensorSource
from .peft_format import Adapter, Pair, open_adapter


@dataclass(frozen=True)
class Adapted(Checkpoint):
    """A base with an adapter on it; `changes` are what the config has to say differently."""

    changes: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        config = Checkpoint(self.path, self.shards, {}, dequantized=self.dequantized).config
        if not config:
            return {}
        text = config.get("text_config")
        for key, value in self.changes.items():
            inside = isinstance(text, dict) and key in text and key not in config
            place: dict[str, Any] = text if inside and text else config
            place[key] = value
        return config


def open_adapted(base: Checkpoint, adapter: Path) -> Adapted:
    """The base with the adapter of a folder. InputError lists all that fits nothing in the base."""
    return AdapterApplication(base, open_adapter(adapter)).result()


def wide(dtype: DType) -> DType:
    """In what sums with a tensor are made and handed on, so that only the result is rounded."""
    return BY_NAME["F64" if dtype.bits > 16 else "F32"]


@dataclass
class AdapterApplication:
    base: Checkpoint
    adapter: Adapter
    tensors: dict[str, TensorSource] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)

    def result(self) -> Adapted:
        self.tensors.update(self.base.tensors)
        for name, info in self.adapter.whole.items():
            self.replaced(name, info)
        for pair in self.adapter.pairs:
            self.adapted(pair)
        path, base = self.adapter.path, self.base.path
        faults = []
        if self.lost:
            faults.append(
                f"{path}: {counted(len(self.lost), 'tensors of the adapter match nothing')} in "
                f"{base}: {first_names(self.lost)}\n  it was trained on another model"
            )
        if self.misfits:
            faults.append(f"{path}: does not fit {base}: {'; '.join(self.misfits[:3])}")
        if faults:
            raise InputError("\n".join(faults))
        shards = (*self.base.shards, self.adapter.shard)
        return Adapted(base, shards, self.tensors, self.changes, dequantized=self.base.dequantized)

    def names(self, name: str) -> Iterator[str]:
        yield name
        for pattern, text in NAMES_IN_FILES:
            renamed = re.sub(pattern, text, name)
            if renamed != name:
                yield renamed

    def find(self, name: str) -> str | None:
        return next((n for n in self.names(name) if n in self.tensors), None)

    def replaced(self, name: str, info: StoredTensor) -> None:
        """A tensor that was trained as it is, or an embedding that got more rows."""
        found = self.find(name)
        if found is None and is_head(name) and ties_head(self.base.config):
            # PEFT saves the head beside a resized embedding even if both are the same.
            if self.names_head():
                self.untie(name, replace(info, declared_dtype=None))
            return
        if found is None:
            if not self.apart(name, info):
                self.lost.append(info.name)
            return
        old = self.tensors[found]
        rows = old.shape[:1] != info.shape[:1] and old.shape[1:] == info.shape[1:]
        if old.shape != info.shape and not (rows and len(info.shape) == 2):
            self.misfit(found, old.shape, info.shape)
        elif rows:
            self.changes["vocab_size"] = info.shape[0]
        self.tensors[found] = replace(
            info, name=found, declared_dtype=old.declared_dtype or old.dtype
        )

    def apart(self, name: str, info: StoredTensor) -> bool:
        """A kernel over queries, keys and values, which files hold one by one."""
        names = [name.replace(".conv1d.", f".{part}_conv1d.") for part in "qkv"]
        olds = [self.tensors[n] for n in names if n != name and n in self.tensors]
        if len(olds) < 3 or sum(old.shape[0] for old in olds) != info.shape[0]:
            return False
        begin = info.offset
        for old in olds:
            size = old.count * info.dtype.bytes
            part = replace(info, name=old.name, shape=old.shape, offset=begin, nbytes=size)
            self.tensors[old.name] = replace(part, declared_dtype=old.declared_dtype or old.dtype)
            begin += size
        return True

    def names_head(self) -> bool:
        config = self.adapter.config
        listed = [config.get(key) or [] for key in ("modules_to_save", "target_modules")]
        return any("lm_head" in words for words in listed)

    def untie(self, name: str, head: TensorSource) -> None:
        """The base has no head of its own, and the adapter makes one."""
        self.tensors[name] = head
        self.changes["tie_word_embeddings"] = False

    def adapted(self, pair: Pair) -> None:
        weight = f"{pair.module}.weight"
        found = self.find(weight)
        if found is not None and not pair.depth:
            self.sum(found, pair)
            return
        head = tied_head(weight, pair.sides, self.tensors, self.base.config)
        if head is not None:
            self.untie(weight, head)
            self.sum(weight, pair)
        elif not self.experts(pair):
            self.lost.append(pair.b.name)

    def sum(self, name: str, pair: Pair) -> None:
        """A matrix, or a kernel as a matrix, with its delta; and the bias with its own."""
        base, sides = self.tensors[name], pair.sides
        shape = (base.shape[0], math.prod(base.shape[1:])) if base.shape else (0, 0)
        square = shape[0] == shape[1] and bool(self.adapter.config.get("fan_in_fan_out"))
        turned = pair.embedding or square or shape != sides
        if shape != (sides[::-1] if turned else sides) or base.dtype.kind is not Kind.FLOAT:
            self.misfit(name, base.shape, sides)
            return
        listed = self.adapter.config.get("target_parameters") or ()
        weight = f"{pair.module}.weight"
        wrapped = any(f".{weight}".endswith(f".{name}") for name in listed)
        scale = self.adapter.scale(weight if wrapped else pair.module, pair.rank)
        parts = (base, pair.a, pair.b, *([pair.magnitude] if pair.magnitude else []))
        self.put(name, parts, sheet=shape, scale=scale, transposed=turned)
        if pair.bias is not None:
            self.bias(name.removesuffix("weight") + "bias", pair.bias, scale)

    def bias(self, name: str, trained: StoredTensor, scale: float) -> None:
        base = self.tensors.get(name)
        if base is None:
            self.lost.append(trained.name)
        elif base.shape != trained.shape:
            self.misfit(name, base.shape, trained.shape)
        else:
            said = base.declared_dtype or base.dtype
            parts = (base, trained)
            self.tensors[name] = OffsetTensor(name, wide(said), base.shape, parts, said, scale)

    def experts(self, pair: Pair) -> bool:
        """Parameters that are no `weight`: the matrices of all experts, stacked or one by one."""
        full: list[str] = []
        for target in self.adapter.config.get("target_parameters") or ():
            module, _, name = str(target).rpartition(".")
            if not f".{pair.module}".endswith(f".{module}"):
                continue
            full += self.names(f"{pair.module}.{name}")
        usual = self.base.config.get("model_type") in TRANSPOSED_EXPERTS
        # Up and down of experts without a gate have each other's sides.
        return any(
            self.stacked(name, pair, turned) or self.one_by_one(name, pair, turned)
            for turned, name in product((usual, not usual), full)
        )

    def stacked(self, name: str, pair: Pair, turned: bool) -> bool:
        parent, _, last = name.rpartition(".experts.")
        for found in (name, f"{parent}.{STACKED_EXPERTS.get(last)}.weight"):
            base = self.tensors.get(found)
            if base is None or isinstance(base, LoraTensor) or len(base.shape) not in (2, 3):
                continue
            if len(base.shape) == 2:
                self.sum(found, pair)
                return True
            experts, sheet = base.shape[0], (base.shape[1], base.shape[2])
            if sheet == _sides(pair, turned):
                key = f"{pair.module}.{name.rpartition('.')[2]}"
                scale = self.adapter.scale(key, pair.rank // experts)
                how = {"sheet": sheet, "scale": scale, "transposed": turned}
                self.put(found, (base, pair.a, pair.b), experts=experts, **how)
                return True
        return False

    def one_by_one(self, name: str, pair: Pair, turned: bool) -> bool:
        parent, _, last = name.rpartition(".")
        for parts in SINGLE_EXPERTS.get(last, ()):
            numbers = range(self.experts_of(f"{parent}.{{}}.{parts[0]}.weight"))
            names = [[f"{parent}.{n}.{part}.weight" for part in parts] for n in numbers]
            if not names or any(n not in self.tensors for one in names for n in one):
                continue
            shapes = [self.tensors[n].shape for n in names[0]]
            sheet = (sum(shape[0] for shape in shapes), shapes[0][1])
            if sheet != _sides(pair, turned) or isinstance(self.tensors[names[0][0]], LoraTensor):
                continue
            scale = self.adapter.scale(f"{pair.module}.{last}", pair.rank // len(names))
            how: dict[str, Any] = {"experts": len(names), "scale": scale, "transposed": turned}
            for expert, row in product(numbers, range(len(parts))):
                base = self.tensors[names[expert][row]]
                begin = sum(shape[0] for shape in shapes[:row])
                sources, how["sheet"] = (base, pair.a, pair.b), (base.shape[0], base.shape[1])
                self.put(base.name, sources, expert=expert, row=begin, **how)
            return True
        return False

    def experts_of(self, form: str) -> int:
        return next(n for n in count() if form.format(n) not in self.tensors)

    def put(self, name: str, parts: tuple[TensorSource, ...], **how: Any) -> None:
        said = parts[0].declared_dtype or parts[0].dtype
        self.tensors[name] = LoraTensor(name, wide(said), parts[0].shape, parts, said, **how)

    def misfit(self, name: str, base: tuple[int, ...], adapter: tuple[int, ...]) -> None:
        shapes = f"{list(base)} in the base, {list(adapter)} in the adapter"
        self.misfits.append(f"{printable(name)} is {shapes}")


def _sides(pair: Pair, turned: bool) -> tuple[int, int]:
    """Return (out, in) of one expert's matrix; its delta is (B A)ᵀ if `turned`."""
    return pair.sides[::-1] if turned else pair.sides
