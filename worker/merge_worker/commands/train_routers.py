"""`merge-worker train-routers`: trains nothing but the routers of a mixture of experts.

The model is loaded whole with transformers, and the trained routers are written into its files. A
training that was stopped continues with the same command.
"""

from __future__ import annotations

import argparse

from ..command_line.parser import Parser
from ..errors import input_errors
from ..units import positive_integer
from .options import add_options


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MOE", help="folder of the model, whose routers are replaced")
    add(
        "--data",
        metavar="FILE",
        action="append",
        required=True,
        help="texts: .txt, or .jsonl with text, messages, or prompt and completion (repeatable)",
    )
    add("--steps", type=positive_integer, default=100, metavar="N", help="steps of the training")
    add(
        "--lr",
        type=_positive,
        metavar="RATE",
        help="learning rate of AdamW; default: 0.5 / hidden size",
    )
    add(
        "--balance",
        type=_not_negative,
        default=0.01,
        metavar="WEIGHT",
        help="weight of the load-balancing term; default: 0.01",
    )
    add("--batch", type=positive_integer, default=8, metavar="N", help="pieces a step; default: 8")
    add(
        "--length",
        type=positive_integer,
        default=512,
        metavar="N",
        help="longest piece of a text; default: 512",
    )
    add(
        "--at-once",
        type=positive_integer,
        metavar="N",
        help="pieces in memory at once; default: those of a step",
    )
    add(
        "--shared-gate",
        action="store_true",
        help="train the gate of a shared expert too (qwen2_moe, qwen3_5_moe)",
    )
    add(
        "--dtype",
        default="same",
        choices=("same", "bfloat16", "float16", "float32"),
        help="dtype of the model while training; default: that of its files",
    )
    add("--no-resume", action="store_true", help="discard a training that was stopped")
    add_options(parser, "train-routers")


def _positive(word: str) -> float:
    value = _number(word)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"'{word}' is not a number above 0")
    return value


def _not_negative(word: str) -> float:
    value = _number(word)
    if value < 0:
        raise argparse.ArgumentTypeError(f"'{word}' is not a number of at least 0")
    return value


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"'{word}' is not a number")
    return value


@input_errors("train-routers")
def command(arguments: argparse.Namespace) -> str:
    """Train and write the routers; returns what became of the loss."""
    from ..system.torch_startup import complete, require_torch

    require_torch("train-routers")
    complete()
    from ..routers.loading import require_transformers
    from ..routers.run import train

    require_transformers("train-routers")
    return train(arguments)
