"""A base and an adapter → a checkpoint whose adapted tensors are derived as they stream. No torch.

An adapter names the modules of a model in memory; files name some of them otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ..checkpoint.folder import Checkpoint
from ..conversion.in_memory import Holders, Part, head_shares, rope_order
from ..conversion.known_layouts import known_layouts
from ..conversion.locate import Locator
from ..dtypes import BY_NAME, Kind
from ..errors import InputError
from ..messages import first_names
from ..structure.embeddings import (
    embeddings,
    is_head,
    is_vocabulary,
    rows_of,
    tied_head,
    tied_name,
    ties_head,
    vocabulary_names,
)
from ..tensors.lora_delta import LoraTensor, OffsetTensor
from ..tensors.row_gather import RowMap, gather_rows
from ..tensors.source import DerivedTensor, StoredTensor, TensorSource, declared_dtype
from ..tensors.views import concat, reshape, slice_axis
from .faults import Faults
from .heads import class_with_head, is_language_head
from .peft_format import CONFIG, Adapter, Pair, open_adapter


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


class _Sheets(NamedTuple):
    """The equal matrices (rows, columns) that a parameter consists of: one, or one an expert."""

    experts: int
    rows: int
    columns: int

    @property
    def sides(self) -> tuple[int, int]:
        return self.rows, self.columns


def _without_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


@dataclass
class AdapterApplication:
    """An adapter on its way into the `tensors` of the base."""

    base: Checkpoint
    adapter: Adapter
    tensors: dict[str, TensorSource]
    changes: dict[str, Any] = field(default_factory=dict)
    windows: dict[str, dict[int, str]] = field(default_factory=dict)
    orders: dict[str, RowMap] = field(default_factory=dict)
    """The order of rows in the file, by the names of windows where it is another one in memory."""

    def __post_init__(self) -> None:
        self.locator = Locator(self.base.tensors, self.base.config)
        self.faults = Faults(self.adapter.path, self.base.path, self.locator.memory)
        self.sources: dict[str, TensorSource] = dict(self.base.tensors)
        self.renamed = self.rename_modules()

    def result(self) -> Adapted:
        for name, info in self.adapter.whole.items():
            self.replace_tensor(name, info)
        # Of parameters that one module holds, PEFT wraps the first first.
        for pair in sorted(self.adapter.pairs, key=lambda pair: -pair.depth):
            self.adapt(pair)
        for name, info in sorted(
            self.adapter.token_rows.items(), key=lambda rows: is_head(rows[0])
        ):
            self.replace_rows(name, info)
        self.join_windows()
        self.add_head()
        short = self.short_tensors()
        rows = self.tensors[short[0]].shape[0] if short else 0
        self.faults.refuse(short, rows, self.changes.get("vocab_size", rows))
        base, shards = self.base, (*self.base.shards, self.adapter.shard)
        facts = (self.adapter.path, rows_of(base), self.changes)
        return Adapted(base.path, shards, self.tensors, *facts, notes=base.notes, files=base.files)

    def short_tensors(self) -> list[str]:
        """Return tensors that keep the rows of the base beside an embedding that got others."""
        if "vocab_size" not in self.changes:
            return []
        names = [n for n in vocabulary_names(self.base) if not (is_head(n) and self.is_tied)]
        before, after = self.base.tensors, self.tensors
        return [n for n in names if n in after and after[n].shape[:1] == before[n].shape[:1]]

    @property
    def is_tied(self) -> bool:
        return ties_head(self.base.config)

    def rename_modules(self) -> dict[str, str]:
        """Return the adapter's names, of tensors and modules, as the base begins them."""
        fits: dict[str, Callable[[str], bool]] = {
            name: partial(self.has_place, info) for name, info in self.adapter.whole.items()
        }
        fits |= {name: self.has_tensor for name in self.adapter.token_rows}
        pairs: dict[str, list[Pair]] = {}
        for pair in self.adapter.pairs:
            pairs.setdefault(pair.module, []).append(pair)
        fits |= {module: partial(self.takes, group) for module, group in pairs.items()}
        try:
            return self.locator.agreed(fits)
        except ValueError as error:
            raise InputError(
                f"{self.adapter.path}: {error} in {self.base.path}\n"
                f"  rename the modules of the adapter as the base names them"
            ) from None

    def has_tensor(self, name: str) -> bool:
        return any(self.locator.holders(name))

    def has_place(self, trained: StoredTensor, name: str) -> bool:
        """Return whether a trained copy can replace what the base calls `name`."""
        for holders in self.locator.holders(name):
            shapes = [self.sources[part].shape for part in chain(*holders)]
            if len(shapes) > 1 or shapes[0][1:] == trained.shape[1:]:
                return True
        return False

    def takes(self, pairs: list[Pair], module: str) -> bool:
        """Return whether every pair of a module fits a parameter of `module` of the base."""
        return all(any(self.places(pair, module)) for pair in pairs)

    def parameters(self, pair: Pair) -> list[tuple[str, bool]]:
        """Return the parameters that a pair may adapt, in the order in which modules have them,
        and whether each is a target by name."""
        targets = self.adapter.config.get("target_parameters") or ()
        named = {
            name
            for target in map(str, targets)
            if f".{pair.module}.{(name := target.rpartition('.')[2])}".endswith(f".{target}")
        }
        plain = [] if pair.depth else [("weight", "weight" in named)]
        others = sorted(named - {"weight"}, key=lambda name: (name.startswith("down"), name))
        return [*plain, *((name, True) for name in others)]

    def places(self, pair: Pair, module: str) -> Iterator[tuple[Holders, _Sheets, str]]:
        """Yield the tensors that a pair fits, as sheets, and the key of its scale."""
        for parameter, by_name in self.parameters(pair):
            name = f"{module}.{parameter}"
            windows = (self.window(part, pair) for part in self.locator.parts(name))
            single = (((window,),) for window in windows if window)
            for holders in chain(self.locator.holders(name), single):
                sheets = self.sheets(holders, pair)
                if sheets and pair.sides in (sheets.sides, sheets.sides[::-1]):
                    yield holders, sheets, f"{pair.module}.{parameter}" if by_name else pair.module

    def sheets(self, holders: Holders, pair: Pair) -> _Sheets | None:
        """Return the sheets that tensors of the base form together; None if they form none."""
        tensors = [self.sources[part] for part in chain(*holders)]
        shapes = [tensor.shape for tensor in tensors]
        if any(tensor.dtype.kind is not Kind.FLOAT for tensor in tensors):
            return None
        if len(shapes) == 1:
            shape = shapes[0]
            if len(shape) == 3 and len(pair.a.shape) == 2 and not pair.rank % shape[0]:
                return _Sheets(*shape)
            return _Sheets(1, shape[0], math.prod(shape[1:])) if shape else None
        # Biases and magnitudes would have to be split, too.
        joint = pair.bias or pair.magnitude or pair.rank % len(holders)
        if joint or any(len(shape) != 2 for shape in shapes):
            return None
        rows = sum(self.sources[part].shape[0] for part in holders[0])
        return _Sheets(len(holders), rows, shapes[0][1])

    def window(self, part: Part, pair: Pair) -> str | None:
        """Name the rows of a tensor that a pair for one of its parts adapts; None if unclear.

        The name is that of a source until `join_windows`.
        """
        base, rows = self.sources[part.holder], pair.sides[0]
        if len(base.shape) != (2 if part.expert is None else 3):
            return None
        extent, expert = base.shape[-2], part.expert or 0
        shares: list[Any] = [1] * part.size
        if rows * part.size != extent:
            # Queries have more heads than keys and values.
            heads = head_shares(self.base.config)
            shares = heads if part.size == len(heads) else []
        if not shares or expert >= base.shape[0]:
            return None
        if sum(shares) * rows != extent * shares[part.place]:
            return None
        begin = expert * extent + extent * sum(shares[: part.place]) // sum(shares)
        name = f"{part.holder}[{begin}:{begin + rows}]"
        if part.rope_heads:
            if rows % (2 * part.rope_heads):
                return None
            order = rope_order(rows, part.rope_heads)
            places = sorted(range(rows), key=order.__getitem__)
            self.orders[name] = RowMap([(0, place) for place in places])
        flat = reshape(base, (math.prod(base.shape[:-1]), base.shape[-1]), name)
        self.sources[name] = slice_axis(flat, 0, begin, begin + rows, name)
        self.windows.setdefault(part.holder, {})[begin] = name
        return name

    def join_windows(self) -> None:
        """Put adapted rows back into the tensors that they are parts of."""
        for holder, windows in self.windows.items():
            base = self.sources[holder]
            flat = reshape(base, (math.prod(base.shape[:-1]), base.shape[-1]), holder)
            pieces, row = list[TensorSource](), 0
            for begin, name in sorted(windows.items()):
                if name in self.tensors:
                    pieces += [slice_axis(flat, 0, row, begin, holder)] if begin > row else []
                    pieces.append(self.tensors.pop(name))
                    row = begin + pieces[-1].shape[0]
            if pieces:
                end = flat.shape[0]
                pieces += [slice_axis(flat, 0, row, end, holder)] if row < end else []
                joined = reshape(concat(pieces, 0, holder), base.shape, holder)
                self.tensors[holder] = replace(joined, declared_dtype=declared_dtype(base))

    def is_transposed(self, sheets: _Sheets, pair: Pair, is_parameter: bool) -> bool:
        """Return whether the delta is (B A)ᵀ. Raises InputError where nothing tells."""
        if sheets.rows != sheets.columns:
            return sheets.sides != pair.sides
        if not is_parameter or sheets.experts == 1:
            known = known_layouts().is_transposed(self.base.config, pair.module)
            given = bool(self.adapter.config.get("fan_in_fan_out"))  # of PEFT's last module
            return pair.embedding or (given if known is None else known)
        if self.base.config.get("model_type") in known_layouts().transposed_experts:
            return True
        return self.adapter.turns_square_experts(pair)

    def replace_tensor(self, name: str, trained: StoredTensor) -> None:
        """Take a tensor that was trained as it is, or an embedding that got more rows."""
        holders = next(self.locator.holders(self.renamed[name]), None)
        if is_head(name) and self.is_tied and (holders is None or self.trains_apart()):
            # PEFT saves the head beside a resized embedding even if both are the same.
            if self.trains_apart():
                head = holders[0][0] if holders else name
                self.untie(head, replace(trained, name=head, declared_dtype=None))
            return
        if holders is None:
            self.faults.unmatched.append(trained)
            return
        names = list(chain(*holders))
        if len(names) > 1:
            self.split_tensor(names, trained)
            return
        match, old = names[0], self.tensors[names[0]]
        of_tokens = is_vocabulary(match) or old.shape[:1] == (self.base.config.get("vocab_size"),)
        resized = old.shape[:1] != trained.shape[:1] and old.shape[1:] == trained.shape[1:]
        if old.shape != trained.shape and not (resized and len(trained.shape) == 2):
            self.faults.mismatch(match, old.shape, trained.shape)
        elif resized and of_tokens:
            self.changes["vocab_size"] = trained.shape[0]
        elif self.is_tied and self.trains_apart() and (tied := tied_name(old, self.base.config)):
            # A copy of the embedding was trained; the head stayed what it was.
            self.untie(tied, self.tensors.get(tied, old))
        new = replace(trained, name=match, declared_dtype=declared_dtype(old))
        self.tensors[match] = self.sources[match] = new  # to which factors are added, with its rows

    def split_tensor(self, names: list[str], trained: StoredTensor) -> None:
        """Replace tensors by the parts, one after the other, of what is one in memory."""
        olds = [self.tensors[name] for name in names]
        if sum(old.count for old in olds) != trained.count:
            self.faults.unmatched.append(trained)
            return
        begin = trained.offset
        for old in olds:
            size = old.count * trained.dtype.bytes
            part = replace(trained, name=old.name, shape=old.shape, offset=begin, nbytes=size)
            self.tensors[old.name] = replace(part, declared_dtype=declared_dtype(old))
            begin += size

    def replace_rows(self, name: str, trained: StoredTensor) -> None:
        """Take the rows of single tokens that were trained, of an embedding or a head."""
        indices = self.adapter.token_indices(name)
        holders = next(self.locator.holders(self.renamed[name]), ())
        if not holders and is_head(name) and self.is_tied:
            alike = (e for e in embeddings(self.base.tensors) if e.shape[1:] == trained.shape[1:])
            holders = tuple((embedding.name,) for embedding in alike)[:1]
        if len(list(chain(*holders))) != 1:
            self.faults.unmatched.append(trained)
            return
        old = self.tensors[holders[0][0]]
        fits = trained.shape == (len(indices), *old.shape[1:]) and max(indices) < old.shape[0]
        if not fits:
            self.faults.mismatch(old.name, old.shape, trained.shape)
            return
        rows = [(0, row) for row in range(old.shape[0])]
        for place, row in enumerate(indices):
            rows[row] = (1, place)
        self.tensors[old.name] = gather_rows(0, {0: old, 1: trained}, RowMap(rows))

    def trains_apart(self) -> bool:
        """Whether training moved the head and the embedding of a tied base apart."""
        config = self.adapter.config
        saved, targets = (config.get(key) or [] for key in ("modules_to_save", "target_modules"))
        if "lm_head" in saved or "lm_head" in targets:
            return True
        # PEFT trains a copy of the embedding, unless it is asked to tie the head to that.
        return not config.get("ensure_weight_tying") and any(
            is_vocabulary(f"{word}.weight") for word in saved
        )

    def untie(self, name: str, head: TensorSource) -> None:
        """Give a base without a head of its own the one that the adapter makes, or leaves.

        Raises InputError where encoder and decoder share the embedding: the config unties them all.
        """
        if self.base.config.get("is_encoder_decoder"):
            raise InputError(
                f"{self.adapter.path}: trains a head apart from its embedding, and "
                f"{self.base.path} ties both to those of encoder and decoder\n"
                f"  merge it with PEFT: model.merge_and_unload().save_pretrained(…)"
            )
        self.tensors[name] = replace(head, name=name)
        self.changes["tie_word_embeddings"] = False

    def add_head(self) -> None:
        """Give a language model the head of the classifier that was trained, in place of its own.

        Raises InputError if the adapter does not tell of which class the result is.
        """
        saved = self.adapter.config.get("modules_to_save") or ()
        heads = [tensor for tensor in self.faults.unmatched if tensor.name.split(".")[0] in saved]
        if not heads or len(heads) < len(self.faults.unmatched) or self.faults.mismatched:
            return
        changes = class_with_head(self.base.config, self.adapter.config, heads)
        if changes is None:
            names = first_names([tensor.name for tensor in heads])
            raise InputError(
                f"{self.adapter.path}: brings a head of its own, {names}, which {self.base.path} "
                f"does not have\n  set task_type in {CONFIG} to the kind of head, such as SEQ_CLS"
            )
        dtype = declared_dtype(max(self.tensors.values(), key=lambda tensor: tensor.count))
        # Files of a model without a head begin names without its name.
        shorter = [(old, new) for old, new in self.renamed.items() if old.endswith(f".{new}")]
        begin = shorter[0][0].removesuffix(shorter[0][1]) if shorter else ""
        body = {n: tensor for n, tensor in self.tensors.items() if not is_language_head(n)}
        self.tensors = {begin + n: reshape(t, t.shape, begin + n) for n, t in body.items()}
        self.tensors |= {head.name: replace(head, declared_dtype=dtype) for head in heads}
        self.changes |= changes
        self.faults.unmatched = []

    def adapt(self, pair: Pair) -> None:
        module = self.renamed[pair.module]
        for holders, sheets, key in self.places(pair, module):
            first = holders[0][0]
            self.tensors.setdefault(first, self.sources[first])
            if not isinstance(self.tensors[first], LoraTensor):
                self.add_delta(holders, sheets, pair, key)
                if is_head(first) and self.is_tied:
                    self.untie(first, self.tensors[first])
                return
        weight = f"{module}.weight"
        match = None if pair.depth else next(self.locator.holders(weight), None)
        head = self.tensors.get(weight) if is_head(weight) else None
        head = head or tied_head(weight, pair.sides, self.tensors, self.base.config)
        if match is not None:
            self.faults.mismatch(match[0][0], self.tensors[match[0][0]].shape, pair.sides)
        elif head is not None:
            self.untie(weight, head)
            self.add_delta(((weight,),), _Sheets(1, *head.shape), pair, pair.module)
        else:
            self.skip_shared(pair)

    @cached_property
    def twins(self) -> dict[str, list[Pair]]:
        """Pairs on modules of the base, by their names without the number of the layer."""
        twins: dict[str, list[Pair]] = {}
        for pair in self.adapter.pairs:
            if f"{self.renamed[pair.module]}.weight" in self.sources:
                twins.setdefault(_without_layer(pair.module), []).append(pair)
        return twins

    def skip_shared(self, pair: Pair) -> None:
        """Skip a copy of a pair, on a module that layers share: the base has one, PEFT many."""
        twins = self.twins.get(_without_layer(pair.module), ())
        if any(self.adapter.are_copies(pair, twin) for twin in twins):
            return
        layer = re.match(r".*?\.\d+\.", self.renamed[pair.module])
        is_apart = twins and layer and any(name.startswith(layer[0]) for name in self.sources)
        (self.faults.apart if is_apart else self.faults.unmatched).append(pair.b)

    def add_delta(self, holders: Holders, sheets: _Sheets, pair: Pair, key: str) -> None:
        """Add the delta of a pair to the tensors that hold its parameter, and that of its bias."""
        transposed = self.is_transposed(sheets, pair, key != pair.module)
        scale = self.adapter.scale(key, pair.rank // sheets.experts)
        names = list(chain(*holders))
        order = self.orders.get(names[0])
        of_rows = [pair.b, *([pair.magnitude] if pair.magnitude else [])]
        ordered = [gather_rows(0, {0: x}, order) for x in of_rows] if order else of_rows
        factors = (pair.a, *ordered)
        facts: dict[str, Any] = {"scale": scale, "transposed": transposed}
        if len(names) == 1:
            facts |= {"sheet": sheets.sides, "experts": sheets.experts}
            self.put(names[0], factors, **facts)
            if pair.bias is not None:
                self.add_bias(names[0].removesuffix("weight") + "bias", pair.bias, scale)
            return
        for expert, parts in enumerate(holders):
            row = 0
            for name in parts:
                rows = self.tensors[name].shape[0]
                place: dict[str, Any] = {"experts": sheets.experts, "expert": expert, "row": row}
                self.put(name, factors, sheet=(rows, sheets.columns), **place, **facts)
                row += rows

    def add_bias(self, name: str, trained: StoredTensor, scale: float) -> None:
        base = self.tensors.get(name)
        if base is None:
            self.faults.unmatched.append(trained)
        elif base.shape != trained.shape:
            self.faults.mismatch(name, base.shape, trained.shape)
        else:
            self.put(name, (trained,), OffsetTensor, scale=scale)

    def put(
        self,
        name: str,
        factors: tuple[TensorSource, ...],
        kind: Callable[..., DerivedTensor] = LoraTensor,
        **facts: Any,
    ) -> None:
        base = self.tensors[name]
        declared = declared_dtype(base)
        # Sums are computed and passed on in a wider dtype, so that only the result is rounded.
        dtype = BY_NAME["F64" if declared.bits > 16 else "F32"]
        self.tensors[name] = kind(name, dtype, base.shape, (base, *factors), declared, **facts)
