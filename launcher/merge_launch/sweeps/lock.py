"""The lock of a sweep: of two shells that submit it at once, the second finds it submitted."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator

from merge_worker.errors import OutputError
from merge_worker.output.lock import Busy, Lock

from ..tracking import records
from .definition import Sweep

POLL_S = 1.0


@contextlib.contextmanager
def held(sweep: Sweep, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a sweep's folder; wait for a process that has it, and tell so.

    Without a state folder that can be written there is no lock: submitting matters more.
    """
    digest = hashlib.sha256(sweep.out.encode(errors="surrogateescape")).hexdigest()[:16]
    path = records.folder() / f"sweep-{digest}"
    told = False
    with contextlib.ExitStack() as stack:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(Lock(path, sweep.out))
            except Busy:
                if not told:
                    tell(f"{sweep.out}: another process is submitting this sweep; waiting for it")
                told = True
                time.sleep(POLL_S)
                continue
            except (OSError, OutputError):
                pass
            break
        yield
