"""Processes of merge-worker that start in milliseconds, because their parent has loaded torch.

Run as a script, this is the parent: it loads the worker and forks a child for every line of JSON on
its standard input. Children are real processes with ids, signals and files of their own.
"""

import contextlib
import ctypes
import importlib
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support.paths import SOURCES

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
CLONE_NEWUTS, CLONE_NEWNET = 0x0400_0000, 0x4000_0000
"""Of linux/sched.h."""


class Ended(NamedTuple):
    """The end of a process: exit code, or minus the signal that killed it, and its output."""

    code: int
    out: str
    err: str


class Forks:
    """The forking parent, as the tests use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.ended: dict[str, int] = {}  # by place: the system uses process ids again
        environment = {**os.environ, "PYTHONPATH": f"{SOURCES}{os.pathsep}{ROOT / 'tests'}"}
        self.parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
        )

    def start(self, *words: object, env: Mapping[str, str] | None = None) -> "Fork":
        self.count += 1
        place = self.folder / str(self.count)
        order = {"words": [str(w) for w in words], "env": dict(env or {}), "place": str(place)}
        assert self.parent.stdin is not None
        self.parent.stdin.write(json.dumps(order).encode() + b"\n")
        deadline = time.monotonic() + PATIENCE_S
        pid_file = place.with_suffix(".pid")
        while not pid_file.exists() or not pid_file.read_text():
            assert time.monotonic() < deadline and self.parent.poll() is None
            time.sleep(0.002)
        return Fork(self, int(pid_file.read_text()), place)

    def collect(self, timeout_s: float) -> None:
        assert self.parent.stdout is not None
        ready, _, _ = select.select([self.parent.stdout], [], [], timeout_s)
        if ready:
            for line in self.parent.stdout.readline().splitlines():
                code, place = line.decode().split(" ", 1)
                self.ended[place] = int(code)

    def close(self) -> None:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.close()
        self.parent.wait(PATIENCE_S)
        self.parent.stdout.close()


class Fork(NamedTuple):
    """One process of merge-worker."""

    forks: Forks
    pid: int
    place: Path

    def kill(self, number: int = signal.SIGKILL) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def read_bytes(self) -> int:
        """Return the input bytes read, if the process ran with COUNT_READS."""
        note = self.place.with_suffix(".reads")
        return int.from_bytes(note.read_bytes(), sys.byteorder) if note.exists() else 0

    def running(self) -> bool:
        self.forks.collect(0.0)
        return str(self.place) not in self.forks.ended

    def wait(self) -> Ended:
        deadline = time.monotonic() + PATIENCE_S
        while str(self.place) not in self.forks.ended:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.place}: {self.place.with_suffix('.err').read_text()}")
            self.forks.collect(0.1)
        code = os.waitstatus_to_exitcode(self.forks.ended[str(self.place)])
        # A process killed at once may not have opened its files.
        places = [self.place.with_suffix(end) for end in (".out", ".err")]
        return Ended(code, *(place.read_text() if place.exists() else "" for place in places))


def child(order: dict[str, Any]) -> None:
    from merge_worker.cli import main

    for number, end in ((1, ".out"), (2, ".err")):
        fd = os.open(order["place"] + end, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(fd, number)
    os.environ.update(order["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if order["env"].get("SIGNAL_IN"):
        signal_in(*order["env"]["SIGNAL_IN"].split(), Path(order["place"] + ".at"))
    if order["env"].get("HOST"):
        on_another_host(*order["env"]["HOST"].split())
    if order["env"].get("COUNT_READS"):
        count_reads(Path(order["place"] + ".reads"))
    code = main(order["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def on_another_host(name: str, ahead_s: str) -> None:
    """Give this process a host of its own, with another clock, and locks that expire soon.

    With the rights for it, a network and a host name of its own, else only the name.
    """
    from merge_worker.output import lock

    if ctypes.CDLL(None).unshare(CLONE_NEWNET | CLONE_NEWUTS) == 0:
        socket.sethostname(name)
    else:
        socket.gethostname = lambda: name  # type: ignore[assignment]
    real_time, real_utime = time.time, os.utime

    def utime(path: Any, times: Any = None, **named: Any) -> None:
        if times is None and "ns" not in named:
            times = (time.time(),) * 2  # as clients of some network file systems do
        real_utime(path, times, **named)

    time.time, os.utime = lambda: real_time() + float(ahead_s), utime
    lock.HEARTBEAT_S, lock.STALE_AFTER_S, lock.POLL_S = 0.1, 1.5, 0.05


def count_reads(note: Path) -> None:
    """Count the input bytes that lanes began to read, in a file that survives a kill."""
    from merge_worker.checkpoint.reader import Files

    note.write_bytes(bytes(8))
    with note.open("r+b") as file:
        counter = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")
    real, lock = Files.read, threading.Lock()

    def read(self: Files, path: str, offset: int, buffer: memoryview, *rest: Any) -> None:
        with lock:
            counter[0] += buffer.nbytes
        real(self, path, offset, buffer, *rest)

    Files.read = read  # type: ignore[method-assign]


def signal_in(module: str, names: str, number: str, seconds: str, note: Path) -> None:
    """Make the first call of a function send a signal to its process and sleep for `seconds`."""
    *path, name = names.split(".")
    place: Any = importlib.import_module(module)
    for part in path:
        place = getattr(place, part)
    real, first = getattr(place, name), threading.Lock()

    def hurt(*words: Any, **named: Any) -> Any:
        if first.acquire(blocking=False):
            note.write_text(str(time.monotonic()))
            os.kill(os.getpid(), int(number))
            time.sleep(float(seconds))
        return real(*words, **named)

    setattr(place, name, hurt)


def serve() -> None:
    from merge_worker import cli
    from merge_worker.engine import stream
    from support import two_pass_method

    assert cli and stream
    two_pass_method.register()
    places: dict[int, str] = {}
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0.01)
        if ready:
            line = sys.stdin.readline()
            if not line:
                return
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                child(order)
            places[pid] = order["place"]
            Path(order["place"]).with_suffix(".pid").write_text(str(pid))
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                print(status, places.pop(pid), flush=True)


if __name__ == "__main__":
    serve()
