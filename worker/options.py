"""The options of commands that plan or merge: their words, and what they mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from .cut import block_for
from .match import Rules
from .one_pass import RunOptions
from .resolve import PlanOptions, stage_folder
from .units import at_least_one, device_word, parse_duration, parse_size


def add_plan_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    choices = ("same", "bfloat16", "float16", "float32", "float64")
    add(
        "--dtype",
        choices=choices,
        help="of the result; default: the recipe's, else the first model's",
    )
    add("--shard-size", default="5GB", metavar="5GB")
    add("--memory", metavar="4GiB", help="bound on buffers, on host and on each device")
    add("--threads", type=at_least_one, metavar="N")
    add("--seed", type=int, default=0)
    add("--dequantize", action="store_true", help="read FP8 weights with their scales")
    add("--strict", action="store_true", help="warnings about the recipe are errors")
    add("--missing", choices=("error", "copy"), default="error", help="tensors not in every model")
    add("--surplus", choices=("error", "drop"), default="error", help="tensors the base has not")
    for option, what in (("--include", "only these are merged"), ("--exclude", "these are not")):
        more = f"{what}: words of tensor names, or patterns with *; the rest is the base's"
        add(option, action="append", default=[], metavar="A,B", help=more)
    add("--relative-to", default=".", metavar="DIR", help="where relative model paths start")


def add_run_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--device", type=device_word, default="auto", metavar="auto|cpu|cuda|cuda:N|xpu|mps")
    add("--overwrite", action="store_true", help="replace another merge of ours in OUT")
    add("--no-resume", action="store_true", help="discard an unfinished merge in OUT")
    add("--sha256", action="store_true", help="SHA-256 of the outputs in the manifest")
    add("--progress", choices=("auto", "plain", "json", "off"), default="auto")
    add("--allow-nonfinite", action="store_true", help="write NaN and Inf instead of stopping")
    add("--deadline", metavar="12:00:00", help="stop cleanly this long after the start")
    add("--prune-downloads", action="store_true", help="remove weights of the hub after use")
    add("--push", metavar="ORG/NAME", help="upload the finished OUT to the hub")
    add("--trust-remote-code", action="store_true", help="accepted; no model code is ever run")


def plan_options(arguments: argparse.Namespace, out: str | None = None) -> PlanOptions:
    """What was asked of the plan."""
    return PlanOptions(
        relative_to=Path(arguments.relative_to),
        dtype=arguments.dtype,
        shard_bytes=parse_size(arguments.shard_size, "--shard-size"),
        memory_bytes=parse_size(arguments.memory, "--memory") if arguments.memory else None,
        threads=arguments.threads,
        seed=arguments.seed,
        strict=arguments.strict,
        dequantize=arguments.dequantize,
        rules=Rules(
            *(arguments.missing, arguments.surplus),
            *(_patterns(given) for given in (arguments.include, arguments.exclude)),
        ),
        stages=stage_folder(out),
        block=block_for(getattr(arguments, "device", "auto")),
    )


def _patterns(given: list[str]) -> tuple[str, ...]:
    """One option with commas, or several."""
    return tuple(pattern for text in given for pattern in text.split(",") if pattern)


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """What was asked of the run."""
    return RunOptions(
        device=arguments.device,
        overwrite=arguments.overwrite,
        resume=not arguments.no_resume,
        sha256=arguments.sha256,
        progress=arguments.progress,
        allow_nonfinite=arguments.allow_nonfinite,
        prune=arguments.prune_downloads,
        deadline_s=parse_duration(arguments.deadline) if arguments.deadline else None,
    )
