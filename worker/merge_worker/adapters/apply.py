"""A base and an adapter → a checkpoint whose adapted tensors are derived as they stream. No torch.

An adapter names the modules of a model in memory; files name some of them otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, product
from pathlib import Path
from typing import Any

from ..checkpoint.folder import Checkpoint
from ..conversion.known_layouts import known_layouts
from ..dtypes import BY_NAME, Kind
from ..errors import InputError
from ..messages import counted, first_names, printable
from ..structure.embeddings import (
    is_head,
    is_vocabulary,
    rows_of,
    tied_head,
    ties_head,
    vocabulary_names,
)
from ..tensors.lora_delta import LoraTensor, OffsetTensor
from ..tensors.source import DerivedTensor, StoredTensor, TensorSource, declared_dtype
from .peft_format import Adapter, Pair, open_adapter


@dataclass(frozen=True)
class Adapted(Checkpoint):
    """A base with the adapter of a folder on it.

    `changes` are what the config has to say differently, `base_rows` the base's rows of tokens.
    """

    adapter: Path
    base_rows: int | None
    changes: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        config = Checkpoint(self.path, self.shards, {}).config
        if not config:
            return {}
        text = config.get("text_config")
        for key, value in self.changes.items():
            inside = isinstance(text, dict) and key in text and key not in config
            place: dict[str, Any] = text if inside and text else config
            place[key] = value
        return config


def open_adapted(base: Checkpoint, adapter: Path) -> Adapted:
    """Apply the adapter of a folder. InputError lists all its tensors that do not fit the base."""
    return AdapterApplication(base, open_adapter(adapter), dict(base.tensors)).result()


@dataclass
class AdapterApplication:
    """An adapter on its way into the `tensors` of the base."""

    base: Checkpoint
    adapter: Adapter
    tensors: dict[str, TensorSource]
    changes: dict[str, Any] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def result(self) -> Adapted:
        for name, info in self.adapter.whole.items():
            self.replace_tensor(name, info)
        for pair in self.adapter.pairs:
            self.adapt(pair)
        path, base, faults = self.adapter.path, self.base.path, []
        if self.unmatched:
            fault = counted(len(self.unmatched), "tensors of the adapter match nothing")
            faults.append(
                f"{path}: {fault} in {base}: {first_names(self.unmatched)}\n"
                f"  it was trained on another model"
            )
        if self.mismatched:
            faults.append(f"{path}: does not fit {base}: {'; '.join(self.mismatched[:3])}")
        if short := self.short_tensors():
            rows, more = self.tensors[short[0]].shape[0], self.changes["vocab_size"]
            faults.append(
                f"{path}: has {more} rows of tokens, but none for {first_names(short)} of {base}, "
                f"which has {rows}\n"
                f"  save the adapter with its head: save_embedding_layers=True"
            )
        if faults:
            raise InputError("\n".join(faults))
        shards = (*self.base.shards, self.adapter.shard)
        facts = (path, rows_of(self.base), self.changes)
        return Adapted(base, shards, self.tensors, *facts, notes=self.base.notes)

    def short_tensors(self) -> list[str]:
        """Return tensors that keep the rows of the base beside an embedding that got others."""
        if "vocab_size" not in self.changes:
            return []
        names = [n for n in vocabulary_names(self.base) if not (is_head(n) and self.is_tied)]
        before = self.base.tensors
        return [n for n in names if self.tensors[n].shape[:1] == before[n].shape[:1]]

    @property
    def is_tied(self) -> bool:
        return ties_head(self.base.config)

    def names(self, name: str) -> Iterator[str]:
        yield name
        for pattern, text in known_layouts().names_in_files:
            renamed = re.sub(pattern, text, name)
            if renamed != name:
                yield renamed

    def find(self, name: str) -> str | None:
        return next((n for n in self.names(name) if n in self.tensors), None)

    def replace_tensor(self, name: str, trained: StoredTensor) -> None:
        """Take a tensor that was trained as it is, or an embedding that got more rows."""
        match = self.find(name)
        if is_head(name) and self.is_tied and (match is None or self.names_head()):
            # PEFT saves the head beside a resized embedding even if both are the same.
            if self.names_head():
                self.untie(match or name, replace(trained, declared_dtype=None))
            return
        if match is None:
            if not self.split_kernel(name, trained):
                self.unmatched.append(trained.name)
            return
        old = self.tensors[match]
        of_tokens = is_vocabulary(match) or old.shape[:1] == (self.base.config.get("vocab_size"),)
        resized = old.shape[:1] != trained.shape[:1] and old.shape[1:] == trained.shape[1:]
        if old.shape != trained.shape and not (resized and len(trained.shape) == 2):
            self.mismatch(match, old.shape, trained.shape)
        elif resized and of_tokens:
            self.changes["vocab_size"] = trained.shape[0]
        self.tensors[match] = replace(trained, name=match, declared_dtype=declared_dtype(old))

    def split_kernel(self, name: str, trained: StoredTensor) -> bool:
        """Replace the kernels of queries, keys and values by their parts of a joint one."""
        names = [name.replace(".conv1d.", f".{part}_conv1d.") for part in "qkv"]
        olds = [self.tensors[n] for n in names if n != name and n in self.tensors]
        if len(olds) < 3 or sum(old.shape[0] for old in olds) != trained.shape[0]:
            return False
        begin = trained.offset
        for old in olds:
            size = old.count * trained.dtype.bytes
            part = replace(trained, name=old.name, shape=old.shape, offset=begin, nbytes=size)
            self.tensors[old.name] = replace(part, declared_dtype=declared_dtype(old))
            begin += size
        return True

    def names_head(self) -> bool:
        config = self.adapter.config
        listed = [config.get(key) or [] for key in ("modules_to_save", "target_modules")]
        return any("lm_head" in words for words in listed)

    def untie(self, name: str, head: TensorSource) -> None:
        """Give a base without a head of its own the one that the adapter makes."""
        self.tensors[name] = head
        self.changes["tie_word_embeddings"] = False

    def adapt(self, pair: Pair) -> None:
        weight = f"{pair.module}.weight"
        match = self.find(weight)
        if match is not None and not pair.depth:
            self.add_delta(match, pair)
            if is_head(match) and self.is_tied:
                self.untie(match, self.tensors[match])
            return
        head = tied_head(weight, pair.sides, self.tensors, self.base.config)
        if head is not None:
            self.untie(weight, head)
            self.add_delta(weight, pair)
        elif not self.adapt_experts(pair):
            self.unmatched.append(pair.b.name)

    def add_delta(self, name: str, pair: Pair) -> None:
        """Add the delta of a matrix, or of a kernel as a matrix, and that of its bias."""
        base, sides = self.tensors[name], pair.sides
        shape = (base.shape[0], math.prod(base.shape[1:])) if base.shape else (0, 0)
        square = shape[0] == shape[1] and bool(self.adapter.config.get("fan_in_fan_out"))
        transposed = pair.embedding or square or shape != sides
        if shape != _sides(pair, transposed) or base.dtype.kind is not Kind.FLOAT:
            self.mismatch(name, base.shape, sides)
            return
        listed = self.adapter.config.get("target_parameters") or ()
        weight = f"{pair.module}.weight"
        wrapped = any(f".{weight}".endswith(f".{name}") for name in listed)
        scale = self.adapter.scale(weight if wrapped else pair.module, pair.rank)
        inputs = (base, pair.a, pair.b, *([pair.magnitude] if pair.magnitude else []))
        self.put(name, inputs, sheet=shape, scale=scale, transposed=transposed)
        if pair.bias is not None:
            self.add_bias(name.removesuffix("weight") + "bias", pair.bias, scale)

    def add_bias(self, name: str, trained: StoredTensor, scale: float) -> None:
        base = self.tensors.get(name)
        if base is None:
            self.unmatched.append(trained.name)
        elif base.shape != trained.shape:
            self.mismatch(name, base.shape, trained.shape)
        else:
            self.put(name, (base, trained), OffsetTensor, scale=scale)

    def adapt_experts(self, pair: Pair) -> bool:
        """Adapt parameters that are no `weight`: matrices of all experts, stacked or one by one."""
        full: list[str] = []
        for target in self.adapter.config.get("target_parameters") or ():
            module, _, name = str(target).rpartition(".")
            if f".{pair.module}".endswith(f".{module}"):
                full += self.names(f"{pair.module}.{name}")
        usual = self.base.config.get("model_type") in known_layouts().transposed_experts
        # Up and down of experts without a gate have each other's sides.
        return any(
            self.adapt_stacked(name, pair, transposed) or self.adapt_single(name, pair, transposed)
            for transposed, name in product((usual, not usual), full)
        )

    def adapt_stacked(self, name: str, pair: Pair, transposed: bool) -> bool:
        parent, _, last = name.rpartition(".experts.")
        for match in (name, f"{parent}.{known_layouts().stacked_experts.get(last)}.weight"):
            base = self.tensors.get(match)
            if base is None or isinstance(base, LoraTensor) or len(base.shape) not in (2, 3):
                continue
            if len(base.shape) == 2:
                self.add_delta(match, pair)
                return True
            experts, sheet = base.shape[0], (base.shape[1], base.shape[2])
            if sheet == _sides(pair, transposed):
                key = f"{pair.module}.{name.rpartition('.')[2]}"
                how: dict[str, Any] = {"experts": experts, "transposed": transposed}
                how["scale"] = self.adapter.scale(key, pair.rank // experts)
                self.put(match, (base, pair.a, pair.b), sheet=sheet, **how)
                return True
        return False

    def adapt_single(self, name: str, pair: Pair, transposed: bool) -> bool:
        parent, _, last = name.rpartition(".")
        for parts in known_layouts().single_experts.get(last, ()):
            pattern = f"{parent}.{{}}.{parts[0]}.weight"
            experts = next(n for n in count() if pattern.format(n) not in self.tensors)
            names = [[f"{parent}.{n}.{part}.weight" for part in parts] for n in range(experts)]
            if not names or any(n not in self.tensors for row in names for n in row):
                continue
            first, shapes = self.tensors[names[0][0]], [self.tensors[n].shape for n in names[0]]
            sheet = (sum(shape[0] for shape in shapes), shapes[0][1])
            if sheet != _sides(pair, transposed) or isinstance(first, LoraTensor):
                continue
            scale = self.adapter.scale(f"{pair.module}.{last}", pair.rank // experts)
            how: dict[str, Any] = {"experts": experts, "scale": scale, "transposed": transposed}
            for expert, number in product(range(experts), range(len(parts))):
                base = self.tensors[names[expert][number]]
                row = sum(shape[0] for shape in shapes[:number])
                sheet = (base.shape[0], base.shape[1])
                inputs = (base, pair.a, pair.b)
                self.put(base.name, inputs, sheet=sheet, expert=expert, row=row, **how)
            return True
        return False

    def put(
        self,
        name: str,
        inputs: tuple[TensorSource, ...],
        kind: Callable[..., DerivedTensor] = LoraTensor,
        **facts: Any,
    ) -> None:
        declared, shape = declared_dtype(inputs[0]), inputs[0].shape
        # Sums are computed and passed on in a wider dtype, so that only the result is rounded.
        dtype = BY_NAME["F64" if declared.bits > 16 else "F32"]
        self.tensors[name] = kind(name, dtype, shape, inputs, declared, **facts)

    def mismatch(self, name: str, base: tuple[int, ...], adapter: tuple[int, ...]) -> None:
        shapes = f"{list(base)} in the base, {list(adapter)} in the adapter"
        self.mismatched.append(f"{printable(name)} is {shapes}")


def _sides(pair: Pair, transposed: bool) -> tuple[int, int]:
    """Return (out, in) of one expert's matrix; its delta is (B A)ᵀ if `transposed`."""
    return pair.sides[::-1] if transposed else pair.sides
