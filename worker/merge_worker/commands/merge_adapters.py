"""`merge-worker merge-adapters`: several LoRA adapters → one that PEFT loads."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
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

    from ..lora.combine import How, Weighted
    from ..lora.save import Output
    from ..tensors.source import Reader, StoredTensor


METHODS = (
    *("cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"),
    *("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"),
)


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Merges adapters as PEFT's add_weighted_adapter does. cat (the default) is exact, of all "
        "ranks together; svd is the best of a given rank; the others merge A and B by themselves, "
        "NAME_svd the dense deltas. To merge what adapters do to a model instead, write "
        "'merge-worker average OUT base+adapter base+adapter'."
    )
    add = parser.add_argument
    add("out", metavar="OUT")
    add("adapter", metavar="ADAPTER", nargs="+")
    add("--method", choices=METHODS, default="cat")
    add("--weights", metavar="0.7,0.3", help="as they are, not normalised; default: 1/n each")
    add("--density", type=float, metavar="0.5", help="share of values that the method keeps")
    add("--rank", type=positive_integer, metavar="N", help="of svd; default: the largest of all")
    add("--majority-sign", choices=("total", "frequency"), default="total")
    add("--seed", type=int, default=0, help="of dare")
    add("--overwrite", action="store_true", help="replace an adapter in OUT")


@input_errors("merge-adapters")
def command(arguments: argparse.Namespace) -> str:
    """A line of what was written. WorkerError of any kind."""
    from ..system.torch_startup import require_torch

    require_torch()
    import torch

    from ..checkpoint.reader import Files
    from ..engine.lane import Lane
    from ..lora.save import Output

    weights, how = _weights(arguments), _how(arguments)
    adapters = [open_adapter(Path(word)) for word in arguments.adapter]
    _check(adapters, how.method)
    files = Files()
    try:
        inputs = {word: Path(word) for word in arguments.adapter}
        output = Output(Path(arguments.out), inputs, arguments.overwrite)
        with torch.inference_mode(), output:
            lane = Lane(torch.device("cpu"), files, staged=False)
            ranks = _merge(adapters, weights, how, output, lane)
            config = _config(adapters, ranks)
            base = str(adapters[0].config.get("base_model_name_or_path") or "")
            count = output.finish(config, lane, base)
    finally:
        files.close()
    return (
        f"{arguments.out}: {counted(len(adapters), 'adapters')} by {arguments.method}, "
        f"{counted(len(ranks), 'modules')} of rank {config['r']}, {size(count)}"
    )


def _weights(arguments: argparse.Namespace) -> list[float]:
    count = len(arguments.adapter)
    if arguments.weights is None:
        return [1 / count] * count
    found = [parse_number(word) for word in arguments.weights.split(",")]
    if len(found) != count:
        raise UsageError(
            f"--weights has {counted(len(found), 'values')} for {counted(count, 'adapters')}; "
            f"give one each"
        )
    return found


def _how(arguments: argparse.Namespace) -> How:
    from ..lora.combine import How

    thins = arguments.method.startswith(("ties", "dare", "magnitude"))
    density = arguments.density
    if thins and density is None:
        raise UsageError(f"--method {arguments.method} needs --density, such as 0.5")
    if not thins and density is not None:
        raise UsageError(f"--method {arguments.method} takes no --density")
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"--density {density}: a share above 0, at most 1")
    if arguments.rank is not None and not arguments.method.endswith("svd"):
        raise UsageError(f"--method {arguments.method} takes no --rank; svd does")
    return How(
        arguments.method, 1.0 if density is None else density, arguments.rank or 0,
        arguments.majority_sign, arguments.seed,
    )  # fmt: skip


def _check(adapters: Sequence[Adapter], method: str) -> None:
    """InputError for what no sum of factors can be; PEFT loses some of it without a word."""
    on_base = "merge what they do to a model: merge-worker average OUT base+adapter base+adapter"
    for adapter in adapters:
        if not adapter.pairs:
            raise InputError(f"{adapter.path}: has no factors to be merged")
        if any(pair.magnitude for pair in adapter.pairs):
            raise InputError(
                f"{adapter.path}: DoRA, whose magnitudes are of one base and one adapter; {on_base}"
            )
        if _biased(adapter) and method not in ("cat", "svd"):
            raise InputError(
                f"{adapter.path}: lora_bias, which cat and svd add up, but not {method}"
            )
        if adapter.config.get("target_parameters"):
            raise InputError(f"{adapter.path}: target_parameters (experts); {on_base}")


def _biased(adapter: Adapter) -> bool:
    return any(pair.bias for pair in adapter.pairs)


def _merge(
    adapters: Sequence[Adapter], weights: Sequence[float], how: How, output: Output, reader: Reader
) -> dict[str, int]:
    """Add every module's factors to the output; returns their ranks by module."""
    from ..lora.combine import combine

    ranks: dict[str, int] = {}
    biased = any(map(_biased, adapters))
    largest = max(pair.rank for adapter in adapters for pair in adapter.pairs)
    how = replace(how, rank=how.rank or largest)
    by_name = [{pair.module: pair for pair in adapter.pairs} for adapter in adapters]
    for name in dict.fromkeys(name for pairs in by_name for name in pairs):
        having = [(n, pairs[name]) for n, pairs in enumerate(by_name) if name in pairs]
        first = having[0][1]
        for _, pair in having:
            if (pair.sides, pair.embedding) != (first.sides, first.embedding):
                raise InputError(
                    f"{printable(name)} has the sides {first.sides} and {pair.sides}; "
                    f"the adapters are of different models"
                )
        given = [_read(adapters[n], pair, weights[n], reader) for n, pair in having]
        try:
            a, b = combine(given, how, name)
        except ValueError as error:
            raise InputError(f"{printable(name)}: {error}") from None
        _put(output, first, a, b)
        if biased and not first.embedding:
            _put_bias(output, first, [(adapters[n], p, weights[n]) for n, p in having], reader)
        ranks[name] = len(a)
    _keep(adapters, ranks, output, reader)
    return ranks


def _keep(
    adapters: Sequence[Adapter], ranks: Mapping[str, int], output: Output, reader: Reader
) -> None:
    """Tensors that are kept whole; InputError if adapters differ in one."""
    from ..lora.extract import same

    for adapter in adapters:
        for name, info in adapter.whole.items():
            module, _, end = name.rpartition(".")
            full = f"{module}.base_layer.{end}" if module in ranks else name
            held = output.whole.setdefault(full, (info,))
            # Embeddings that were not trained come along with their factors.
            if not same(reader, held[0], info):
                raise InputError(
                    f"{printable(name)} is kept whole by several adapters, and differs; merge them "
                    f"on their base: merge-worker average OUT base+adapter base+adapter"
                )


def _read(adapter: Adapter, pair: Pair, weight: float, reader: Reader) -> Weighted:
    import torch

    from ..lora.combine import Weighted

    def factor(info: StoredTensor) -> Tensor:
        values = reader.read(info, 0, info.count, "factor").to(torch.float64, copy=True)
        return values.view(info.shape[0], -1)

    scale = adapter.scale(pair.module, pair.rank)
    return Weighted(factor(pair.a), factor(pair.b), scale, weight)


def _put(output: Output, pair: Pair, a: Tensor, b: Tensor) -> None:
    """In the dtype of the first adapter; kernels get their axes back."""
    import torch

    kind = getattr(torch, pair.a.dtype.torch_name)
    form = "lora_embedding_{}" if pair.embedding else "lora_{}.weight"
    a = a.to(kind).contiguous().view(len(a), *pair.a.shape[1:])
    b = b.to(kind).contiguous().view(len(b), b.shape[1], *pair.b.shape[2:])
    output.add(f"{pair.module}.{form.format('A')}", a)
    output.add(f"{pair.module}.{form.format('B')}", b)


def _put_bias(
    output: Output, first: Pair, given: Sequence[tuple[Adapter, Pair, float]], reader: Reader
) -> None:
    """The sum of what they add, or zeros: PEFT wants one of every module if of any."""
    import torch

    total = torch.zeros(first.b.shape[0], dtype=torch.float64)
    for adapter, pair, weight in given:
        if pair.bias is not None:
            bias = reader.read(pair.bias, 0, pair.bias.count, "bias")
            total.add_(bias.to(torch.float64), alpha=weight * adapter.scale(pair.module, pair.rank))
    output.add(f"{first.module}.lora_B.bias", total.to(getattr(torch, first.b.dtype.torch_name)))


def _config(adapters: Sequence[Adapter], ranks: Mapping[str, int]) -> dict[str, Any]:
    """The first adapter's, with the modules of all, and a scale of 1."""
    from ..lora.save import config_of

    first = adapters[0].config
    most = Counter(ranks.values()).most_common(1)[0][0]
    other = {name: rank for name, rank in ranks.items() if rank != most}
    saved = {str(m) for a in adapters for m in a.config.get("modules_to_save") or ()}
    config = config_of(
        str(first.get("base_model_name_or_path") or ""), most,
        rank_pattern=other, alpha_pattern=other, target_modules=sorted(ranks),
        fan_in_fan_out=bool(first.get("fan_in_fan_out")),
        **({"lora_bias": True} if any(map(_biased, adapters)) else {}),
    )  # fmt: skip
    return {**config, "task_type": first.get("task_type"), "modules_to_save": sorted(saved) or None}
