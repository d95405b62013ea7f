"""Torque's commands in front of a real Slurm: Debian's slurm-wlm-torque, unpacked beside the tests.

It is not installed, since its qsub would then be that of the whole machine. What its programs need
of Perl is installed if apt can do that, as root; else the tests that need them are skipped.
"""

import functools
import shutil
import subprocess
from pathlib import Path

import pytest

from .debian import apt_get, install

PACKAGE = "slurm-wlm-torque"
NEEDS = ("libslurm-perl", "libslurmdb-perl", "libswitch-perl")
COMMANDS = ("qsub", "qstat", "qdel")
# qsub calls the sbatch in its own folder.
SLURM = ("sbatch", "salloc", "srun")


@functools.cache
def _perl() -> str | None:
    """Return why its Perl is not available, or None."""
    if subprocess.run(["perl", "-e", "use Slurm ':all'"], capture_output=True).returncode == 0:
        return None
    return install(*NEEDS)


def unpacked(folder: Path) -> Path:
    """Return the folder to put first on PATH."""
    if shutil.which("dpkg-deb") is None or shutil.which("perl") is None:
        pytest.skip(f"{PACKAGE} is Debian's, and Perl")
    failure = _perl() or apt_get("download", PACKAGE, cwd=folder)
    if failure is not None:
        pytest.skip(failure)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(package), str(folder / "all")], check=True)
    programs = folder / "bin"
    programs.mkdir()
    for name in COMMANDS:
        shutil.copy(folder / "all" / "usr" / "bin" / name, programs)
    for name in SLURM:
        (programs / name).symlink_to(str(shutil.which(name)))
    return programs
