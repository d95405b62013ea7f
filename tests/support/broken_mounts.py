"""A mount that fails like a network file system (fakes/fuse_disk.py); needs root."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.small_disks import run

SERVER = Path(__file__).resolve().parents[1] / "fakes" / "fuse_disk.py"


@dataclass
class Mount:
    """A mount of the folder `store` at `place`; calls fail as the file `faults` says."""

    store: Path
    place: Path
    faults: Path
    most: int = 1 << 20  # bytes of a request
    servers: list["subprocess.Popen[str]"] = field(default_factory=list)

    def mount(self) -> None:
        """Mount, again if the mount was lost; skips the test if the system does not permit it."""
        words = (SERVER, self.store, self.place, self.faults, self.most)
        argv = [sys.executable, "-I", *map(str, words)]
        server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.servers.append(server)
        assert server.stdout is not None
        reply = server.stdout.readline().strip()
        if reply != "mounted":
            pytest.skip(f"FUSE cannot be mounted here: {reply}")

    def fails(self, *faults: str) -> None:
        """Set the faults from now on; without arguments, none."""
        self.faults.with_suffix(".met").unlink(missing_ok=True)
        self.faults.with_suffix(".new").write_text("\n".join(faults))
        self.faults.with_suffix(".new").replace(self.faults)

    @property
    def most_waiting(self) -> int:
        """Return the largest number of calls that waited at the same time."""
        path = self.faults.with_suffix(".most")
        return int(path.read_text()) if path.exists() else 0

    @property
    def met(self) -> bool:
        """Return whether a fault has happened."""
        return self.faults.with_suffix(".met").exists()

    def vanish(self) -> None:
        """Cut the connection: the mount stays without a server behind it."""
        self.servers[-1].send_signal(signal.SIGKILL)
        self.servers[-1].wait(10)

    def unmount(self) -> None:
        run("umount", "-l", str(self.place))
        for server in self.servers:
            server.kill()
            server.wait(10)
            if server.stdout is not None:
                server.stdout.close()
        self.servers.clear()

    def again(self) -> None:
        self.unmount()
        self.fails()
        self.mount()


def make_mount(folder: Path, most: int = 1 << 20) -> Mount:
    """Make a mount below `folder`; skips the test with the reason if that is impossible."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("only root may mount FUSE, where the kernel has it")
    made = Mount(folder / "store", folder / "mount", folder / "faults", most)
    made.store.mkdir(parents=True)
    made.place.mkdir()
    made.fails()
    made.mount()
    return made
