"""Small file systems of several kinds, for tests that fill or remove them; needs root.

Each is an image in a file, mounted by the loop device; other storage is not touched.
"""

import fcntl
import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1 << 20
MAKE = {
    "ext4": (140, ["mkfs.ext4", "-q", "-F", "-m", "0"], "errors=remount-ro"),
    "xfs": (320, ["mkfs.xfs", "-q"], "defaults"),  # no smaller one can be made
    "btrfs": (128, ["mkfs.btrfs", "-q", "--mixed"], "defaults"),
}
SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4 and xfs: from now on everything fails, as if the disk were pulled out."""


@dataclass
class Disk:
    """A file system mounted at `place`."""

    kind: str
    place: Path
    image: Path | None = None

    def mount(self) -> None:
        """Mount, again if it was lost; skips the test if the system does not permit it."""
        self.place.mkdir(exist_ok=True)
        if self.image is None:
            words = ["-t", "tmpfs", "-o", "size=96m", "none"]
        else:
            words = ["-t", self.kind, "-o", f"loop,{MAKE[self.kind][2]}", str(self.image)]
        done = run("mount", *words, str(self.place))
        if done.returncode:
            pytest.skip(f"{self.kind} cannot be mounted here: {done.stderr.strip()[:200]}")

    def unmount(self, *words: str) -> None:
        done = run("umount", *words, str(self.place))
        assert done.returncode == 0, done.stderr

    def again(self) -> None:
        """Unmount, repair with the file system's own tool, and mount."""
        self.unmount()
        if self.kind == "ext4":
            assert run("e2fsck", "-fy", str(self.image)).returncode < 4
        self.mount()

    def free_bytes(self) -> int:
        status = os.statvfs(self.place)
        return status.f_bavail * status.f_frsize

    def fill(self, leave: int) -> Path:
        """Write a file that leaves `leave` bytes of free space."""
        ballast = self.place / "ballast"
        with ballast.open("wb") as file:
            for _ in range((self.free_bytes() - leave) // MIB):
                file.write(os.urandom(MIB))  # zeros could be left out or shared
            file.flush()
            os.fsync(file.fileno())
        return ballast

    def pull_out(self, power: bool = False) -> None:
        """Remove the device; with `power`, unsynced data are lost, too."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", int(power)))
        finally:
            os.close(fd)

    def fail(self) -> None:
        """Make ext4 detect an error and become read-only."""
        device = run("findmnt", "-no", "SOURCE", str(self.place)).stdout.strip()
        trigger = Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("this kernel cannot be asked for an error of ext4")
        trigger.write_text("a test")


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def make_disk(kind: str, folder: Path) -> Disk:
    """Make a file system below `folder`; skips the test with the reason if that is impossible."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount file systems")
    disk = Disk(kind, folder / "disk")
    if kind != "tmpfs":
        size, words, _ = MAKE[kind]
        if shutil.which(words[0]) is None:
            pytest.skip(f"{words[0]} is not installed")
        disk.image = folder / f"{kind}.img"
        disk.image.touch()
        os.truncate(disk.image, size * MIB)
        done = run(*words, str(disk.image))
        assert done.returncode == 0, done.stderr
    disk.mount()
    return disk
