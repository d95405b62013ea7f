"""Jobs and commands in environments that were not made for them: right, or one line that says why.

Each is what a cluster, a module or a colleague has set up, and merges m1, m2 and m3 to 2.0.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.checkpoint_factory import read_tensors
from support.paths import SOURCES

pytestmark = pytest.mark.slow


def module(folder: Path, name: str, text: str = "raise ImportError('a stranger')\n") -> str:
    path = folder / "strangers" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(folder / "strangers")


def tmp(kind: str) -> Callable[[Path], dict[str, str]]:
    def make(folder: Path) -> dict[str, str]:
        place = folder / f"tmp {kind}"
        if kind != "missing":
            place.mkdir()
        return {"TMPDIR": str(place)}

    return make


def packages(folder: Path) -> dict[str, str]:
    """Return a PYTHONPATH with packages that are called like ours."""
    for name in ("merge_worker", "worker", "launcher", "engine"):
        module(folder / "strangers", name + ".py")
        path = module(folder, f"{name}.py")
    return {"PYTHONPATH": path}


ENVIRONMENTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "torchrun": lambda f: {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_PORT": "1"},
    "slurm batch": lambda f: {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"},
    "open mpi": lambda f: {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"},
    "pmi": lambda f: {"PMI_RANK": "3", "PMI_SIZE": "4"},
    "beaker": lambda f: {"BEAKER_REPLICA_RANK": "1", "BEAKER_REPLICA_COUNT": "2"},
    "all at once": lambda f: {
        "RANK": "x",
        "WORLD_SIZE": "",
        "SLURM_PROCID": "5",
        "SLURM_NTASKS": "4",
        "PMI_RANK": "0",
        "PMI_SIZE": "9",
        "BEAKER_REPLICA_RANK": "1",
    },
    "our names on PYTHONPATH": packages,
    "yaml.py on PYTHONPATH": lambda f: {"PYTHONPATH": module(f, "yaml.py", "x = 1\n")},
    "no TMPDIR": tmp("missing"),
    "odd TMPDIR": tmp("'$(x)"),
    "relative TMPDIR": lambda f: {"TMPDIR": "."},
    "C locale": lambda f: {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"},
    "unknown locale": lambda f: {"LC_ALL": "xx_XX.UTF-8"},
    "conda": lambda f: {"CONDA_PREFIX": "/opt/none", "CONDA_SHLVL": "1", "PYTHONNOUSERSITE": "1"},
    "functions": lambda f: {
        f"BASH_FUNC_{name}%%": "() { echo stranger; return 1; }"
        for name in ("cd", "mktemp", "base64", "rm", "printf", "cat", "kill", "head")
    },
    "strict bash": lambda f: {"SHELLOPTS": "errexit:nounset:pipefail:noclobber"},
    "posix bash": lambda f: {"POSIXLY_CORRECT": "1"},
    "CDPATH": lambda f: {"CDPATH": "/:/usr", "GREP_OPTIONS": "--color=always", "IFS": "/"},
    "threads": lambda f: {"OMP_NUM_THREADS": "1000", "MKL_NUM_THREADS": "x"},
    "odd home": lambda f: {"HOME": "/proc/none", "XDG_STATE_HOME": "/proc/none"},
    "warnings": lambda f: {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1"},
    "hash seed": lambda f: {"PYTHONHASHSEED": "7", "PYTHONOPTIMIZE": "2", "PYTHONUNBUFFERED": "1"},
    "PYTHONHOME": lambda f: {"PYTHONHOME": "/nowhere"},
    "BASH_ENV": lambda f: {"BASH_ENV": "/nowhere", "ENV": "/nowhere"},
    "csh": lambda f: {"SHELL": "/bin/csh"},
}
SETUPS = {
    "modules with set -u": ["set -u", "x=$PATH"],
    "a script that fails inside": ["source ./fails.sh"],
    "traps": ["trap 'echo theirs' EXIT", "trap - TERM", "set -e"],
    "umask": ["umask 077"],
    "few files": ["ulimit -n 64"],
    "several lines": ["for n in 1 2; do\n  false || true\ndone"],
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system without programs; needs root."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(kilobytes: int) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"noexec,size={kilobytes}k", "none", str(place)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("tmpfs cannot be mounted here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def merged(out: Path) -> float:
    return float(read_tensors(out)["model.layers.0.weight"].mean())


def says_why(text: str) -> bool:
    """Whether the last line is ours, and no traceback is anywhere."""
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return "Traceback" not in text and last.startswith(("merge-worker: ", "merge-launch: "))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_jobs(name: str, job_argv, models, work: Path, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **ENVIRONMENTS[name](tmp_path)}
    argv = ["bash", *job_argv("pbs", "out", *models)]
    (work / "out.job").mkdir()
    done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300, check=False)
    if done.returncode == 0:
        assert merged(work / "out") == 2.0, done.stderr
    else:
        assert not (work / "out" / "merge_manifest.json").exists()
        assert says_why(done.stderr), done.stderr
    (exit_file,) = (work / "out.job").glob("*.exit")
    assert exit_file.read_text() == f"{done.returncode}\n"


@pytest.mark.parametrize("name", SETUPS)
def test_setups(name: str, job_argv, models, bare_bash, work: Path) -> None:
    Path("fails.sh").write_text("false\nls /nowhere\n[ $UNSET ]\ntrue\n")
    lines = [word for line in SETUPS[name] for word in ("--setup", line)]
    done = bare_bash(*job_argv("local", "out", *models, *lines), cwd=work)
    assert done.code == 0, done.err
    assert merged(work / "out") == 2.0


@pytest.mark.parametrize("kilobytes", [40, 1500, 10_000])
def test_small_folders_for_temporary_files(
    kilobytes: int, launch_process, models, small_disk, work: Path
) -> None:
    """The worker needs more than two megabytes; the script of the job less than one."""
    place = str(small_disk(kilobytes))
    done = launch_process("local", "here", *models, TMPDIR=place)
    if kilobytes == 40:
        assert done.code == 4
        told = f"{place}: No space left on device; set TMPDIR to another folder"
        assert done.err == f"merge-launch: {told}\n"
    else:
        assert done.code == 0, done.err
        assert ("is full, missing or not writable" in done.err) is (kilobytes == 1500)
    done = launch_process("local", "there", *models, "--detach", TMPDIR=place)
    job = done.out.split()[1]
    assert launch_process("logs", "-f", job).code == 0
    assert merged(work / "there") == 2.0
    log = launch_process("logs", job).out
    told = f"{place} is full, missing or not writable; temporary files go to {work}/there.job"
    assert (told in log) is (kilobytes < 10_000)


@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name != "PYTHONHOME"])
def test_commands(name: str, launch_process, models, work: Path, tmp_path: Path) -> None:
    given = ENVIRONMENTS[name](tmp_path)
    if "PYTHONPATH" in given:
        given["PYTHONPATH"] = f"{SOURCES}{os.pathsep}{given['PYTHONPATH']}"
    done = launch_process("local", "out", *models, "--python", sys.executable, **given)
    if done.code == 0:
        assert merged(work / "out") == 2.0
    else:
        assert says_why(done.err), done.err
