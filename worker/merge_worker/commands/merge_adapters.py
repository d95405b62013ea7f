"""`merge-worker merge-adapters`: several LoRA adapters merged into one for PEFT."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.peft_format import Adapter, Pair, open_adapter
from ..errors import InputError, UsageError, input_errors
from ..messages import counted, printable
from ..recipe.shorthand import parse_number
from ..units import positive_integer, size

if TYPE_CHECKING:
    from torch import Tensor

    from ..lora.combine import CombineOptions, WeightedFactors
    from ..lora.save import AdapterOutput
    from ..tensors.source import Reader, StoredTensor


METHODS = (
    *("cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"),
    *("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"),
)

ON_BASE = "  merge the adapted models: merge-worker average OUT base+adapter base+adapter"


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Merges adapters as PEFT's add_weighted_adapter does. cat (the default) is exact and adds "
        "up ranks; svd is the best of a given rank; the others merge A and B separately, "
        "NAME_svd the dense deltas. To merge the adapted models instead, write "
        "'merge-worker average OUT base+adapter base+adapter'."
    )
    add = parser.add_argument
    add("out", metavar="OUT")
    add("adapter", metavar="ADAPTER", nargs="+")
    add("--method", choices=METHODS, default="cat")
    add("--weights", metavar="0.7,0.3", help="used as given, not normalized; default: 1/n each")
    add("--density", type=float, metavar="0.5", help="fraction of values to keep")
    add(
        "--rank",
        type=positive_integer,
        metavar="N",
        help="rank for svd; default: the largest of the adapters",
    )
    add("--majority-sign", choices=("total", "frequency"), default="total")
    add("--seed", type=int, default=0, help="random seed for dare")
    add("--overwrite", action="store_true", help="replace an adapter in OUT")


@input_errors("merge-adapters")
def command(arguments: argparse.Namespace) -> str:
    """Merge the adapters, and return a line about the result."""
    from ..system.torch_startup import require_torch

    require_torch()
    import torch

    from ..checkpoint.reader import Files
    from ..engine.lane import Lane
    from ..lora.save import AdapterOutput

    weights, options = _weights(arguments), _combine_options(arguments)
    adapters = [open_adapter(Path(word)) for word in arguments.adapter]
    _check(adapters, options.method)
    inputs = {word: Path(word) for word in arguments.adapter}
    output = AdapterOutput(Path(arguments.out), inputs, arguments.overwrite)
    with closing(Files()) as files, torch.inference_mode(), output:
        lane = Lane(torch.device("cpu"), files, staged=False)
        ranks = _merge(adapters, weights, options, output, lane)
        config = _config(adapters, ranks)
        count = output.finish(config, lane)
    return (
        f"{arguments.out}: {counted(len(adapters), 'adapters')} by {arguments.method}, "
        f"{counted(len(ranks), 'modules')} of rank {config['r']}, {size(count)}"
    )


def _weights(arguments: argparse.Namespace) -> list[float]:
    count = len(arguments.adapter)
    if arguments.weights is None:
        return [1 / count] * count
    weights = [parse_number(word) for word in arguments.weights.split(",")]
    if len(weights) != count:
        raise UsageError(
            f"--weights has {counted(len(weights), 'values')} for {counted(count, 'adapters')}; "
            f"give one each"
        )
    return weights


def _combine_options(arguments: argparse.Namespace) -> CombineOptions:
    from ..lora.combine import CombineOptions

    thins = arguments.method.startswith(("ties", "dare", "magnitude"))
    density = arguments.density
    if thins and density is None:
        raise UsageError(f"--method {arguments.method} requires --density, such as 0.5")
    if not thins and density is not None:
        raise UsageError(f"--method {arguments.method} takes no --density")
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density must be above 0 and at most 1, got {density}")
    if arguments.rank is not None and not arguments.method.endswith("svd"):
        raise UsageError(f"--method {arguments.method} takes no --rank; svd does")
    return CombineOptions(
        method=arguments.method,
        density=1.0 if density is None else density,
        rank=arguments.rank or 0,
        majority=arguments.majority_sign,
        seed=arguments.seed,
    )


def _check(adapters: Sequence[Adapter], method: str) -> None:
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
        if adapter.config.get("target_parameters"):
            raise InputError(
                f"{adapter.path}: target_parameters (experts) are not supported\n{ON_BASE}"
            )


def _biased(adapter: Adapter) -> bool:
    return any(pair.bias for pair in adapter.pairs)


def _merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    options: CombineOptions,
    output: AdapterOutput,
    reader: Reader,
) -> dict[str, int]:
    """Add every module's factors to the output, and return the ranks by module."""
    from ..lora.combine import combine

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
        try:
            a, b = combine(factors, options, name)
        except ValueError as error:
            raise InputError(f"{printable(name)}: {error}") from None
        _write_factors(output, first, a, b)
        if biased and not first.embedding:
            _write_bias(output, first, [(adapters[n], p, weights[n]) for n, p in present], reader)
        ranks[name] = len(a)
    _keep_whole(adapters, ranks, output, reader)
    return ranks


def _keep_whole(
    adapters: Sequence[Adapter], ranks: Mapping[str, int], output: AdapterOutput, reader: Reader
) -> None:
    """Add the tensors kept whole to the output. InputError if adapters differ in one."""
    from ..lora.extract import same_values

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
    import torch

    from ..lora.combine import WeightedFactors

    def factor(info: StoredTensor) -> Tensor:
        values = reader.read(info, 0, info.count, "factor").to(torch.float64, copy=True)
        return values.view(info.shape[0], -1)

    scale = adapter.scale(pair.module, pair.rank)
    return WeightedFactors(factor(pair.a), factor(pair.b), scale, weight)


def _write_factors(output: AdapterOutput, pair: Pair, a: Tensor, b: Tensor) -> None:
    """Write factors in the dtype of the first adapter, with the axes of kernels restored."""
    import torch

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
    import torch

    total = torch.zeros(first.b.shape[0], dtype=torch.float64)
    for adapter, pair, weight in weighted:
        if pair.bias is not None:
            bias = reader.read(pair.bias, 0, pair.bias.count, "bias")
            total.add_(bias.to(torch.float64), alpha=weight * adapter.scale(pair.module, pair.rank))
    output.add(f"{first.module}.lora_B.bias", total.to(getattr(torch, first.b.dtype.torch_name)))


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Return the config of the first adapter with the modules of all, and scale 1."""
    from ..lora.save import config_of

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
