"""`merge-worker merge-adapters`: several LoRA adapters merged into one for PEFT."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.peft_format import open_adapter
from ..command_line.parser import Parser
from ..errors import UsageError, input_errors
from ..messages import counted
from ..recipe.shorthand import parse_number
from ..units import positive_integer, size
from .options import add_options

if TYPE_CHECKING:
    from ..lora.combine import CombineOptions


THINNING = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", "svd", "linear", *THINNING, *(f"{name}_svd" for name in THINNING))
SHOWN = (
    "cat, svd, linear, ties, dare_linear, dare_ties, magnitude_prune, or NAME_svd of the last four"
)


def options(parser: Parser) -> None:
    parser.description = (
        "Merges adapters as PEFT's add_weighted_adapter does. cat (the default) is exact and adds "
        "up ranks; svd is the best of a given rank; the others merge A and B separately, "
        "NAME_svd the dense deltas. To merge the adapted models instead, write "
        "'merge-worker average OUT base+adapter base+adapter'."
    )
    add = parser.add_argument
    parser.add_out("the folder of the merged adapter", before="adapter")
    add("adapter", metavar="ADAPTER", nargs="*", help="folders of adapters")
    parser.required.append("adapter")
    add("--method", choices=METHODS, metavar="METHOD", default="cat", help=f"one of {SHOWN}")
    add("--weights", metavar="2,1,1", help="used as given, not normalized; default: 1/n each")
    add("--density", type=float, metavar="0.5", help="fraction of values to keep")
    add(
        "--rank",
        type=positive_integer,
        metavar="N",
        help="rank for svd; default: the largest of the adapters",
    )
    add(
        "--majority-sign",
        choices=("total", "frequency"),
        default="total",
        help="of ties: the sign of the sum, or of most adapters",
    )
    add_options(parser, "merge-adapters")
    add("--overwrite", action="store_true", help="replace an adapter in OUT")


@input_errors("merge-adapters")
def command(arguments: argparse.Namespace) -> str:
    """Merge the adapters, and return a line about the result."""
    from ..system.torch_startup import require_torch

    require_torch("merge-adapters")
    from ..lora.combine import check_adapters, merge_adapters
    from ..lora.save import AdapterOutput

    weights, options = _weights(arguments), _combine_options(arguments)
    adapters = [open_adapter(Path(word)) for word in arguments.adapter]
    check_adapters(adapters, options.method)
    inputs = {word: Path(word) for word in arguments.adapter}
    with AdapterOutput(Path(arguments.out), inputs, arguments.overwrite) as output:
        config, written = merge_adapters(adapters, weights, options, output)
    modules = counted(len(config["target_modules"]), "modules")
    return (
        f"{arguments.out}: {counted(len(adapters), 'adapters')} by {arguments.method}, "
        f"{modules} of rank {config['r']}, {size(written)}"
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

    thins = arguments.method.removesuffix("_svd") in THINNING
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
