"""One writer at a time; locks of dead processes stop no one."""

import json
import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from merge_worker.errors import OutputError
from merge_worker.output import lock
from merge_worker.output.lock import Busy, Lock, refuse_others


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "out" / "partial").mkdir(parents=True)
    return tmp_path / "out" / "partial" / "lock"


def owner(path: Path, **changes: Any) -> None:
    """Return a lock file as this process would leave it, with changes."""
    with Lock(path):
        content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def test_acquired_and_released(path: Path) -> None:
    threads = threading.active_count()
    with Lock(path):
        assert path.exists()
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()
    assert threading.active_count() == threads
    assert list(path.parent.iterdir()) == []


def test_killed_while_taking_over_a_lock(path: Path) -> None:
    """A process killed between claim and lock does not make the next wait for the claim to age."""
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    owner(path, pid=int(done.stdout))
    name = f"claim-{zlib.crc32(path.name.encode() + path.read_bytes()):08x}"
    path.with_name(name).write_bytes(path.read_bytes())
    began = time.monotonic()
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert time.monotonic() - began < lock.STALE_AFTER_S / 3
    # A claim of a living process is respected.
    owner(path, pid=int(done.stdout))
    name = f"claim-{zlib.crc32(path.name.encode() + path.read_bytes()):08x}"
    owner(path.with_name(name))
    with pytest.raises(Busy, match="cannot take this lock"), Lock(path):
        pass


def test_released_after_an_error(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lock(path):
        _ = 1 / 0
    assert not path.exists()


def test_a_second_process_is_refused(path: Path) -> None:
    with Lock(path), pytest.raises(Busy) as caught, Lock(path):
        pass
    assert str(caught.value).startswith(f"{path.parent.parent}: another merge writes here")
    assert f"process {os.getpid()} on" in str(caught.value)
    assert caught.value.exit_code == 4
    assert list(path.parent.iterdir()) == []


def test_a_dead_process_of_this_host(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    owner(path, pid=int(done.stdout))
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_zombie_process(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner(path, **lock._identity(process.pid))
        with pytest.raises(Busy), Lock(path):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with Lock(path):
            pass


def test_a_process_of_another_merge_is_refused(path: Path) -> None:
    with Lock(path.with_name("lock-1-of-2"), "this"):
        refuse_others(path.parent, "this")
        with pytest.raises(Busy, match="of another recipe"):
            refuse_others(path.parent, "that")
    owner(path.with_name("lock-0-of-2"), started=1, about="dead")
    refuse_others(path.parent, "that")


def test_a_reused_process_id(path: Path) -> None:
    owner(path, started=1)
    with Lock(path):
        pass


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let locks of other hosts expire after 30 looks of 10 ms."""
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    monkeypatch.setattr(lock, "STALE_AFTER_S", 0.3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("age_s", [-1e6, 0, 200, 1e6])
def test_a_silent_host(path: Path, age_s: float, capsys: pytest.CaptureFixture[str]) -> None:
    """The clocks of two hosts and a file server differ: none of them is asked."""
    owner(path, host="elsewhere", pid=7)
    os.utime(path, (time.time() - age_s,) * 2)
    with Lock(path):
        assert json.loads(path.read_text())["host"] != "elsewhere"
    out = path.parent.parent
    told = f"{out}: waiting up to 0 s for a sign of life of process 7 on elsewhere\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("changes", [{"boot": "other"}, {"boot": ""}, {"space": "pid:[1]"}, {}])
def test_another_host_of_the_same_name(
    path: Path, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that beats is respected, whatever this host knows of its process and its clock."""
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    owner(path, pid=1 << 22, **changes)
    if not changes:  # as versions wrote it that knew nothing of boots
        text = json.loads(path.read_text())
        path.write_text(json.dumps({key: text[key] for key in ("host", "space", "pid", "started")}))
    beats, over = iter(range(1, 10_000)), threading.Event()

    def live() -> None:
        while not over.wait(0.05):
            os.utime(path, (next(beats),) * 2)  # of a clock that is decades behind

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(Busy, match="process 4194304 on"), Lock(path):
            pass
    finally:
        over.set()
        thread.join()


def test_only_looks_count(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was suspended while it watched has seen nothing in that time."""
    monkeypatch.setattr(lock, "POLL_S", 0.1)
    owner(path, host="elsewhere")
    looks, now = [0], [0.0]
    real = lock._look

    def look(at: Path) -> object:
        looks[0] += 1
        now[0] += 1000.0
        return real(at)

    monkeypatch.setattr(lock, "_look", look)
    monkeypatch.setattr(lock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)
    with Lock(path):
        pass
    assert looks[0] > lock.STALE_AFTER_S / 0.1


@pytest.mark.usefixtures("hasty")
def test_many_silent_locks_are_watched_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        owner(path.with_name(f"lock-{number}-of-40"), host="elsewhere", about="that")
    naps = list[float]()
    monkeypatch.setattr(lock.time, "sleep", naps.append)
    refuse_others(path.parent, "this")
    assert len(naps) == 30


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("text", [b"", b"[1]", b"\xff\xfe", b"{" * 9000, b'{"pid": "\\u001b"}'])
def test_a_damaged_lock(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    refuse_others(path.parent, "this")
    with Lock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("change", ["other", "gone", "folder"])
def test_a_lost_lock_is_noticed(path: Path, change: str) -> None:
    with Lock(path) as held:
        held.check()
        stranger = b"other"
        if change == "other":
            path.write_bytes(stranger)
        elif change == "gone":
            path.unlink()
        else:
            path.parent.rename(path.parent.with_name("trash"))
        before = path.stat().st_mtime_ns if path.exists() else 0
        held.check(age_s=60)  # looked at just now
        with pytest.raises(OutputError, match="has removed or taken over"):
            held.check()
        assert not path.exists() or path.stat().st_mtime_ns == before


def test_a_host_that_is_alive(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    owner(path, host="elsewhere", pid=7)
    over = threading.Event()

    def live() -> None:
        while not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(Busy, match="process 7 on elsewhere"), Lock(path):
            pass
    finally:
        over.set()
        thread.join()


def test_the_heartbeat_is_renewed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    with Lock(path):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert path.stat().st_mtime > 2


def test_only_one_of_many_acquires_it(path: Path) -> None:
    owner(path, started=1)  # stale, and all of them see it
    inside, most, busy = 0, 0, 0
    guard, start = threading.Lock(), threading.Barrier(8)

    def take() -> None:
        nonlocal inside, most, busy
        start.wait()
        try:
            with Lock(path):
                with guard:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.2)
                with guard:
                    inside -= 1
        except Busy:
            with guard:
                busy += 1

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and busy == 7


def test_a_folder_that_is_missing_or_not_writable(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"), Lock(tmp_path / "gone" / "lock"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Not a directory"), Lock(tmp_path / "file" / "lock"):
        pass


def test_a_lock_that_was_taken_over_is_not_removed(path: Path) -> None:
    with Lock(path):
        path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": 1}))
    assert path.exists()
