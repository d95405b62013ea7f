"""Quotas: what the kernel and other programs tell of them, and what a merge says of it."""

import errno
import grp
import os
import pwd
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from merges import average, one_tensor_models, plan_of, some_models
from small_disks import MIB, make_disk, run

from worker import disk, quota
from worker.errors import OutputError
from worker.mounts import Mount
from worker.plan import PlanOptions, make_plan
from worker.quota import Limit, Quota, kernel, quotas_of
from worker.quota.limits import Owner
from worker.recipe import parse

KIB = 1024
USER, GROUP = os.geteuid(), os.getegid()
NAMES = [f"user {pwd.getpwuid(USER).pw_name}", f"group {grp.getgrgid(GROUP).gr_name}"]


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    """By quotas, as root of the machine is not."""
    monkeypatch.setattr(quota, "_exempt", lambda: False)


class Kernel:
    """Answers system calls; `quotas` by owner, as numbers of struct if_dqblk."""

    def __init__(self, calls: tuple[str, ...] = ("syscall", "quotactl")) -> None:
        self.quotas: dict[Owner, tuple[int, ...]] = {}
        self.calls = calls
        self.asked: list[tuple[Any, ...]] = []

    def __call__(self, name: str, *words: Any) -> int:
        self.asked.append((name, *words[:-1]))
        number, owner, reply = words[0], words[-2], words[-1]
        command = words[2] if name == "syscall" else number
        if name not in self.calls or command >> 8 != 0x800007:
            return -1
        found = self.quotas.get(Owner(("user", "group")[command & 255], owner))
        if found is None:
            return -1
        reply[: kernel.REPLY.size] = struct.pack("=8QI4x", *found, 63)
        return 0


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(kernel, "_call", made)
    return made


def test_what_the_kernel_tells(tmp_path: Path, answers: Kernel) -> None:
    soon, past = int(time.time()) + 1000, int(time.time()) - 1000
    answers.quotas[Owner("user", USER)] = (100, 50, 60 * KIB, 0, 7, 9, soon, past)
    answers.quotas[Owner("group", GROUP)] = (0,) * 8  # no limit at all
    (found,) = quotas_of(tmp_path)
    assert found == Quota(
        NAMES[0], Limit(60 * KIB, 50 * KIB, 100 * KIB, False), Limit(9, 7, 0, True)
    )
    assert (found.space.left, found.files.left) == (40 * KIB, 0)
    assert [asked[:2] for asked in answers.asked] == [("syscall", 443)] * 2


def test_an_old_kernel_is_asked_by_the_name_of_the_device(
    tmp_path: Path, answers: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "mount_of", lambda held: Mount("xfs", "/dev/sda1", "/"))
    answers.calls = ("quotactl",)
    answers.quotas[Owner("group", GROUP)] = (100, 0, 0, 0, 0, 0, 0, 0)
    assert quotas_of(tmp_path) == (Quota(NAMES[1], Limit(0, 0, 100 * KIB)),)
    names = [asked[2].value for asked in answers.asked if asked[0] == "quotactl"]
    assert names == [b"/dev/sda1"] * 2


def test_the_group_is_that_of_new_files(tmp_path: Path, answers: Kernel) -> None:
    other = GROUP + 1 if os.geteuid() == 0 else os.getgroups()[-1]
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", -1, other)
    answers.quotas[Owner("group", other)] = (1, 0, 0, 0, 0, 0, 0, 0)
    answers.quotas[Owner("group", GROUP)] = (2, 0, 0, 0, 0, 0, 0, 0)
    assert quotas_of(tmp_path / "shared")[0].space.hard == 2 * KIB
    (tmp_path / "shared").chmod(0o2775)
    assert quotas_of(tmp_path / "shared")[0].space.hard == KIB


def test_this_kernel_is_asked_and_nothing_fails(tmp_path: Path) -> None:
    """The call itself: of a file system without quotas, or of one that has some."""
    assert all(isinstance(each, Quota) for each in quotas_of(tmp_path))
    held = os.open(tmp_path, os.O_RDONLY)
    words = (held, kernel.GET << 8, USER, kernel.ctypes.create_string_buffer(72))
    done = kernel._call("syscall", kernel.QUOTACTL_FD, *words)
    told = kernel.ctypes.get_errno()
    os.close(held)
    asked = (errno.ESRCH, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOENT)
    assert done == 0 or told in asked, os.strerror(told)
    assert kernel._call("no_such_function") == -1
    assert quotas_of(tmp_path / "gone") == ()


def test_root_of_the_machine_is_not_asked_for(
    tmp_path: Path, answers: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(kernel, "_call", answers)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    quotas_of(tmp_path)
    machine = Path("/proc/self/uid_map").read_text().split() == quota.UNBOUND.split()
    assert bool(answers.asked) is not machine


OUT = Path("out")


def said(found: Quota, needs: int, files: int = 1) -> str:
    with pytest.raises(OutputError) as caught:
        found.refuse(OUT, needs, files)
    return str(caught.value)


def test_what_is_said() -> None:
    whole = Quota("user anna", Limit(9 * 10**9, 5 * 10**9, 10 * 10**9), Limit(995, 0, 1000))
    assert said(whole, 2 * 10**9) == (
        "out: needs 2.00 GB, only 1.00 GB are left of the quota of user anna there (10.00 GB)\n"
        "  make room, or choose another folder"
    )
    assert said(whole, 1, 17).startswith("out: needs 17 files, only 5 files are left of the quota")
    assert whole.refuse(OUT, 10**9, 5) == [
        "out: needs 1.00 GB, which is more than the soft limit of user anna there leaves "
        "(5.00 GB, 9.00 GB used)"
    ]
    assert Quota("user anna", Limit(5)).refuse(OUT, 1 << 60, 1 << 30) == []


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return some_models(tmp_path)


def test_a_merge_is_refused_before_it_starts(
    tmp_path: Path, models: list[Path], answers: Kernel, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.quotas[Owner("user", USER)] = (60 * KIB, 0, 0, 0, 0, 0, 0, 0)
    assert average(tmp_path / "out", models) == 4
    text = capsys.readouterr().err
    assert f"only 0.06 GB are left of the quota of {NAMES[0]} there" in text
    assert len(text.splitlines()) == 2 and not (tmp_path / "out").exists()
    answers.quotas[Owner("user", USER)] = (90 * KIB, 60 * KIB, 0, 0, 0, 0, 0, 0)
    assert average(tmp_path / "out", models) == 0
    assert "warning: " in (text := capsys.readouterr().err) and "soft limit" in text
    assert average(tmp_path / "out", models) == 0
    assert "limit" not in capsys.readouterr().err, "nothing is written any more"


def test_what_is_there_already_is_not_needed_again(
    tmp_path: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of(models), tmp_path / "out"
    before = disk.room(plan, out).needs
    assert before == plan.output_bytes + disk.SPARE_BYTES
    (out / disk.PARTIAL).mkdir(parents=True)
    with (out / disk.PARTIAL / "model.safetensors.partial").open("wb") as file:
        file.write(os.urandom(8192))
        file.truncate(1 << 30)  # a hole takes nothing
        os.fsync(file.fileno())
    assert disk.room(plan, out).needs == before - 8192


def test_results_that_are_kept_meanwhile_count(tmp_path: Path, models: list[Path]) -> None:
    first = f"name: first\nmerge_method: slerp\nbase_model: {models[1]}\nmodels: [{models[0]}]\n"
    last = f"merge_method: linear\nmodels: [first, {models[2]}]\nparameters: {{weight: 1}}\n"
    text = f"{first}parameters: {{t: 0.5}}\n---\n{last}"
    plan = make_plan(parse(text), PlanOptions(stages=tmp_path / ".out.stages"))
    (stage,) = plan.stages
    assert stage.folder is not None
    whole = plan.output_bytes + stage.output_bytes + disk.SPARE_BYTES
    assert disk.room(plan, tmp_path / "out").needs == whole
    stage.folder.mkdir(parents=True)
    (stage.folder / "model.safetensors").write_bytes(os.urandom(8192))
    os.sync()
    assert disk.room(plan, tmp_path / "out").needs == whole - 8192


@pytest.fixture
def subvolume(tmp_path: Path) -> Iterator[Path]:
    made = make_disk("btrfs", tmp_path)
    place = made.place / "mine"
    assert run("btrfs", "subvolume", "create", str(place)).returncode == 0
    if run("btrfs", "quota", "enable", str(made.place)).returncode != 0:
        pytest.skip("this kernel has no quotas of btrfs")
    yield place
    made.unmount()


@pytest.mark.slow
def test_a_real_quota_of_btrfs(
    subvolume: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shutil.which("btrfs")
    assert quotas_of(subvolume) == ()
    assert run("btrfs", "qgroup", "limit", "70M", str(subvolume)).returncode == 0
    (found,) = quotas_of(subvolume)
    assert found.space.hard == 70 * MIB and 0 < found.space.used < MIB
    assert quotas_of(subvolume.parent) == (), "of another subvolume"
    (subvolume / "folder").mkdir()
    assert quotas_of(subvolume / "folder")[0].whose == found.whose
    models = one_tensor_models(tmp_path, 5_000_000)
    assert average(subvolume / "out", models) == 4
    assert f"of the quota of {found.whose} there" in capsys.readouterr().err
    assert run("btrfs", "qgroup", "limit", "90M", str(subvolume)).returncode == 0
    assert average(subvolume / "out", models) == 0
