"""Quotas that `lfs`, `quota` and `mmlsquota` tell, in the forms in which they print them."""

import grp
import os
import pwd
import time
from pathlib import Path

import pytest

from worker import quota
from worker.mounts import Mount
from worker.quota import Limit, Quota, programs, quotas_of
from worker.quota.limits import Owner

KIB = 1024
USER, GROUP = os.geteuid(), os.getegid()
NAMES = [f"user {pwd.getpwuid(USER).pw_name}", f"group {grp.getgrgid(GROUP).gr_name}"]
GPFS = (
    "mmlsquota::HEADER:version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:"
    "blockQuota:blockLimit:blockInDoubt:blockGrace:filesUsage:filesQuota:filesLimit:filesInDoubt:"
    "filesGrace:remarks:quota:defQuota:fid:filesetname:\n"
)


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    """By quotas, as root of the machine is not."""
    monkeypatch.setattr(quota, "_exempt", lambda: False)


def mounted(monkeypatch: pytest.MonkeyPatch, kind: str, source: str, place: Path) -> None:
    monkeypatch.setattr(quota, "mount_of", lambda held: Mount(kind, source, str(place)))


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Path:
    """A program on the PATH; what it was asked is in the file that comes back."""
    bin_, asked = folder / "bin", folder / f"{name}.asked"
    bin_.mkdir(exist_ok=True)
    path = bin_ / name
    path.write_text(f'#!/bin/bash\necho "$@" >> {asked}\n{text}\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    return asked


LUSTRE = """case "$3 $4" in
"-u {user}") echo "       {place} 1048576*  1000000 2097152 6d23h59m  [12]  0  1000  -" ;;
"-g {group}") printf '%s\\n%s\\n' {place} "            10  0  0  -  5  0  0  -" ;;
"-p 42") echo "       {place}  900 500 2000 none 1 0 0 -"; echo "pid 42 is using default" ;;
esac"""


def test_lustre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, "lustre", "10.0.0.1@o2ib:/work", tmp_path)
    monkeypatch.setattr(programs, "_project", lambda held: [Owner("project", 42)])
    text = LUSTRE.format(user=USER, group=GROUP, place=tmp_path)
    asked = program(tmp_path, monkeypatch, "lfs", text)
    assert quotas_of(tmp_path) == (
        Quota(NAMES[0], Limit(1 << 30, 1000000 * KIB, 2 << 30), Limit(12, 0, 1000)),
        Quota("project 42", Limit(900 * KIB, 500 * KIB, 2000 * KIB, True), Limit(1)),
    )
    assert quotas_of(tmp_path)[1].space.left == 0, "the time over the soft limit has run out"
    words = {f"quota -q -u {USER} {tmp_path}", f"quota -q -g {GROUP} {tmp_path}"}
    assert words < set(asked.read_text().splitlines())


def test_projects_of_folders(tmp_path: Path) -> None:
    held = os.open(tmp_path, os.O_RDONLY)
    assert programs._project(held) == []
    os.close(held)


NFS = """case "$1" in -u) what="user me (uid {user})" ;; -g) what="group us (gid {group})" ;; esac
echo "Disk quotas for group others (gid 77): "
echo "nas:/export 1 1 1 0 1 0 0 0"
echo "Disk quotas for $what: "
echo "     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace"
echo "nas:/other  1 1 1 0 1 0 0 0"
[ "$1" = -g ] || echo "nas:/export   2048*   1000   4096   {time}   10   0   20   0"
exit 1"""


@pytest.mark.parametrize(("time_left", "left"), [(1000, 2048), (-1000, 0)])
def test_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_left: int, left: int) -> None:
    mounted(monkeypatch, "nfs4", "nas:/export", tmp_path)
    end = int(time.time()) + time_left
    text = NFS.format(user=USER, group=GROUP, time=end)
    asked = program(tmp_path, monkeypatch, "quota", text)
    (found,) = quotas_of(tmp_path)
    assert found.whose == NAMES[0] and found.space.left == left * KIB
    assert found.files == Limit(10, 0, 20)
    assert f"-u -w -p -f {tmp_path}" in asked.read_text()


def test_gpfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, "gpfs", "/dev/gpfs0", tmp_path)
    rows = "".join(
        f"mmlsquota::0:1:::{row}:none:e:on:off:::\n"
        for row in (
            f"gpfs0:USR:{USER}:me:2097152:1000:3145728:0:7 days:5:0:9:0",
            f"gpfs1:USR:{USER}:me:1:2:3:0:none:5:0:9:0",
            f"gpfs0:GRP:{GROUP}:us:1:2:3:0:none:5:0:9:0",  # of two filesets
            f"gpfs0:GRP:{GROUP}:us:1:2:4:0:none:5:0:9:0",
        )
    )
    (tmp_path / "said").write_text(GPFS + rows)
    asked = program(tmp_path, monkeypatch, "mmlsquota", f"cat {tmp_path / 'said'}")
    assert quotas_of(tmp_path) == (
        Quota(NAMES[0], Limit(2 << 30, 1000 * KIB, 3 << 30), Limit(5, 0, 9)),
    )
    assert asked.read_text() == "-Y gpfs0\n"


@pytest.mark.parametrize(
    "text",
    ["", "exit 3", "echo no such thing; exit 1", "echo mmlsquota::HEADER:; echo mmlsquota:::",
     "echo 'a b c d e f g h i j k'", "printf '\\377\\000 :'", "kill -9 $$"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("kind", "name"), [("lustre", "lfs"), ("nfs", "quota"), ("gpfs", "mmlsquota")]
)
def test_what_is_not_understood_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str, text: str
) -> None:
    mounted(monkeypatch, kind, "gpfs0", tmp_path)
    program(tmp_path, monkeypatch, name, text)
    assert quotas_of(tmp_path) == ()


def test_programs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for kind in programs.ASK:
        mounted(monkeypatch, kind, "x", tmp_path)
        assert quotas_of(tmp_path) == ()


def test_a_program_that_hangs_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted(monkeypatch, "lustre", "x", tmp_path)
    monkeypatch.setattr(programs, "LIMIT_S", 0.3)
    program(tmp_path, monkeypatch, "lfs", f"echo $$ >> {tmp_path}/pids; sleep 100")
    began = time.monotonic()
    assert quotas_of(tmp_path) == ()
    assert time.monotonic() - began < 5, "all of them together"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids and not any(Path(f"/proc/{pid}").exists() for pid in pids)
