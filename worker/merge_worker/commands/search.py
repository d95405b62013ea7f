"""`merge-worker search`: one worker of a search over the values of a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line.parser import Parser
from ..errors import InputError, UsageError
from ..messages import printable
from ..options import options_of
from ..units import parse_duration
from .options import add_options, known_methods, plan_options

if TYPE_CHECKING:
    from ..search.work import Workshop

OWN = ("deadline", "relative_to", "progress", "ranks", "expect_gpus")
"""Options of `merge` that the search answers itself, or that merges of one worker do not take."""
REFUSED = {
    "push": "for one merge; push the best candidate afterwards",
    "private": "for one merge; push the best candidate afterwards",
    "overwrite": "candidates are never replaced; choose another OUT",
    "no_resume": "a search is always continued; choose another OUT",
}
MODEL_OPTIONS = ("device", "threads")
"""Options of `merge` that `perplexity` takes too."""


def options(parser: Parser) -> None:
    parser.add_argument("search", metavar="SEARCH.yml", help="the recipe and the space")
    parser.add_out("the folder of the search; default: 'out' in the file", needed=False)
    parser.add_argument(
        "--batch", metavar="N", type=int, help="candidates merged in one pass over the inputs"
    )
    add_options(parser, "merge", hidden=(*REFUSED, "recipe_name", "expect_gpus", "ranks"))


def command(arguments: argparse.Namespace) -> str:
    """Work on a search until it is finished; returns the summary."""
    from ..search.children import Deadline
    from ..search.definition import out_of, read_search, resolved_text
    from ..search.loop import Loop
    from ..search.results import summary
    from ..search.work import Workshop

    for name, way_out in REFUSED.items():
        if getattr(arguments, name):
            raise UsageError(f"--{name.replace('_', '-')}: {way_out}")
    folder = Path(arguments.relative_to).absolute()
    text = _read(arguments.search)
    if arguments.batch is not None:
        text = resolved_text(text, arguments.search, folder, arguments.batch)
    search = read_search(text, arguments.search, folder, known_methods(arguments))
    out = folder / Path(out_of(search, arguments.out, arguments.search)).expanduser()
    limit = parse_duration(arguments.deadline) if arguments.deadline else None
    workshop = Workshop(
        out=out,
        folder=folder,
        options=_words(arguments, tuple(o.name for o in options_of("merge"))),
        devices=_words(arguments, MODEL_OPTIONS),
        deadline=Deadline(limit, arguments.clock.began),
    )
    if search.measure.in_memory:
        workshop = _in_memory(workshop, arguments)
    Loop(search, workshop).run()
    return "\n".join(summary(search, workshop.out))


def _in_memory(workshop: Workshop, arguments: argparse.Namespace) -> Workshop:
    """Return the workshop for candidates that are never written."""
    from ..search.in_memory import Machine, MemoryWorkshop
    from ..system.torch_startup import require_torch

    require_torch("search")
    machine = Machine(
        plans=plan_options(arguments),
        methods=known_methods(arguments),
        device=arguments.device,
        trust_remote_code=arguments.trust_remote_code,
        allow_nonfinite=arguments.allow_nonfinite,
    )
    fields = {name: getattr(workshop, name) for name in workshop.__dataclass_fields__}
    return MemoryWorkshop(**fields, machine=machine)


def _read(name: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{printable(name)}: not text; a search is a YAML file") from None
    except OSError as error:
        raise InputError(
            f"{printable(name)}: {error.strerror}; give the file of a search"
        ) from None


def _words(arguments: argparse.Namespace, names: tuple[str, ...]) -> list[str]:
    """Return the options of these names that differ from their defaults, as words."""
    words = []
    for option in options_of("merge"):
        value = getattr(arguments, option.name)
        if option.name not in names or option.name in OWN or not value or value == option.default:
            continue
        if option.type is bool:
            words.append(option.flag)
        else:
            values = value if isinstance(value, list) else [value]
            words += [f"{option.flag}={each}" for each in values]
    return words
