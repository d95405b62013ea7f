"""Several adapters merged into one, as defined by PEFT's `add_weighted_adapter`.

`cat` concatenates ranks and `svd` keeps the best rank of the weighted sum: both act on the deltas.
Other methods act on A and B separately, each with the root of the weight; NAME_svd acts on the
dense deltas, then keeps the best rank. https://arxiv.org/abs/2306.01708 (TIES),
https://arxiv.org/abs/2311.03099 (DARE).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters.peft_format import Adapter, Pair
from ..algorithms.spectral import spectrum
from ..checkpoint.reader import Files
from ..engine.lane import Lane
from ..errors import InputError
from ..messages import printable
from ..system import torch_startup
from ..tensors.source import Reader, StoredTensor
from .extract import same_values
from .save import AdapterOutput, config_of
from .svd import seeded

torch_startup.complete()

ON_BASE = "  merge the adapted models: merge-worker average OUT base+adapter base+adapter"


@dataclass(frozen=True)
class CombineOptions:
    """The name of a method and its parameters."""

    method: str
    density: float = 1.0
    rank: int = 1  # of svd
    majority: str = "total"  # or "frequency": votes by value, or one each
    seed: int = 0


class WeightedFactors(NamedTuple):
    """The float64 factors a (rank, in) and b (out, rank) of one adapter, with scale and share."""

    a: Tensor
    b: Tensor
    scale: float
    share: float

    @property
    def weight(self) -> float:
        return self.scale * self.share


def check_adapters(adapters: Sequence[Adapter], method: str) -> None:
    """Raise InputError for adapters that cannot be merged; PEFT drops parts of some silently."""
    for adapter in adapters:
        if not adapter.pairs:
            raise InputError(f"{adapter.path}: the adapter has no factors to merge")
        if any(pair.magnitude for pair in adapter.pairs):
            raise InputError(
                f"{adapter.path}: DoRA magnitudes belong to one base and one adapter\n{ON_BASE}"
            )
        if _biased(adapter) and method not in ("cat", "svd"):
            raise InputError(
                f"{adapter.path}: lora_bias is supported by cat and svd, not by {method}"
            )
        if adapter.token_rows:
            raise InputError(
                f"{adapter.path}: trainable_token_indices are not supported\n{ON_BASE}"
            )
        if adapter.config.get("target_parameters"):
            raise InputError(
                f"{adapter.path}: target_parameters (experts) are not supported\n{ON_BASE}"
            )


def merge_adapters(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    options: CombineOptions,
    output: AdapterOutput,
) -> tuple[dict[str, Any], int]:
    """Write the merged adapter, and return its config and the bytes of its weights."""
    with closing(Files()) as files, torch.inference_mode():
        lane = Lane(torch.device("cpu"), files, staged=False)
        ranks = _merge_modules(adapters, weights, options, output, lane)
        _keep_whole(adapters, ranks, output, lane)
        config = _config(adapters, ranks)
        return config, output.finish(config, lane)


def combine(
    adapters: Sequence[WeightedFactors], options: CombineOptions, name: str
) -> tuple[Tensor, Tensor]:
    """Return the merged factors (a, b) of one module in float64.

    `name` seeds random draws. InputError if the method needs equal ranks and they differ.
    """
    if options.method == "cat":
        return torch.cat([g.a * g.weight for g in adapters]), torch.cat([g.b for g in adapters], 1)
    if options.method == "svd":
        return _best_of_sum(adapters, options.rank)
    draw = seeded(f"{options.seed}\0{name}")
    if options.method.endswith("_svd"):
        deltas = [g.b @ g.a * g.scale for g in adapters]
        merged = _merged(deltas, [g.share for g in adapters], options, draw)
        return _truncated(merged, options.rank)
    if len({len(g.a) for g in adapters}) > 1:
        ranks = ", ".join(str(len(g.a)) for g in adapters)
        raise InputError(
            f"{printable(name)}: ranks {ranks} differ; {options.method} needs equal ones (cat and "
            f"svd do not)"
        )
    roots = [math.sqrt(abs(g.weight)) for g in adapters]
    # With the sign on both sides, it would cancel.
    signed = [math.copysign(root, g.weight) for root, g in zip(roots, adapters, strict=True)]
    a = _merged([g.a for g in adapters], signed, options, draw)
    return a, _merged([g.b for g in adapters], roots, options, draw)


def _merge_modules(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    options: CombineOptions,
    output: AdapterOutput,
    reader: Reader,
) -> dict[str, int]:
    """Add every module's factors to the output, and return the ranks by module."""
    ranks: dict[str, int] = {}
    biased = any(map(_biased, adapters))
    largest = max(pair.rank for adapter in adapters for pair in adapter.pairs)
    options = replace(options, rank=options.rank or largest)
    by_name = [{pair.module: pair for pair in adapter.pairs} for adapter in adapters]
    for name in dict.fromkeys(name for pairs in by_name for name in pairs):
        present = [(n, pairs[name]) for n, pairs in enumerate(by_name) if name in pairs]
        first = present[0][1]
        for _, pair in present:
            if (pair.sides, pair.embedding) != (first.sides, first.embedding):
                raise InputError(
                    f"{printable(name)}: shapes differ: {first.sides} and {pair.sides}; "
                    f"the adapters belong to different models"
                )
        factors = [_read(adapters[n], pair, weights[n], reader) for n, pair in present]
        a, b = combine(factors, options, name)
        _write_factors(output, first, a, b)
        if biased and not first.embedding:
            _write_bias(output, first, [(adapters[n], p, weights[n]) for n, p in present], reader)
        ranks[name] = len(a)
    return ranks


def _keep_whole(
    adapters: Sequence[Adapter], ranks: Mapping[str, int], output: AdapterOutput, reader: Reader
) -> None:
    """Add the tensors kept whole to the output. InputError if adapters differ in one."""
    for adapter in adapters:
        for name, info in adapter.whole.items():
            module, _, end = name.rpartition(".")
            full = f"{module}.base_layer.{end}" if module in ranks else name
            earlier = output.whole.setdefault(full, (info,))
            # PEFT saves untrained embeddings together with their factors.
            if not same_values(reader, earlier[0], info):
                raise InputError(
                    f"{printable(name)}: saved whole by several adapters, with different values\n"
                    f"{ON_BASE}"
                )


def _read(adapter: Adapter, pair: Pair, weight: float, reader: Reader) -> WeightedFactors:
    def factor(info: StoredTensor) -> Tensor:
        values = reader.read(info, 0, info.count, "factor").to(torch.float64, copy=True)
        return values.view(info.shape[0], -1)

    scale = adapter.scale(pair.module, pair.rank)
    return WeightedFactors(factor(pair.a), factor(pair.b), scale, weight)


def _write_factors(output: AdapterOutput, pair: Pair, a: Tensor, b: Tensor) -> None:
    """Write factors in the dtype of the first adapter, with the axes of kernels restored."""
    dtype = getattr(torch, pair.a.dtype.torch_name)
    a = a.to(dtype).contiguous().view(len(a), *pair.a.shape[1:])
    b = b.to(dtype).contiguous().view(len(b), b.shape[1], *pair.b.shape[2:])
    output.add_factors(pair.module, a, b, pair.embedding)


def _write_bias(
    output: AdapterOutput,
    first: Pair,
    weighted: Sequence[tuple[Adapter, Pair, float]],
    reader: Reader,
) -> None:
    """Write the weighted sum of the biases, or zeros: PEFT wants them for all modules or none."""
    total = torch.zeros(first.b.shape[0], dtype=torch.float64)
    for adapter, pair, weight in weighted:
        if pair.bias is not None:
            bias = reader.read(pair.bias, 0, pair.bias.count, "bias")
            total.add_(bias.to(torch.float64), alpha=weight * adapter.scale(pair.module, pair.rank))
    output.add(f"{first.module}.lora_B.bias", total.to(getattr(torch, first.b.dtype.torch_name)))


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the config of the first adapter with the modules of all, and scale 1."""
    first = adapters[0].config
    saved = {str(m) for a in adapters for m in a.config.get("modules_to_save") or ()}
    return config_of(
        str(first.get("base_model_name_or_path") or ""),
        ranks,
        task_type=first.get("task_type"),
        modules_to_save=sorted(saved) or None,
        target_modules=sorted(ranks),
        fan_in_fan_out=bool(first.get("fan_in_fan_out")),
        **({"lora_bias": True} if any(map(_biased, adapters)) else {}),
    )


def _biased(adapter: Adapter) -> bool:
    return any(pair.bias for pair in adapter.pairs)


def _merged(
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    options: CombineOptions,
    draw: torch.Generator,
) -> Tensor:
    """Thin and weight the tensors, then add all values, or only those with the elected sign."""
    method = options.method.removesuffix("_svd")
    thin: Callable[[Tensor], Tensor] = partial(_keep_largest, density=options.density)
    if method.startswith("dare"):
        thin = partial(_keep_random, density=options.density, draw=draw)
    kept = torch.stack(
        [thin(x) if options.density < 1 and method != "linear" else x for x in tensors]
    )
    scaled = kept * torch.tensor(weights, dtype=kept.dtype).view(-1, *[1] * tensors[0].dim())
    if not method.endswith("ties"):
        return scaled.sum(0)
    votes = kept.sum(0) if options.majority == "total" else kept.sign().sum(0)
    agree = kept.sign() == torch.where(votes >= 0, 1, -1)
    return (scaled * agree).sum(0) / agree.sum(0).clamp(min=1)


def _keep_largest(x: Tensor, density: float) -> Tensor:
    count = int(density * x.numel())
    mask = torch.zeros(x.numel(), dtype=x.dtype)
    mask[x.abs().view(-1).topk(count).indices] = 1
    return x * mask.view(x.shape)


def _keep_random(x: Tensor, density: float, draw: torch.Generator) -> Tensor:
    return x * (torch.rand(x.shape, generator=draw, dtype=x.dtype) < density) / density


def _best_of_sum(adapters: Sequence[WeightedFactors], rank: int) -> tuple[Tensor, Tensor]:
    """Return the best factors of `rank` of the weighted sum, without computing the dense sum."""
    a = torch.cat([g.a * g.weight for g in adapters])
    b = torch.cat([g.b for g in adapters], 1)
    right, small_right = torch.linalg.qr(a.mT)
    left, small_left = torch.linalg.qr(b)
    u, values, v = torch.linalg.svd(small_left @ small_right.mT, full_matrices=False)
    return v[:rank] @ right.mT, (left @ u[:, :rank]) * values[:rank]


def _truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    transposed = delta.shape[0] < delta.shape[1]
    tall = delta.mT if transposed else delta
    right = spectrum(tall).right[:, :rank]
    if not right.shape[1]:
        return delta.new_zeros(1, delta.shape[1]), delta.new_zeros(delta.shape[0], 1)
    left = tall @ right
    return (left.mT, right) if transposed else (right.mT, left)
