"""Fixtures of the launcher: tiny models, jobs, goldens, and fake schedulers."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from merge_launch import backends, cli
from merge_launch.job.job import Job
from merge_launch.job.payload import Payload
from merge_launch.job.source import read_sources
from merge_launch.settings.groups import JobOptions, MergeOptions, WorkerOptions
from merge_launch.submission import render
from support.checkpoint_factory import write_checkpoint
from support.paths import SOURCES

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests/fakes"
GOLDENS = ROOT / "tests/goldens"
# Keeps goldens independent of the worker's source.
STAND_IN = Payload(b"archive", b"packed archive", "0.0.0")
SWEEP = """
recipe:
  merge_method: linear
  models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]
out: runs
name: "w{weight}"
grid: {models.1.parameters.weight: [1, 3, 7]}
"""


# The arguments of the worker: archive, command, recipe, OUT.
LEAVE_MANIFEST = """out=$4
trap '[ $? -ne 0 ] || { mkdir -p "$out" && : > "$out/merge_manifest.json"; }' EXIT
"""


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove machine settings and cluster variables, and change to an empty folder."""
    os.umask(0o022)
    for name in list(os.environ):
        if name.startswith(("MERGE_LAUNCH_", "SLURM_", "PBS_", "BEAKER_", "XDG_")):
            monkeypatch.delenv(name)
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    monkeypatch.setenv("PWD", str(work))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


@pytest.fixture
def models(work: Path) -> list[Path]:
    """Write m1, m2, m3 to the current folder; their average is 2 and 20."""
    return [model(work / f"m{n}", float(n)) for n in (1, 2, 3)]


def model(folder: Path, value: float) -> Path:
    tensors = {
        "model.layers.0.weight": torch.full((4, 6), value),
        "norm": torch.full((3,), 10 * value),
    }
    return write_checkpoint(folder, tensors, config={"model_type": "tiny"})


@pytest.fixture
def sweep(work: Path, models: list[Path]) -> Path:
    """Write a sweep of three members, s.yml; return the folder of their outputs."""
    (work / "s.yml").write_text(SWEEP)
    return work / "runs"


@pytest.fixture
def launch() -> Callable[..., Outcome]:
    """Run merge-launch in this process."""

    def run(*words: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run([str(word) for word in words])
        if "Traceback" in err.getvalue():
            raise AssertionError(err.getvalue())
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def launch_process() -> Callable[..., Outcome]:
    """Run merge-launch in a process of its own."""

    def run(*words: object, **variables: str) -> Outcome:
        argv = [sys.executable, "-m", "merge_launch", *map(str, words)]
        env = {**os.environ, "PYTHONPATH": SOURCES, **variables}
        done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


def finished(out: Path) -> None:
    """Make OUT what a finished merge is to the launcher."""
    out.mkdir(exist_ok=True)
    (out / "merge_manifest.json").touch()


class Fakes(NamedTuple):
    folder: Path

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def pbs(self, *words: str) -> None:
        """Act as the PBS server: schedule, schedule begin, qrerun ID."""
        argv = [sys.executable, str(FAKES / "pbs.py"), *words]
        subprocess.run(argv, check=True, timeout=300)

    def switch(self, name: str, on: bool = True) -> None:
        """Set a state of the PBS server: down, no-history, quota, no-json, raw-json."""
        path = self.folder / "pbs" / name
        path.parent.mkdir(exist_ok=True)
        path.touch() if on else path.unlink()

    def answer(self, name: str, status: int, out: str = "", err: str = "") -> None:
        for ending, text in (("out", out), ("err", err), ("status", str(status))):
            (self.folder / f"{name}.{ending}").write_text(text)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Put the fake schedulers first on PATH."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.setenv("FAKES", str(folder))
    (folder / "slurm.conf").write_text("# A site.\nClusterName=cluster\n")
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("PATH", f"{FAKES}:{os.environ['PATH']}")
    return Fakes(folder)


@pytest.fixture
def no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a PATH with bash and basic programs, but without any that submits jobs."""
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("bash", "env", "python3"):
        (bare / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(bare))


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """Return a job; its files need not exist."""

    def make(
        *words: str, folder: str = "/home/me/work", payload: Payload = STAND_IN, **settings: Any
    ) -> Job:
        merge = read_sources(words or ("out", "m1", "m2"), MergeOptions(), None, folder)[0]
        worker = settings.pop("worker", WorkerOptions())
        return Job(merge, JobOptions(**settings), worker, payload, "python3")

    return make


@pytest.fixture
def render_job() -> Callable[..., str]:
    def text(name: str, job: Job, **resources: Any) -> str:
        backend = backends.get(name)
        return render.render(backend, job, backend.resources(**resources))

    return text


@pytest.fixture
def job_argv(launch: Callable[..., Outcome], tmp_path: Path) -> Callable[..., list[str]]:
    """Return the command of a backend's job on the node, without `bash` at its front."""

    def argv(backend: str, *words: object) -> list[str]:
        text = launch("render", backend, "--python", sys.executable, *words).out
        if backend == "beaker":
            task = yaml.safe_load(text)["tasks"][0]
            assert task["command"][0] == "bash"
            return [*task["command"][1:], *task["arguments"]]
        (tmp_path / "job").write_text(text)
        return [str(tmp_path / "job")]

    return argv


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., Path]:
    """Make a program in place of Python: `unpacking` and `running` are its two steps in bash.

    It says that it can import what it is asked to.
    Where `running` ends with 0, it leaves the manifest that proves it.
    """

    def make(unpacking: str = 'exec "$real" "$@"', running: str = ":") -> Path:
        program = tmp_path / "bin" / "their-python"
        program.parent.mkdir()
        program.write_text(
            f"#!/bin/bash\nreal={sys.executable}\n"
            f'if [ "$1" = -I ]; then\n{unpacking}\nexit\nfi\n[ "$1" != -c ] || exit 0\n'
            f"{LEAVE_MANIFEST}{running}\n"
        )
        program.chmod(0o755)
        return program

    return make


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare with tests/goldens/NAME; `pytest tests/launcher --update-goldens` renews it."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--update-goldens", default=False):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture
def bare_bash(tmp_path: Path) -> Callable[..., Outcome]:
    """Run bash with an argument list in an environment of only PATH and HOME."""

    def run(*words: str, cwd: Path | None = None, **variables: str) -> Outcome:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **variables}
        argv = ["bash", *words]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def manifest() -> Callable[[Path], dict[str, Any]]:
    def read(out: Path) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((out / "merge_manifest.json").read_text())
        return values

    return read


def has_ended(folder: Path, job: str) -> bool:
    """Whether a local job has left its exit code, and its process is gone, which comes after."""
    gone = not Path("/proc", job.rpartition("-")[2]).exists()
    return gone and (folder / f"{job}.exit").exists()
