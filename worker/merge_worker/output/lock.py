"""Lock files on a shared file system: one writer per share of an output, on any host.

Batch systems can run two copies of one job at once (after a node was thought lost), so the owner is
identified by host, process and start time, and touches the file as a sign of life.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import zlib
from pathlib import Path

from ..errors import OutputError

HEARTBEAT_S = 10.0
STALE_AFTER_S = 90.0
POLL_S = 0.5
ATTEMPTS = 20


class Busy(OutputError):
    """Another process holds the lock."""


class Lock:
    """A lock as a context. Raises Busy if another living process holds it.

    The lock of a dead owner on this host is taken over at once; that of an owner on another host
    after STALE_AFTER_S seconds without a sign of life. `about` identifies the owner's work.
    """

    def __init__(self, path: Path, about: str = "") -> None:
        self.path = path
        self._about = about
        self._text = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        nonce = os.urandom(8).hex()
        self._text = json.dumps({**_identity(os.getpid()), "about": self._about, "nonce": nonce})
        try:
            self._take()
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot write this lock: {error.strerror}\n"
                f"  finished work is kept; fix the cause and run the same command to resume"
            ) from None
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            # Another process may have taken it over while this one was suspended.
            if self.path.read_text() == self._text:
                self.path.unlink()

    def _take(self) -> None:
        for _ in range(ATTEMPTS):
            try:
                fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                if self._take_over():
                    return
                continue
            with os.fdopen(fd, "w") as file:
                file.write(self._text)
            return
        raise Busy(f"{self.path}: cannot take this lock; remove it if no merge is running")

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _take_over(self) -> bool:
        """Try to take over the lock of a dead owner. Raises Busy if the owner lives."""
        try:
            text = self.path.read_text()
            owner = _owner(text)
            if owner is None and _age(self.path) < HEARTBEAT_S:
                time.sleep(POLL_S)  # just being written
                return False
            if owner is not None and _lives(owner, self.path):
                raise Busy(
                    f"{self.path.parent.parent}: another merge writes here "
                    f"(process {owner.get('pid')} on {owner.get('host')}); wait for it, or stop it"
                )
            return self._claim(text)
        except FileNotFoundError:
            return False

    def _claim(self, text: str) -> bool:
        """Replace the lock if it still has this text and no other process claims it."""
        # Of all processes that see this owner dead, only the one that creates the claim may replace
        # the lock. Claims are kept, so that a slow process cannot claim the same lock again.
        claim = self.path.with_name(f"claim-{zlib.crc32((self.path.name + text).encode()):08x}")
        own = self.path.with_name(f".{self.path.name}.{os.urandom(8).hex()}")
        own.write_text(self._text)
        try:
            _link(own, claim)
            if self.path.read_text() != text:
                return False
            own.replace(self.path)
        except FileExistsError:
            claimant = _owner(claim.read_text()) or {}
            if _age(claim) > STALE_AFTER_S or _lives_here(claimant) is False:
                claim.unlink(missing_ok=True)
            time.sleep(POLL_S / 5)
            return False
        finally:
            own.unlink(missing_ok=True)
        return True


def refuse_others(folder: Path, about: str) -> None:
    """Raise Busy if a living process in `folder` works on another merge."""
    paths: list[Path] = []
    with contextlib.suppress(FileNotFoundError):  # the last rank may have removed it
        paths = sorted(folder.iterdir())
    for path in paths:
        owner = _holder(path) if path.name.startswith("lock-") else None
        if owner is not None and owner.get("about") != about:
            raise Busy(
                f"{folder.parent}: another merge writes here, of another recipe or other "
                f"inputs (process {owner.get('pid')} on {owner.get('host')})"
            )


def is_held(path: Path) -> bool:
    """Whether a living process has the lock at `path`."""
    return _holder(path) is not None


def _holder(path: Path) -> dict[str, object] | None:
    """Return the living owner of the lock at `path`, or None."""
    with contextlib.suppress(FileNotFoundError):
        owner = _owner(path.read_text())
        if owner is not None and _lives(owner, path):
            return owner
    return None


def _owner(text: str) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _link(source: Path, target: Path) -> None:
    """Link a file, so that the target is complete at once. FileExistsError."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _lives(owner: dict[str, object], path: Path) -> bool:
    """Whether the owner of a lock lives; waits for a sign of life if it is on another host."""
    alive = _lives_here(owner)
    if alive is not None:
        return alive
    seen = path.stat().st_mtime_ns
    while _age(path) < STALE_AFTER_S:
        time.sleep(POLL_S)
        if path.stat().st_mtime_ns != seen:
            return True
    return False


def _lives_here(owner: dict[str, object]) -> bool | None:
    """Whether an owner on this host lives; None if it is on another host."""
    pid = owner.get("pid")
    here = _identity(pid if isinstance(pid, int) else -1)
    if any(owner.get(key) != here[key] for key in ("host", "space")):
        return None
    return here["started"] is not None and owner.get("started") == here["started"]


def _age(path: Path) -> float:
    """Return the seconds since the last sign of life, by the clock of the file system."""
    probe = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _identity(pid: int) -> dict[str, object]:
    """Return host, process id and start time, which is None if the process is dead.

    Containers may share the name of a host but not its process ids: `space`, the PID namespace,
    distinguishes them.
    """
    started: int | None = None
    space = ""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
        text = Path(f"/proc/{pid}/stat").read_text()
        fields = text.rsplit(")", 1)[1].split()
        started = None if fields[0] in ("Z", "X") else int(fields[19])  # dead, not yet collected
    except (OSError, ValueError, IndexError):
        with contextlib.suppress(OSError):
            if not Path("/proc").is_dir():
                os.kill(pid, 0)
                started = 0
    return {"host": socket.gethostname(), "space": space, "pid": pid, "started": started}
