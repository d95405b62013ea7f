"""Jobs: faults, names that every scheduler accepts, and cleaning up."""

import re
from pathlib import Path

import pytest

from merge_launch.errors import UsageError


def test_names_beside_out(make_job) -> None:
    job = make_job("runs/my merge, 3", "m1", "m2")
    assert job.name == "my-merge-3"
    assert re.fullmatch("/home/me/work/runs/my-merge-3-[0-9a-f]{8}.job", job.folder)
    assert job.log == f"{job.folder}/my-merge-3.log"


def test_a_long_out_has_a_short_name(make_job) -> None:
    assert make_job("linear-of-many-models", "m1", "m2").name == "linear-of-many"
    assert make_job("out", "m1", "m2", name="chosen.name-1").name == "chosen.name-1"


def test_all_faults_at_once(make_job) -> None:
    with pytest.raises(UsageError) as caught:
        make_job(name="?", setup=("module load x\r",), then="ls\x1b[2J")
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("--name '?' must have a letter or digit")
    assert (
        lines[1].strip() == r"--setup 'module load x\r' holds a control character; was it pasted?"
    )
    assert r"--then 'ls\x1b[2J'" in lines[2]


@pytest.mark.parametrize("name", ["", "a" * 64, "-", "\n", "ä"])
def test_names_that_no_scheduler_takes(make_job, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        make_job(name=name)


@pytest.mark.parametrize(
    ("given", "name"),
    [("my merge", "my-merge"), ("a;touch x", "a-touch-x"), ("-x", "x"), ("1 b", "merge-1-b")],
)
def test_names_are_made_safe_and_told(make_job, given: str, name: str) -> None:
    job = make_job(name=given)
    assert job.name == name
    assert job.notes() == [f"--name '{given}': schedulers refuse it; the job is called '{name}'"]
    assert make_job(name=name).notes() == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "TOKEN", "WANDB_API_KEY", "aws_secret_access_key"])
def test_a_secret_is_in_no_text(make_job, name: str) -> None:
    with pytest.raises(UsageError, match=f"--env {name}: a secret must not be .* --secret {name}="):
        make_job(env=(f"{name}=hf_abc",))


def test_names_that_only_resemble_secrets_are_allowed(make_job) -> None:
    assert make_job(env=("TOKENIZERS_PARALLELISM=false", "KEYS=1", "HF_TOKEN_PATH=/f"))


@pytest.mark.parametrize("backend", ["pbs", "slurm"])
def test_a_signal_that_comes_at_the_end_ends_nothing(
    backend: str, job_argv, models, bare_bash, python, work: Path, tmp_path: Path
) -> None:
    """Schedulers send TERM again while a job that was stopped still cleans up."""
    setup = 'rm() { kill -TERM $$; command rm "$@"; }'
    words = ("--python", python(running="exit 4"), "--setup", setup)
    for folder in (tmp_path / "node", work / "out.job"):
        folder.mkdir()
    done = bare_bash(*job_argv(backend, "out", *models, *words), TMPDIR=str(tmp_path / "node"))
    assert done.code == 4
    assert [file.read_text() for file in (work / "out.job").glob("*.exit")] == ["4\n"]
    assert not list((tmp_path / "node").iterdir())
