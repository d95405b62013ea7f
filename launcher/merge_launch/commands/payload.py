"""`merge-launch payload`: the worker that jobs carry, as a digest or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merge_worker.messages import printable

from ..errors import OutputError
from ..job import payload
from .decorators import say


def payload_command(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="write the worker to this file")
    ] = None,
) -> int:
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
