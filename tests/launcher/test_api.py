"""`import merge_launch`: jobs that the commands see, and jobs of commands that Python sees."""

import sys
from pathlib import Path

import pytest

import merge_launch as ml
import merge_worker as mw
from support.outside_methods import recipe, write_methods

PYTHON = {"python": sys.executable}


def linear(models: list[Path]) -> dict[str, object]:
    return {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}


def test_a_job_of_this_machine(models: list[Path], work: Path, launch) -> None:
    job = ml.submit(models, "out", "local", **PYTHON)
    assert job.backend == "local" and job.out == work / "out" and job.name == "out"
    status = job.wait()
    assert status.state is ml.JobState.DONE and job.status().state is ml.JobState.DONE
    assert "2 tensors merged" in job.logs() and job.why()
    assert launch("status", job.id).out.startswith(f"{job.id}  done")
    assert [other.id for other in ml.jobs()] == [job.id]
    assert mw.verify(job.out).finished
    assert not job.cancel()


def test_jobs_of_the_command_line_are_seen(models: list[Path], launch, fakes) -> None:
    done = launch("slurm", "out", *models, "--time", "1:00:00")
    assert done.code == 0, done.err
    (job,) = ml.jobs()
    assert job.id == done.out.split()[1] and job.backend == "slurm"


def test_a_job_of_slurm(
    models: list[Path], work: Path, fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    options = {
        "partition": "gpu",
        "time": "1:00:00",
        "gpus": 1,
        "setup": ["true"],
        "dtype": "float32",
    }
    job = ml.submit(linear(models), work / "deep" / "out", "slurm", **options, **PYTHON)
    text = Path(job.record.script).read_text()
    assert "#SBATCH --partition=gpu" in text and "--dtype=float32" in text
    assert (work / "deep" / "out" / "merge_manifest.json").is_file()
    assert mw.verify(job.out).manifest["options"]["dtype"] == "float32"


def test_the_command_afterwards_is_a_job_too(
    models: list[Path], fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ml.submit(models, "out", "slurm", time="1:00:00", then="true")
    assert job.then is not None and job.then.id != job.id


def test_methods_of_users(models: list[Path], work: Path) -> None:
    (work / "r.yml").write_text(recipe(models))
    job = ml.submit("r.yml", "out", "local", methods=[write_methods(work)], **PYTHON)
    assert job.wait().state is ml.JobState.DONE, job.logs()
    assert mw.verify(job.out).manifest["methods"][0]["name"] == "scaled_sum"
    method = mw.plan(work / "r.yml", methods=work / "my.py").inner.method
    with pytest.raises(ml.errors.UsageError, match="a job carries merge methods as files"):
        ml.submit({**linear(models), "merge_method": method}, "other", "local")


def test_a_job_that_fails_is_explained_and_submitted_again(
    models: list[Path], work: Path, tmp_path: Path
) -> None:
    python = tmp_path / "no-python"
    python.write_text("#!/bin/bash\nexit 5\n")
    python.chmod(0o755)
    job = ml.submit(models, "out", "local", python=str(python))
    assert job.wait(timeout_s=300).state is ml.JobState.FAILED
    assert "exit code" in job.status().detail
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    again = job.retry()
    assert again.wait().state is ml.JobState.DONE
    assert {other.id for other in ml.jobs()} == {job.id, again.id}


def test_a_running_job(models: list[Path], tmp_path: Path) -> None:
    python = tmp_path / "waits"
    python.write_text('#!/bin/bash\ntrap "exit 75" TERM\nwhile :; do sleep 0.05; done\n')
    python.chmod(0o755)
    job = ml.submit(models, "out", "local", python=str(python))
    with pytest.raises(TimeoutError):
        job.wait(timeout_s=0)
    with pytest.raises(ml.errors.UsageError, match="is running"):
        job.retry()
    assert job.cancel()
    assert job.wait().state is not ml.JobState.DONE


def test_faults_come_before_any_job(models: list[Path], work: Path, fakes) -> None:
    with pytest.raises(ml.errors.UsageError, match=r"unknown option 'partitoin'.*'partition'"):
        ml.submit(models, "out", "slurm", partitoin="gpu")
    with pytest.raises(ml.errors.UsageError, match="unknown option 'follow'"):
        ml.submit(models, "out", "slurm", follow=True)
    with pytest.raises(mw.errors.UsageError, match="unknown method 'tie'"):
        ml.submit({**linear(models), "merge_method": "tie"}, "out")
    with pytest.raises(mw.errors.InputError, match="no such folder"):
        ml.submit(["gone", *models], "out", "local")
    assert fakes.calls() == [] and ml.jobs() == [] and not (work / "out.job").exists()


def test_the_environment_is_not_read_and_profiles_are_if_named(
    models: list[Path], work: Path, fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGE_LAUNCH_PARTITION", "from-the-environment")
    (work / "merge-launch.toml").write_text(
        '[profile.mine]\ndtype = "float32"\n[profile.mine.slurm]\npartition = "mine"\n'
    )
    plain = ml.submit(models, "out", "slurm", time="1:00:00")
    assert "--partition" not in Path(plain.record.script).read_text()
    named = ml.submit(models, "out2", "slurm", time="1:00:00", profile="mine")
    text = Path(named.record.script).read_text()
    assert "#SBATCH --partition=mine" in text and "--dtype=float32" in text


def test_nothing_is_printed(models: list[Path], fakes, capfd: pytest.CaptureFixture[str]) -> None:
    job = ml.submit(models, "out", "slurm", time="1:00:00")
    job.status(), job.logs(), job.why(), ml.jobs(), job.cancel()
    assert capfd.readouterr() == ("", "")
