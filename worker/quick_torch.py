"""Loads torch without what only tracing and compiling need: a third of its start-up time.

torch registers the shapes that its operators give to tensors without data (meta kernels) by
importing all of its decompositions. A merge never makes such a tensor. The module is left out only
in releases of torch where the whole test suite has run that way, only in a process of our own, and
can still be imported afterwards.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module, metadata
from types import ModuleType

TRIED = ("2.13.",)
_SKIPPED = "torch._meta_registrations"


def prepare() -> None:
    """Before the first import of torch in a process that does nothing but merge."""
    if "torch" in sys.modules:
        return
    # Torch loads numpy, whose threads would be lost in a fork; what is used of it needs none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return
    if version.startswith(TRIED):
        sys.modules[_SKIPPED] = ModuleType(_SKIPPED)


def restore() -> None:
    """After the import of torch: whoever asks for the module from now on gets the real one."""
    held = sys.modules.get(_SKIPPED)
    if held is not None and held.__spec__ is None:
        del sys.modules[_SKIPPED]


def complete() -> None:
    """After the import of torch, for what needs all of it: generators of random numbers do."""
    if _SKIPPED not in sys.modules or sys.modules[_SKIPPED].__spec__ is None:
        restore()
        import_module(_SKIPPED)
