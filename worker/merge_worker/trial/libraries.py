"""Transformers, imported late and kept quiet: its warnings are of no use beside our own."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from ..errors import UsageError
from ..system import torch_startup
from ..system.packages import missing_package

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def require_transformers(what: str) -> None:
    """Raise UsageError if transformers is not installed; `what` is the command or option."""
    if find_spec("transformers") is None:
        raise missing_package(what, "transformers", "tokenizers")


def load_transformers(what: str) -> Any:
    """Return the module. UsageError if it is missing or does not fit torch."""
    require_transformers(what)
    torch_startup.complete()  # transformers needs what a quick start of torch has put off
    try:
        import transformers
    except Exception as error:  # another release of torch, of tokenizers, of the hub's client
        raise UsageError(f"{what}: transformers cannot be imported: {first_line(error)}") from None
    return transformers


@contextlib.contextmanager
def quiet(transformers: Any) -> Iterator[list[str]]:
    """Print no warning and no bar of transformers while the block runs; collect its warnings."""
    heard = _Heard()
    library = transformers.utils.logging
    logger, level = library.get_logger("transformers"), library.get_verbosity()
    bars = library.is_progress_bar_enabled()
    propagates, handlers = logger.propagate, list(logger.handlers)
    library.set_verbosity_warning()
    library.disable_progress_bar()
    logger.handlers, logger.propagate = [heard], False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield heard.texts
    finally:
        logger.handlers, logger.propagate = handlers, propagates
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()


class _Heard(logging.Handler):
    """Keeps the texts of messages, without colors."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(_COLOR.sub("", record.getMessage()))


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, or its class if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _COLOR.sub("", lines[0])[:300] if lines else type(error).__name__
