"""Lock files on a shared file system: one writer per share of an output, on any host.

Batch systems can run two copies of one job at once (after a node was thought lost), so the owner is
identified by host, process and start time, and touches the file as a sign of life. Clocks are never
compared, since those of two hosts differ: whoever waits for a sign of life watches for a change.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

from ..errors import OutputError
from ..messages import print_line, printable
from .files import output_errors

HEARTBEAT_S = 10.0
STALE_AFTER_S = 90.0
POLL_S = 0.5
ATTEMPTS = 20
LARGEST = 1 << 16
"""Bytes of a lock that are read; they are a few hundred."""

PLACE = ("host", "boot", "space")
"""What owners on one running system have in common: host name, boot, and kernel namespaces, since
containers may share the name of a host but not its process ids."""


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
        self._text = b""
        self._checked = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Lock:
        nonce = os.urandom(8).hex()
        identity = {**_identity(os.getpid()), "about": self._about, "nonce": nonce}
        self._text = json.dumps(identity).encode()
        own = self.path.with_name(f".{self.path.name}.{nonce}")
        try:
            try:
                own.write_bytes(self._text)
                self._take(own)
            finally:
                own.unlink(missing_ok=True)
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
            if self._is_own():
                self.path.unlink()

    def check(self, age_s: float = 0.0) -> None:
        """Raise OutputError if another process has taken this lock over, or its folder is gone.

        Does nothing if that was checked less than `age_s` seconds ago.
        """
        now = time.monotonic()
        if age_s and now - self._checked < age_s:
            return
        out = self.path.parent.parent
        with output_errors(out):
            is_own = self._is_own()
        if not is_own:
            raise OutputError(
                f"{out}: another process has removed or taken over this "
                f"unfinished merge\n  nothing was finished here; run the same command again"
            )
        self._checked = now

    def _is_own(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return _read(self.path) == self._text
        return False

    def _take(self, own: Path) -> None:
        """Give the file `own` the name of the lock, if no living process has it. Busy, OSError."""
        for _ in range(ATTEMPTS):
            try:
                _link(own, self.path)
                return
            except FileExistsError:
                if self._take_over(own):
                    return
        raise Busy(f"{self.path}: cannot take this lock; remove it if no merge is running")

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError), self.path.open("rb") as file:
                # By descriptor: the name may become another process's at any moment.
                if file.read(LARGEST) == self._text:
                    os.utime(file.fileno())

    def _take_over(self, own: Path) -> bool:
        """Try to take over the lock of a dead owner. Raises Busy if the owner lives."""
        try:
            text = _read(self.path)
            if _lives(_owner(text), self.path):
                raise Busy(
                    f"{self.path.parent.parent}: another merge writes here "
                    f"({_named(_owner(text))}); wait for it, or stop it"
                )
            return self._claim(own, text)
        except FileNotFoundError:
            if not self.path.parent.is_dir():
                raise
            return False

    def _claim(self, own: Path, text: bytes) -> bool:
        """Replace the lock if it still has this text and no other process claims it."""
        # Of all processes that see this owner dead, only the one that creates the claim may replace
        # the lock. Claims are kept, so that a slow process cannot claim the same lock again.
        claim = self.path.with_name(f"claim-{zlib.crc32(self.path.name.encode() + text):08x}")
        try:
            _link(own, claim)
            if _read(self.path) != text:
                return False
            own.replace(self.path)
        except FileExistsError:
            claimant = _lives_here(_owner(_read(claim)))
            # A living claimant replaces the lock at once.
            if claimant is False or (claimant is None and _beating([self.path]) is None):
                claim.unlink(missing_ok=True)
            time.sleep(POLL_S / 5)
            return False
        return True


class Watch:
    """Tells locks of dead owners from others at a glance, for whoever looks again and again.

    The lock of another host counts as dead once it was seen for STALE_AFTER_S seconds without a
    change.
    """

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[tuple[int, int, bytes], float]] = {}

    def take(self, path: Path, about: str = "") -> Lock | None:
        """Take a lock that is free or whose owner is dead; return None, without waiting, if not.

        The caller releases the lock: it is entered already. Raises OutputError.
        """
        if not self._is_free(path):
            return None
        lock = Lock(path, about)
        try:
            return lock.__enter__()
        except Busy:
            return None

    def _is_free(self, path: Path) -> bool:
        look = _look(path)
        if look is None:
            return True
        here = _lives_here(_owner(look[2]))
        if here is not None:
            return not here
        before, since = self._seen.get(path, (None, 0.0))
        if look != before:
            self._seen[path] = look, time.monotonic()
            return False
        return time.monotonic() - since > STALE_AFTER_S


def refuse_others(folder: Path, about: str) -> None:
    """Raise Busy if a living process in `folder` works on another merge."""
    others: dict[Path, dict[str, object]] = {}
    with contextlib.suppress(FileNotFoundError):  # the last rank may have removed it
        for path in sorted(folder.glob("lock-*")):
            with contextlib.suppress(FileNotFoundError):
                owner = _owner(_read(path))
                if owner.get("about") != about and _lives_here(owner) is not False:
                    others[path] = owner
    living = [path for path, owner in others.items() if _lives_here(owner)]
    other = living[0] if living else _beating(others)
    if other is not None:
        raise Busy(
            f"{folder.parent}: another merge writes here, of another recipe or other "
            f"inputs ({_named(others[other])})"
        )


def is_held(path: Path) -> bool:
    """Whether a living process has the lock at `path`."""
    with contextlib.suppress(FileNotFoundError):
        return _lives(_owner(_read(path)), path)
    return False


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST)


def _owner(text: bytes) -> dict[str, object]:
    """Return what a lock says of its owner; nothing if it is damaged."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _named(owner: dict[str, object]) -> str:
    return printable(f"process {owner.get('pid')} on {owner.get('host')}")


def _link(source: Path, target: Path) -> None:
    """Link a file, so that the target is complete at once. FileExistsError."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with target.open("xb") as file:
            file.write(_read(source))


def _lives(owner: dict[str, object], path: Path) -> bool:
    """Whether the owner of a lock lives; waits for a sign of life if it is on another host."""
    here = _lives_here(owner)
    return _beating([path]) is not None if here is None else here


def _beating(paths: Iterable[Path]) -> Path | None:
    """Watch locks of other hosts for STALE_AFTER_S; return one that changes, or None.

    Looks are counted, not seconds: time in which this process or the storage stood still shows
    nothing. A lock that vanishes has been released.
    """
    seen = {path: look for path in paths if (look := _look(path)) is not None}
    for number in range(math.ceil(STALE_AFTER_S / POLL_S)):
        if not seen:
            break
        if number == 1:
            owners = ", ".join(_named(_owner(text)) for _, _, text in seen.values())
            text = f"waiting up to {STALE_AFTER_S:.0f} s for a sign of life of {owners}"
            print_line(f"{next(iter(seen)).parent.parent}: {text}", sys.stderr)
        time.sleep(POLL_S)
        for path, before in list(seen.items()):
            now = _look(path)
            if now is None:
                del seen[path]
            elif now != before:
                return path
    return None


def _look(path: Path) -> tuple[int, int, bytes] | None:
    """Return what a sign of life changes; None if the lock is gone.

    The file is opened, since NFS answers from its cache for a name.
    """
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        status = os.fstat(file.fileno())
        return status.st_ino, status.st_mtime_ns, file.read(LARGEST)
    return None


def _lives_here(owner: dict[str, object]) -> bool | None:
    """Whether an owner on this host lives; None if it may be on another host, or is hidden."""
    pid = owner.get("pid")
    if not isinstance(pid, int):
        return None
    here = _identity(pid)
    if any(not here[key] or owner.get(key) != here[key] for key in PLACE):
        return None
    if here["started"] is None and _is_hidden(pid):
        return None
    return here["started"] is not None and owner.get("started") == here["started"]


def _is_hidden(pid: int) -> bool:
    """Whether a process lives that /proc does not show, as the mount option hidepid has it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except (OSError, OverflowError):
        pass
    return False


def _identity(pid: int) -> dict[str, object]:
    """Return the place, id and start time of a process; the time is None if the process is dead."""
    boot, space, started = "", "", None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
        # Start times are counted from the boot that the time namespace shows.
        space += f" {Path('/proc/self/ns/time').readlink()}"  # since Linux 5.6
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        started = None if fields[0] in ("Z", "X") else int(fields[19])  # dead, not yet collected
    host = socket.gethostname()
    return {"host": host, "boot": boot, "space": space, "pid": pid, "started": started}
