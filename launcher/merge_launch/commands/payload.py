"""TODO"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import OutputError
from .wiring import say


def payload_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the worker to this file")
    ] = None,
) -> int:
    """Print the worker's digest; -o writes it as a file."""
    from ..job import payload

    made = payload.build()
    if output is not None:
        try:
            output.write_bytes(made.archive)
        except OSError as error:
            raise OutputError(f"{output}: {error.strerror}") from None
    print(f"{made.digest}  {output or 'merge-worker.pyz'}")
    say(f"{len(made.archive)} bytes, {len(made.embedded.encoded)} in a job")
    return 0
