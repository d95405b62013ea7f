"""Merges into real small file systems that are full, too narrow, read-only, or gone half-way.

Each time: code 4 in words, what is done stays, and the same command ends with the same bytes.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from merges import average, digest, one_tensor_models, shards_of
from small_disks import MIB, Disk, make_disk, run

from worker import target
from worker.progress import Progress
from worker.store import PARTIAL

pytestmark = pytest.mark.slow
Capture = pytest.CaptureFixture[str]
OUT_BYTES = 20_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return one_tensor_models(tmp_path_factory.mktemp("models"), OUT_BYTES // 2)


@pytest.fixture(scope="module")
def whole(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What an undisturbed merge has."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert average(out, models) == 0
    return digest(out)


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    made = make_disk(request.param, tmp_path)
    yield made
    while os.path.ismount(made.place):
        run("umount", "-l", str(made.place))


@pytest.fixture
def half_way(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen once when a third of the result is written."""

    def happens(act: Callable[[], object]) -> None:
        real, waits = Progress.wrote, [act]

        def wrote(self: Progress, count: int) -> None:
            real(self, count)
            if self.bytes_out > OUT_BYTES // 3 and waits:
                waits.pop()()

        monkeypatch.setattr(Progress, "wrote", wrote)

    return happens


def merge(disk: Disk, models: list[Path], *words: str) -> int:
    """In small pieces, so that there is a half-way."""
    for lock in (disk.place / "out" / PARTIAL).glob("lock-*"):
        lock.unlink()  # a process that ended would not hold it; these tests live on
    return average(disk.place / "out", models, "--threads", "1", "--memory", "4MiB", *words)


def ends(disk: Disk, models: list[Path], whole: dict[str, int], capsys: Capture) -> None:
    capsys.readouterr()
    assert merge(disk, models, "--progress", "plain") == 0
    assert "continuing at" in capsys.readouterr().err, "not from the beginning"
    assert digest(disk.place / "out") == whole
    assert not list((disk.place / "out").glob(f"{PARTIAL}*"))


def told(capsys: Capture, *words: str) -> None:
    text = capsys.readouterr().err
    assert any(word in text for word in words), text
    assert "the same command continues" in text and "Traceback" not in text
    assert len(text.strip().splitlines()) <= 3


@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "xfs", "btrfs"], indirect=True)
def test_no_room_from_the_beginning(disk: Disk, models: list[Path], capsys: Capture) -> None:
    ballast = disk.fill(8 * MIB)
    assert merge(disk, models) == 4
    assert "are free there" in capsys.readouterr().err
    assert [path.name for path in disk.place.iterdir() if path.name != "lost+found"] == [
        ballast.name
    ]


@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "xfs", "btrfs"], indirect=True)
def test_full_half_way(
    disk: Disk,
    models: list[Path],
    whole: dict[str, int],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ballast = disk.fill(12 * MIB)
    monkeypatch.setattr(target, "SPARE_BYTES", -(1 << 30))  # as if it filled up later
    assert merge(disk, models) == 4
    told(capsys, "No space left on device")
    assert [path.name for path in (disk.place / "out").iterdir()] == [PARTIAL]
    ballast.unlink()
    run("sync", "-f", str(disk.place))
    if disk.kind == "ext4":  # which takes the room before it begins
        assert merge(disk, models) == 0
        assert digest(disk.place / "out") == whole
    else:
        ends(disk, models, whole, capsys)


@pytest.mark.parametrize("disk", ["btrfs"], indirect=True)
def test_a_quota_half_way(
    disk: Disk, models: list[Path], whole: dict[str, int], capsys: Capture
) -> None:
    out = disk.place / "out"
    assert run("btrfs", "subvolume", "create", str(out)).returncode == 0
    limits = ("btrfs", "qgroup", "limit")
    if run("btrfs", "quota", "enable", str(disk.place)).returncode != 0:
        pytest.skip("this kernel has no quotas of btrfs")
    assert run(*limits, "10M", str(out)).returncode == 0
    assert merge(disk, models) == 4
    told(capsys, "Disk quota exceeded")
    assert run(*limits, "none", str(out)).returncode == 0
    ends(disk, models, whole, capsys)


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_read_only_half_way(
    disk: Disk,
    models: list[Path],
    whole: dict[str, int],
    capsys: Capture,
    half_way: Callable[[Callable[[], object]], None],
) -> None:
    half_way(disk.fail)
    assert merge(disk, models) == 4
    told(capsys, "Read-only file system", "Input/output error")
    assert average(disk.place / "out", models) == 4, "it still is"
    disk.again()
    assert merge(disk, models) == 0
    assert digest(disk.place / "out") == whole


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)
def test_pulled_out_half_way(
    disk: Disk,
    models: list[Path],
    whole: dict[str, int],
    capsys: Capture,
    half_way: Callable[[Callable[[], object]], None],
    power: bool,
) -> None:
    half_way(lambda: disk.pull_out(power))
    assert merge(disk, models) == 4
    told(capsys, "Input/output error", "Structure needs cleaning", "Read-only")
    disk.again()
    if power:  # what was never synced may be lost, and nothing of it may be trusted
        assert merge(disk, models) == 0
        assert digest(disk.place / "out") == whole
    else:
        ends(disk, models, whole, capsys)


@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "xfs"], indirect=True)
def test_unmounted_half_way(
    disk: Disk,
    models: list[Path],
    whole: dict[str, int],
    capsys: Capture,
    half_way: Callable[[Callable[[], object]], None],
) -> None:
    half_way(lambda: disk.unmount("-l"))
    assert merge(disk, models) == 4
    told(capsys, "No such file or directory")
    assert not (disk.place / "out").exists(), "nothing goes where the mount was"
    if disk.kind == "tmpfs":
        return  # it is gone, with all that was in it
    disk.mount()
    ends(disk, models, whole, capsys)


@pytest.mark.parametrize("disk", ["ext4", "xfs"], indirect=True)
def test_inputs_that_are_pulled_out(
    disk: Disk,
    models: list[Path],
    whole: dict[str, int],
    tmp_path: Path,
    capsys: Capture,
    half_way: Callable[[Callable[[], object]], None],
) -> None:
    """Code 3 then, since it is an input that cannot be read."""
    if disk.free_bytes() < 50 * MIB:
        pytest.skip("too small")
    inputs = [disk.place / model.name for model in models]
    for model, here in zip(models, inputs, strict=True):
        shutil.copytree(model, here)
    disk.again()  # out of the page cache
    out = tmp_path / "out"

    def lost() -> None:
        disk.pull_out()
        Path("/proc/sys/vm/drop_caches").write_text("1")

    half_way(lost)
    words = ("--threads", "1", "--memory", "4MiB")
    code = average(out, inputs, *words)
    text = capsys.readouterr().err
    assert code == 3 and "Traceback" not in text, text
    assert "Input/output error" in text or "Structure needs cleaning" in text
    disk.again()
    assert average(out, inputs, *words) == 0
    assert shards_of(out).items() <= whole.items()
