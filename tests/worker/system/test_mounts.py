"""The mount of a file is found by mount id, whatever device number the file reports."""

import os
from pathlib import Path

import pytest

from merge_worker.system.mounts import Mount, mount_of
from support.small_disks import make_disk, run


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
