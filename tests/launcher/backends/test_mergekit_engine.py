"""`--engine mergekit`: the same job of every backend, with mergekit in the place of our worker."""

import sys
from pathlib import Path

import pytest

from merge_launch import backends
from merge_launch.job.payload import build

pytestmark = pytest.mark.slow

FAKE = Path(__file__).resolve().parents[2] / "fakes" / "mergekit_yaml.py"
RECIPE = "merge_method: linear\nmodels: [{model: m1}, {model: m2}]\nparameters: {weight: 1}\n"
WORDS = ["recipe.yml", "out", "--engine", "mergekit"]


@pytest.fixture
def setup(models, work: Path, tmp_path: Path) -> list[str]:
    """A mergekit that --setup brings."""
    Path("recipe.yml").write_text(RECIPE)
    program = tmp_path / "kit" / "mergekit-yaml"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    program.chmod(0o755)
    # One beside the Python of the tests would come first.
    (program.parent / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (program.parent / "python").chmod(0o755)
    return ["--setup", f"PATH={program.parent}:$PATH", "--seed", "3"]


@pytest.mark.parametrize("backend", backends.names())
def test_the_job_of_each_backend(
    backend: str, setup, job_argv, bare_bash, manifest, work: Path, tmp_path: Path
) -> None:
    argv = job_argv(backend, *WORDS, *setup)
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 0, done.err
    written = manifest(work / "out")
    carried = build()
    assert (written["engine"], written["seed"]) == ("mergekit", 3)
    assert written["worker"]["sha256"] == carried.digest
    assert "already there" in bare_bash(*argv, cwd=tmp_path).out


@pytest.mark.parametrize("backend", ["slurm", "beaker"])
def test_a_lost_tensor_fails_the_job(
    backend: str, setup, job_argv, bare_bash, work: Path, tmp_path: Path
) -> None:
    argv = job_argv(backend, *WORDS, *setup, "--env", "FAKE_MERGEKIT=lose", "--then", "touch ran")
    done = bare_bash(*argv, cwd=tmp_path, FAKE_MERGEKIT="lose")
    assert done.code == 5
    assert "mergekit lost 1 of 2 tensors of m1: norm" in done.err
    assert not (work / "out").exists()


def test_what_mergekit_cannot_do_is_refused(launch, models) -> None:
    Path("recipe.yml").write_text(RECIPE)
    done = launch("render", "local", *WORDS, "--memory", "4GiB", "--sha256")
    assert (done.code, done.out) == (2, "")
    assert "--memory conflicts with --engine mergekit" in done.err and "--sha256 conf" in done.err
    assert launch("render", "local", *WORDS[:2], "--engine", "mergkit").code == 2


def test_it_is_pinned_and_only_there_on_request(launch, models) -> None:
    Path("recipe.yml").write_text(RECIPE)
    assert '.pyz" mergekit \\' in launch("render", "slurm", *WORDS).out
    assert "mergekit" not in launch("render", "slurm", *WORDS[:2]).out.replace("mergekit_", "")
