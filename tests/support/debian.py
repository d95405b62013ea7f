"""Debian packages that some tests need: installed where apt can do that, one process at a time."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path

LOCK = Path(tempfile.gettempdir()) / f"merge-launch-tests-apt-{os.geteuid()}.lock"


def apt_get(*words: str, cwd: Path | None = None) -> str | None:
    """Run apt-get; returns why it failed, or None.

    `apt-get update` does not wait for another one, so the processes of a test run take turns.
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            ["apt-get", "-q", *words],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
            cwd=cwd,
            check=False,
        )
    return f"apt-get {words[0]}: {done.stderr.strip()[-200:]}" if done.returncode else None


def install(*packages: str) -> str | None:
    """Install packages; returns why that failed, or None."""
    return apt_get("update") or apt_get("install", "-y", "--no-install-recommends", *packages)
