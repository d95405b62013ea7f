"""`merge-worker perplexity`: how well models predict a text, window by window."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..command_line.parser import Parser
from ..errors import UsageError
from ..messages import print_line, printable
from ..units import parse_size, positive_integer
from .options import add_options


def options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        nargs="+",
        help="folders, Hub names, or base+adapter; differences are to the first",
    )
    add(
        "--data",
        metavar="FILE",
        required=True,
        help="text (.txt, blank lines part samples), or .jsonl with 'text', 'messages', or "
        "'prompt' and 'completion' on each line",
    )
    add(
        "--length",
        metavar="N",
        type=positive_integer,
        default=1024,
        help="tokens that a model sees together; default: 1024",
    )
    add(
        "--stride",
        metavar="N",
        type=positive_integer,
        help="tokens from one window to the next; the others of a window give context only; "
        "default: --length",
    )
    add("--plot", metavar="FILE.png|.html", help="the loss of every window, as a picture or page")
    add(
        "--dtype",
        choices=("auto", "bfloat16", "float16", "float32", "float64"),
        default="auto",
        help="dtype of the arithmetic; default: auto, that of the model",
    )
    add("--memory", metavar="4GiB", help="bound on the memory of the process")
    add_options(parser, "perplexity")


def command(arguments: argparse.Namespace) -> str:
    """Return the table or JSON, and write the plot to its file."""
    from ..drawing.files import check_plot
    from ..evaluation.perplexity import Settings, measure
    from ..evaluation.perplexity_table import as_json, table

    check_plot(arguments.plot)
    memory = parse_size(arguments.memory, "--memory") if arguments.memory else None
    settings = Settings(
        length=arguments.length,
        stride=arguments.stride,
        dtype=arguments.dtype,
        device=arguments.device,
        memory_bytes=memory,
        trust_remote_code=arguments.trust_remote_code,
    )
    data = text_file(arguments.data, "--data")
    use_threads(arguments.threads)
    mode = arguments.progress

    def tell(line: str) -> None:
        if mode not in ("off", "json"):
            print_line(line, sys.stderr)

    measured = measure(arguments.model, data, settings, mode, tell)
    if arguments.plot:
        from ..evaluation.perplexity_plot import draw

        draw(measured, arguments.plot)
    if arguments.json:
        return json.dumps(as_json(measured), indent=1)
    text = table(measured)
    return f"{text}\n\npicture    {arguments.plot}" if arguments.plot else text


def use_threads(count: int | None) -> None:
    """Let torch compute with all CPUs, or so many threads. UsageError without torch."""
    from ..system.machine import return_freed_memory, usable_cpus
    from ..system.torch_startup import require_torch

    require_torch("perplexity")
    from ..engine import device  # first, since it completes the import of torch

    assert device
    import torch

    return_freed_memory()
    torch.set_num_threads(count or usable_cpus())


def text_file(word: str, option: str) -> Path:
    """Return the file of text. UsageError for a folder."""
    try:
        path = Path(word).expanduser()
    except RuntimeError:
        path = Path(word)
    if path.is_dir():
        raise UsageError(f"{option} {printable(word)}: a folder; give a .txt or .jsonl file")
    return path
