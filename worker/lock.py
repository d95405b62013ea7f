"""A lock file on a shared file system: one writer per share of an output, on any host.

Batch systems can run two copies of one job at once (a node that was thought lost), so the owner is
named by host, process and its start time, and shows that it lives by touching the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from .errors import OutputError

HEARTBEAT_S = 10.0
STALE_AFTER_S = 90.0


class Busy(OutputError):
    """Somebody else holds the lock."""


class Lock:
    """Context manager. Busy (an OutputError) if another living process holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        for _ in range(5):
            try:
                fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                self._clear_if_stale()
                continue
            with os.fdopen(fd, "w") as file:
                json.dump(_identity(os.getpid()), file)
            self._thread.start()
            return self
        raise Busy(f"{self.path}: cannot take this lock; remove it if no merge is running")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _clear_if_stale(self) -> None:
        try:
            owner = json.loads(self.path.read_text())
            age = self._age()
        except FileNotFoundError:
            return
        except ValueError:
            owner, age = {}, self._age()
            if age < HEARTBEAT_S:  # just being written
                time.sleep(0.2)
                return
        if owner.get("host") == socket.gethostname():
            alive = _identity(owner.get("pid", -1)) == owner
        else:
            alive = age < STALE_AFTER_S
        if alive:
            raise Busy(
                f"{self.path.parent.parent}: another merge writes here "
                f"(process {owner.get('pid')} on {owner.get('host')}); wait for it, or stop it"
            )
        # Renaming first makes sure that only one of several waiting processes removes it.
        grave = self.path.with_name(f"{self.path.name}.stale-{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(grave)
            grave.unlink()

    def _age(self) -> float:
        """Seconds since the last heartbeat, by the clock of the file system."""
        probe = self.path.with_name(f"{self.path.name}.clock-{os.getpid()}")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _identity(pid: int) -> dict[str, object]:
    """Host, process id and start time of a process; `started` is None if it does not live."""
    started = None
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        started = int(text.rsplit(")", 1)[1].split()[19])
    except (OSError, ValueError, IndexError):
        with contextlib.suppress(OSError):
            if not Path("/proc").is_dir():
                os.kill(pid, 0)
                started = 0
    return {"host": socket.gethostname(), "pid": pid, "started": started}
