"""The state of torch in a program that has a use of its own for it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..system.torch_startup import require_torch


class _Running:
    """The number of calls that compute, and the threads that torch had before the first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.threads = 1


_RUNNING = _Running()


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch use one thread in each of ours while the block runs. UsageError without torch.

    The number is one for the whole process, so the last of several calls restores it.
    """
    require_torch()
    collects = gc.isenabled()
    import torch

    from ..engine import device  # which enables the collector, as a command needs it

    assert device
    if not collects:
        gc.disable()
    with _RUNNING.lock:
        if _RUNNING.calls == 0:
            _RUNNING.threads = torch.get_num_threads()
        _RUNNING.calls += 1
    try:
        yield
    finally:
        with _RUNNING.lock:
            _RUNNING.calls -= 1
            if _RUNNING.calls == 0:
                torch.set_num_threads(_RUNNING.threads)
