"""`merge-launch payload`: the worker that jobs carry, as a digest or a file."""

from __future__ import annotations

from pathlib import Path

from merge_worker.command_line.parser import Parser
from merge_worker.messages import printable

from ..errors import OutputError
from ..job import payload
from .decorators import Run, say


def options(parser: Parser, place: str) -> Run:
    """Add the options of `payload`."""
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="write the worker to a file")
    parser.add_alias("--output", "out", type=Path)
    return lambda arguments: payload_command(arguments.out)


def payload_command(output: Path | None) -> int:
    """Print the worker's digest; -o writes it as a file."""
    worker = payload.build()
    if output is not None:
        try:
            output.write_bytes(worker.archive)
        except OSError as error:
            raise OutputError(f"{output}: {error.strerror}") from None
    print(f"{worker.digest}  {printable(str(output or 'merge-worker.pyz'))}")
    say(f"{len(worker.archive)} bytes, {len(worker.embedded.encoded)} in a job")
    return 0
