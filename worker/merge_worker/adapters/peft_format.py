"""A folder in PEFT's format → low-rank pairs by module, trained copies, their scales. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.folder import exists
from ..checkpoint.header import Shard, read_shard
from ..checkpoint.json_files import read_json
from ..checkpoint.other_forms import nested_adapters
from ..errors import InputError
from ..messages import first_names, printable
from ..tensors.source import StoredTensor
from .patterns import PatternTable, TooComplex

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(?P<end>weight|bias))?"
)
_TOKENS = re.compile(r"(\.token_adapter)?\.trainable_tokens_delta(\.default)?$")
_WRAPPERS = re.compile(r"\.(token_adapter|base_layer|modules_to_save(\.default)?)(?=\.)")

_TOKENS_ALONE = "TRAINABLE_TOKENS"
_TOKENS_BESIDE = "trainable_token_indices"
"""The kind of adapter that has rows of tokens alone, and the field of a LoRA with such rows."""

_OTHER_KINDS = (
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "alora_invocation_tokens",
)
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Pair:
    """The factors of one module: `a` (rank, in …), `b` (out, rank …), as they are stored.

    Of an embedding they are (rank, rows) and (columns, rank). `module` is as the adapter has it,
    without `base_layer`, of which there are `depth` (modules with several adapted parameters).
    """

    module: str
    a: StoredTensor
    b: StoredTensor
    bias: StoredTensor | None = None
    magnitude: StoredTensor | None = None
    embedding: bool = False
    depth: int = 0

    @property
    def rank(self) -> int:
        """Rank of the factors, summed over experts where they hold several."""
        return self.a.shape[0]

    @property
    def sides(self) -> tuple[int, int]:
        """Return the output and input sizes of B A, with kernels flattened."""
        return self.b.shape[0], math.prod(self.a.shape[1:])


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: pairs in the order of the file, and tensors that replace those of a base.

    `token_rows` are rows of single tokens, by the name of the tensor whose rows they replace.
    """

    path: Path
    config: Mapping[str, Any] = field(repr=False)
    shard: Shard = field(repr=False)
    pairs: tuple[Pair, ...]
    whole: Mapping[str, StoredTensor]
    token_rows: Mapping[str, StoredTensor] = field(default_factory=dict)

    @property
    def version(self) -> tuple[int, int] | None:
        """Return the version of PEFT that wrote the adapter, which says so since 0.18."""
        match = re.match(r"(\d{1,9})\.(\d{1,9})", str(self.config.get("peft_version") or ""))
        return (int(match[1]), int(match[2])) if match else None

    def turns_square_experts(self, pair: Pair) -> bool:
        """Return whether experts have (B A)ᵀ added. Raises InputError if the version is unknown."""
        if self.version is None:
            raise InputError(
                f"{self.path}: '{printable(pair.module)}' has square matrices, whose factors "
                f"PEFT 0.19 turned round, and {CONFIG} has no peft_version\n"
                f'  add "peft_version": "0.18.0" or later, that of the PEFT that wrote it'
            )
        return self.version < (0, 19)

    def are_copies(self, pair: Pair, other: Pair) -> bool:
        """Return whether two pairs hold the same bytes."""
        with (self.path / WEIGHTS).open("rb") as file:

            def read(tensor: StoredTensor, most: int) -> tuple[object, bytes]:
                file.seek(tensor.offset)
                return (tensor.dtype, tensor.shape), file.read(min(most, tensor.nbytes))

            # Most differ from the start.
            factors = ((pair.a, other.a), (pair.b, other.b))
            most = max(pair.a.nbytes, pair.b.nbytes)
            sizes = (1 << 12, most)
            return all(read(a, n) == read(b, n) for n in sizes for a, b in factors)

    def token_indices(self, name: str) -> list[int]:
        """Return the rows of the tensor `name` that were trained. Raises InputError."""
        key = "token_indices" if self.config["peft_type"] == _TOKENS_ALONE else _TOKENS_BESIDE
        given = self.config.get(key)
        module = "." + name.removesuffix(".weight")
        if isinstance(given, dict):
            given = next((v for k, v in given.items() if module.endswith(f".{k}")), None)
        if not isinstance(given, list) or not given or not all(_is_index(row) for row in given):
            raise InputError(
                f"{self.path / CONFIG}: '{key}' does not list the tokens of '{printable(name)}'"
            )
        return given

    def scale(self, name: str, rank: int) -> float:
        """Return the factor of B A for the module or parameter `name`.

        Raises InputError if the config contradicts the rank of the weights.
        """
        alpha = self._pattern("alpha_pattern", name, self.config.get("lora_alpha", 8))
        declared = self._pattern("rank_pattern", name, self.config.get("r", 8))
        if declared != rank:
            raise InputError(
                f"{self.path}: '{printable(name)}' has rank {rank}, {CONFIG} says {declared}; "
                f"weights and config are not of one adapter"
            )
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _pattern(self, key: str, name: str, default: object) -> Any:
        try:
            found = self._tables[key].first(name)
        except TooComplex as error:
            raise InputError(
                f"{self.path / CONFIG}: '{key}' has a pattern too complex to match safely: {error}"
            ) from None
        except (AttributeError, TypeError, re.error, RecursionError, OverflowError):
            raise InputError(f"{self.path / CONFIG}: '{key}' is not a table of patterns") from None
        value = default if found is None else self.config[key][found]
        if not isinstance(value, int | float) or type(value) is bool or not -1e300 < value < 1e300:
            raise InputError(f"{self.path / CONFIG}: '{printable(str(value))}' is not a number")
        return value

    @cached_property
    def _tables(self) -> dict[str, PatternTable]:
        keys = ("alpha_pattern", "rank_pattern")
        return {key: PatternTable((self.config.get(key) or {}).keys()) for key in keys}


def _is_index(value: object) -> bool:
    return type(value) is int and value >= 0


def open_adapter(path: Path) -> Adapter:
    """Read config and header of an adapter folder. InputError also for kinds other than LoRA."""
    if not exists(path):
        raise InputError(f"{path}: no such folder; is the adapter's path right?")
    if not exists(path / CONFIG):
        nested = nested_adapters(path)
        hint = f"; name a sub-folder that has one, such as {nested[-1]}" if nested else ""
        hint = hint or "; an adapter is a folder as PEFT saves it"
        raise InputError(f"{path}: no {CONFIG}{hint}")
    config = read_json(path / CONFIG)
    if not isinstance(config, dict):
        raise InputError(f"{path / CONFIG}: not a JSON object")
    _refuse_other_kinds(path, config)
    if not exists(path / WEIGHTS):
        if exists(path / "adapter_model.bin"):
            raise InputError(
                f"{path}: only adapter_model.bin, a pickle, which is not opened; load the adapter "
                f"with PEFT and save_pretrained(…) it once"
            )
        raise InputError(f"{path}: no {WEIGHTS}")
    shard = read_shard(path / WEIGHTS)
    pairs, whole, token_rows = _parts(path, shard.tensors)
    bare = [pair.module for pair in pairs if pair.magnitude is None]
    if bare and config.get("use_dora"):
        raise InputError(f"{path}: DoRA without lora_magnitude_vector: {first_names(bare)}")
    return Adapter(path, config, shard, pairs, whole, token_rows)


def _refuse_other_kinds(path: Path, config: Mapping[str, Any]) -> None:
    kind = str(config.get("peft_type") or "of no peft_type")
    if kind not in ("LORA", _TOKENS_ALONE):
        raise InputError(
            f"{path}: the adapter is {printable(kind)}, and only LORA can be applied to weights as "
            f"they stream; merge it with PEFT: model.merge_and_unload().save_pretrained(…)"
        )
    init = str(config.get("init_lora_weights", "")).lower()
    used = [key for key in _OTHER_KINDS if config.get(key)]
    used += [f"init_lora_weights: {init}"] if init.startswith(_CHANGES_BASE) else []
    if used:
        raise InputError(
            f"{path}: LoRA with {printable(used[0])}, which is more than a low-rank sum; merge it "
            f"with PEFT: model.merge_and_unload().save_pretrained(…)"
        )


def _parts(
    path: Path, tensors: Iterable[StoredTensor]
) -> tuple[tuple[Pair, ...], dict[str, StoredTensor], dict[str, StoredTensor]]:
    """Sort the tensors of the file into pairs of factors, trained copies and rows of tokens."""
    token_rows: dict[str, StoredTensor] = {}
    factors: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for tensor in tensors:
        name = re.sub(r"^base_model\.model\.", "", tensor.name)
        if ".original_module." in name:  # of the base, beside a module that was trained whole
            continue
        match = _FACTOR.fullmatch(name)
        if _TOKENS.search(name):
            token_rows[_TOKENS.sub(".weight", name)] = tensor
        elif match is None:
            plain = _WRAPPERS.sub("", name)
            whole[plain] = replace(tensor, name=plain)
        else:
            bias = ".bias" if match["end"] == "bias" else ""
            factors.setdefault(match["module"], {})[match["kind"] + bias] = tensor
    pairs = tuple(_pair(path, name, factors[name]) for name in factors)
    if not (pairs or whole or token_rows):
        raise InputError(f"{path}: no tensors in {WEIGHTS}")
    return pairs, whole, token_rows


def _pair(path: Path, name: str, factors: Mapping[str, StoredTensor]) -> Pair:
    embedding = "lora_embedding_A" in factors
    kind = "lora_embedding_" if embedding else "lora_"
    a, b = factors.get(f"{kind}A"), factors.get(f"{kind}B")
    if a is None or b is None:
        raise InputError(f"{path}: '{printable(name)}' has only one of lora_A and lora_B")
    if min(len(a.shape), len(b.shape)) < 2 or not a.count or math.prod(b.shape[1:]) != a.shape[0]:
        raise InputError(
            f"{path}: '{printable(name)}' has lora_A {list(a.shape)} and lora_B {list(b.shape)}, "
            f"which do not multiply; the adapter is damaged, or was saved without its shards"
        )
    module, layers = re.subn(r"\.base_layer(?=\.|$)", "", name)
    bias, magnitude = factors.get("lora_B.bias"), factors.get("lora_magnitude_vector")
    return Pair(module, a, b, bias, magnitude, embedding, layers)
