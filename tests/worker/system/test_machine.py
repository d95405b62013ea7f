"""CPUs granted by affinity and cgroup quotas, slots for computing threads, and mounts of files."""

import os
import threading
import time
from pathlib import Path

import pytest

from merge_worker.checkpoint import reader
from merge_worker.checkpoint.reader import Files
from merge_worker.errors import InputError
from merge_worker.system.machine import UNLIMITED, ComputeSlots, Mount, mount_of, usable_cpus
from support.small_disks import make_disk, run

V1 = "5:memory:/job\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/\n"


@pytest.fixture(autouse=True)
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def system(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v1(folder: str, quota: int, period: int = 100_000) -> dict[str, str]:
    place = f"sys/fs/cgroup/cpu,cpuacct{folder}"
    return {f"{place}/cpu.cfs_quota_us": f"{quota}\n", f"{place}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("400000 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("max 100000", 16)),
        *(("6400000 100000", 16), ("0 0", 16), ("", 16), ("nonsense", 16)),
    ],
)
def test_version_2(tmp_path: Path, text: str, count: int) -> None:
    files = {"sys/fs/cgroup/pod/box/cpu.max": text + "\n"}
    assert usable_cpus(system(tmp_path, "0::/pod/box\n", files)) == count


def test_the_lowest_limit_of_all_parent_groups_counts(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu.max": "900000 100000",
        "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        "sys/fs/cgroup/pod/box/cpu.max": "max 100000",
    }
    assert usable_cpus(system(tmp_path, "0::/pod/box\n", files)) == 3


def test_in_a_container_the_group_is_the_top(tmp_path: Path) -> None:
    for number, group in enumerate(("/", "/docker/0f3a", "/../../pod")):
        files = {"sys/fs/cgroup/cpu.max": "200000 100000"}
        assert usable_cpus(system(tmp_path / str(number), f"0::{group}\n", files)) == 2
    assert usable_cpus(system(tmp_path / "v1", V1, v1("", 500_000))) == 5


def test_version_1(tmp_path: Path) -> None:
    files = {**v1("/slurm/job_7", 600_000), **v1("/slurm", -1), **v1("", -1)}
    assert usable_cpus(system(tmp_path, V1, files)) == 6
    system(tmp_path, V1, v1("/slurm", 100_000, 50_000))
    assert usable_cpus(tmp_path) == 2


def test_no_control_groups(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path) == 16
    assert 1 <= usable_cpus() <= 16


def most_inside(slots: ComputeSlots, threads: int, waits: bool) -> tuple[int, int]:
    """Return the most threads that computed, and that waited, at the same time."""
    lock, counts, most = threading.Lock(), [0, 0], [0, 0]

    def change(which: int, by: int) -> None:
        with lock:
            counts[which] += by
            most[which] = max(most[which], counts[which])

    def act() -> None:
        for _ in range(5):
            with slots:
                change(0, 1)
                time.sleep(0.002)
                change(0, -1)
                if waits:
                    with slots.released():
                        change(1, 1)
                        time.sleep(0.01)
                        change(1, -1)

    started = [threading.Thread(target=act) for _ in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    return most[0], most[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_limited_number_at_a_time(count: int) -> None:
    computing, waiting = most_inside(ComputeSlots(count), 6, waits=True)
    assert computing <= count and waiting > count


def test_no_limit() -> None:
    assert most_inside(ComputeSlots(), 6, waits=False)[0] > 2


def test_an_error_releases_the_slot() -> None:
    slots = ComputeSlots(1)
    with pytest.raises(ValueError), slots, slots.released():
        raise ValueError
    assert most_inside(slots, 2, waits=False)[0] == 1


class Watched(ComputeSlots):
    """Slots that count how often they were released for storage."""

    releases = 0

    def released(self):  # type: ignore[no-untyped-def]
        self.releases += 1
        return super().released()


def test_cached_data_are_read_without_releasing_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    buffer, slots = bytearray(10_000), Watched(1)

    def cached(fd: int, part: memoryview, offset: int) -> int:
        return os.preadv(fd, [part[:4096]], offset)  # a part of it is in memory

    monkeypatch.setattr(reader, "_cached", cached)
    with slots:
        Files().read(str(path), 100, memoryview(buffer), slots)
    assert buffer == path.read_bytes()[100:10_100] and slots.releases == 0

    monkeypatch.setattr(reader, "_cached", lambda *place: 0)
    with slots:
        Files().read(str(path), 100, memoryview(buffer), slots)
        assert buffer == path.read_bytes()[100:10_100] and slots.releases == 1
        with pytest.raises(InputError, match="ends at byte 16384"):
            Files().read(str(path), 16_000, memoryview(buffer), slots)
    assert slots.releases == 3


@pytest.mark.parametrize("slots", [UNLIMITED, ComputeSlots(1)], ids=["any", "one"])
def test_systems_without_nowait_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slots: ComputeSlots
) -> None:
    """Slots are released for every read without RWF_NOWAIT, or outside Linux."""
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    buffer = bytearray(4)
    with slots:
        Files().read(str(path), 3, memoryview(buffer), slots)
    assert buffer == b"3456"


def of(folder: Path) -> Mount:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return mount_of(fd)
    finally:
        os.close(fd)


def test_no_mounted_file_system() -> None:
    reading, writing = os.pipe()
    assert mount_of(reading) == Mount()
    os.close(reading)
    os.close(writing)


def test_a_mount_with_a_blank_in_its_name_over_another(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    disk = make_disk("tmpfs", tmp_path / "a b")
    assert of(disk.place) == Mount("tmpfs", "none", str(disk.place))
    (disk.place / "below").mkdir()
    assert of(disk.place / "below") == of(disk.place) != of(tmp_path)
    disk.unmount()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_every_kind_of_disk(tmp_path: Path, kind: str) -> None:
    disk = make_disk(kind, tmp_path)
    try:
        inside = disk.place / "inside"
        if kind != "btrfs" or run("btrfs", "subvolume", "create", str(inside)).returncode:
            inside.mkdir()
        assert of(inside)[::2] == (kind, str(disk.place))
    finally:
        disk.unmount()
