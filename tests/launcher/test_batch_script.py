"""scripts/launch_merges.sh: the batch example runs as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import SOURCES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "launch_merges.sh"


@pytest.fixture
def batch(models, tmp_path: Path, work: Path):
    """The script beside models of the names that it mentions, with merge-launch on PATH."""
    (work / "models").mkdir()
    for source, name in zip(models, ("math", "code", "chat"), strict=True):
        source.rename(work / "models" / name)
    program = tmp_path / "bin" / "merge-launch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m merge_launch "$@"\n')
    program.chmod(0o755)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = f"{program.parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": SOURCES}
        return subprocess.run(
            ["bash", str(SCRIPT), *words], env=env, capture_output=True, text=True, timeout=300
        )

    return run


def test_one_job_for_each_merge(batch, fakes, work: Path) -> None:
    (work / "recipes").mkdir()
    (work / "recipes" / "mix.yml").write_text(
        "merge_method: linear\nmodels: [{model: models/math}, {model: models/code}]\n"
        "parameters: {weight: 1}\n"
    )
    done = batch("slurm")
    assert done.returncode == 0, done.stderr
    names = ["soup", "math-1", "math-2", "math-4", "mix"]
    assert [call.rpartition("/")[2] for call in fakes.calls()] == [f"{n}.sbatch" for n in names]
    text = (work / "merged" / "math-4.job" / "math-4.sbatch").read_text()
    assert "#SBATCH --cpus-per-task=16\n" in text


def test_one_failure_does_not_stop_the_others(batch, fakes, work: Path) -> None:
    (work / "merged").mkdir()
    (work / "merged" / "math-2.job").touch()
    done = batch("pbs")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: math-2"
    assert len(fakes.calls()) == 3


def test_options_are_handed_on(batch, work: Path) -> None:
    done = batch("pbs", "--dry-run", "--then", "echo 'a b'")
    assert done.returncode == 0, done.stderr
    # What follows a merge is a job of its own where the scheduler has dependencies.
    assert done.stdout.count("#!/bin/bash\n") == 8
    assert done.stdout.count("""eval 'echo '"'"'a b'"'"''\n""") == 4
    assert not (work / "merged").exists()


def test_an_unknown_backend(batch) -> None:
    done = batch("torque")
    assert done.returncode == 2
    assert "usage:" in done.stderr
