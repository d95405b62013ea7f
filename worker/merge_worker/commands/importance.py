"""`merge-worker importance`: which weights of a model matter for some texts, as a file."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.fp8 import dequantized
from ..checkpoint.hub import Hub
from ..command_line.parser import Parser
from ..errors import OutputError, UsageError, input_errors
from ..messages import counted, print_line
from ..planning.inputs import open_reference
from ..system.machine import return_freed_memory
from ..system.progress import Progress
from ..system.torch_startup import require_torch
from ..units import duration, parse_size, positive_integer, size
from .options import add_options

if TYPE_CHECKING:
    from ..importance.measure import Measurement

KINDS = ("fisher", "activation", "gram-diagonal")
SUFFIX = ".safetensors"


def options(parser: Parser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder, or a model of the Hub")
    parser.add_out("the file of importances", of=f"OUT{SUFFIX}")
    add(
        "--data",
        required=True,
        metavar="FILE",
        help="texts: .txt with blank lines between samples, or .jsonl with text, messages, or "
        "prompt and completion",
    )
    add(
        "--kind",
        choices=KINDS,
        default="fisher",
        help="squared gradients of each weight, mean magnitude or mean square of each input of a "
        "matrix; default: fisher",
    )
    add(
        "--samples",
        type=positive_integer,
        default=256,
        metavar="N",
        help="the first N samples of the file; default: 256",
    )
    add(
        "--length",
        type=positive_integer,
        default=512,
        metavar="N",
        help="the first N tokens of each sample; default: 512",
    )
    add(
        "--labels",
        choices=("model", "data"),
        default="model",
        help="of fisher: tokens drawn from the model's probabilities, or those of the file; "
        "default: model",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16", "auto"),
        default="float32",
        help="dtype of the arithmetic; auto: the model's own; default: float32",
    )
    add("--memory", metavar="4GiB", help="stop before the start if more memory is needed")
    add("--scratch", metavar="DIR", help="where hidden states are kept meanwhile; default: by OUT")
    add("--overwrite", action="store_true", help="replace OUT")
    add_options(parser, "importance")


@input_errors("importance")
def command(arguments: argparse.Namespace) -> str:
    """Measure a model. What it takes is printed before weights are read."""
    out = Path(arguments.out)
    if out.suffix != SUFFIX:
        raise UsageError(f"importance: OUT is a file that ends in {SUFFIX}, got '{out}'")
    memory = parse_size(arguments.memory, "--memory") if arguments.memory else None
    require_torch("importance")
    return_freed_memory()
    from ..engine.device import select_devices
    from ..importance.samples import read_windows
    from ..inference.model import ModelOptions, open_model

    began = time.monotonic()
    data = Path(arguments.data)
    with input_errors(data):
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
    hub, trust = Hub(), arguments.trust_remote_code
    disk, side_files, label = open_reference(arguments.model, Path.cwd(), hub)
    disk = dequantized(disk)
    device = select_devices(arguments.device)[0]
    with open_model(
        disk, side_files, label, ModelOptions(arguments.dtype, device, trust, hub)
    ) as model:
        windows = read_windows(data, model, arguments.samples, arguments.length, trust)
        from ..importance.measure import TICK, Measurement

        measurement = Measurement(
            model,
            disk,
            tuple(windows),
            arguments.kind,
            digest,
            arguments.length,
            arguments.labels,
            arguments.seed,
        )
        if _is_there(out, measurement, arguments.overwrite):
            return f"{out}: this measurement is already there; nothing to do"
        _announce(measurement, label, arguments)
        _refuse_small_disk(out, arguments.scratch, measurement)
        progress = Progress(arguments.progress, measurement.costs().ticks * TICK, "importance")
        scratch = Path(arguments.scratch) if arguments.scratch else None
        measurement.make(out, scratch, progress, memory)
    return f"{out}: {arguments.kind} of {label}, {size(out.stat().st_size)} in " + duration(
        time.monotonic() - began
    )


def _announce(measurement: Measurement, label: str, arguments: argparse.Namespace) -> None:
    """Print what the measurement takes, and which samples it lacks."""
    windows, costs = measurement.windows, measurement.costs()
    tokens = sum(len(window.ids) for window in windows)
    print_line(costs.line(label, len(windows), tokens, str(measurement.model.device)), sys.stderr)
    if len(windows) < arguments.samples:
        print_line(
            f"note: {arguments.data} has {counted(len(windows), 'samples')}, fewer than --samples "
            f"{arguments.samples}",
            sys.stderr,
        )


def _is_there(out: Path, measurement: Measurement, overwrite: bool) -> bool:
    """Return whether OUT is this measurement. OutputError if it is something else."""
    if overwrite and not out.is_dir():
        return False
    if out.is_dir():
        raise OutputError(f"{out}: a folder; OUT is one file that ends in {SUFFIX}")
    if not out.exists():
        if not out.parent.is_dir():
            raise OutputError(f"{out}: the folder {out.parent} does not exist")
        return False
    from ..importance.scratch import metadata_of

    if measurement.metadata.items() <= metadata_of(out).items():
        return True
    raise OutputError(f"{out}: another file is there; give another OUT, or --overwrite")


def _refuse_small_disk(out: Path, scratch: str | None, measurement: Measurement) -> None:
    folder = Path(scratch) if scratch else out.parent
    if not folder.is_dir():
        raise OutputError(f"{folder}: no such folder for scratch files")
    needed, free = measurement.costs().scratch, shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: {size(needed)} of scratch files, but {size(free)} are free\n"
            f"  give another folder with --scratch, or fewer --samples"
        )
