"""A second opinion on the Torque dialect: Debian's slurm-wlm-torque in front of a real Slurm.

Its qsub leaves the lines of the script to sbatch, which reads #PBS too, and pastes its own words
into a shell. Its qstat knows neither -x nor exit codes, and jobs see nothing that is called PBS_…:
so arrays (which need the number) and merges of several nodes (which need the file of nodes) are not
for it, and `--then` behind a failure stays in the queue.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support import real_slurm, torque_wrapper
from support.launcher_fixtures import LEAVE_MANIFEST
from support.real_slurm import Cluster, until

pytestmark = pytest.mark.slow
WORDS = ("--dialect", "torque", "--mem", "700mb", "--ncpus", "1", "--walltime", "0:10:00")


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path]]:
    for cluster in real_slurm.cluster(tmp_path_factory.mktemp("slurm")):
        yield cluster, torque_wrapper.unpacked(tmp_path_factory.mktemp("torque"))


@pytest.fixture
def torque(wrapped, isolated: None, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster, programs = wrapped
    for name, value in cluster.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return cluster


def submitted(done) -> list[str]:
    assert done.code == 0, done.err
    ids = re.findall(r"^(?:job|then) +(\d+)\b", done.out, re.MULTILINE)
    assert ids, done.out
    return ids


def state(launch, job: str) -> str:
    done = launch("status", job)
    assert done.code == 0, done.err
    return done.out.split()[1].rstrip(",")


def waited(launch, job: str, *states: str) -> str:
    return until(lambda: s if (s := state(launch, job)) in states else "", f"{job}: {states}", 120)


def test_submit_and_follow(torque, launch, models, work: Path) -> None:
    words = ("pbs", "out", *models, *WORDS, "--python", sys.executable, "--then", "pwd; ls *.json")
    done = launch(*words, "--follow")
    job, later = submitted(done)
    assert "2 tensors merged" in done.out
    assert load_file(work / "out" / "model.safetensors")["norm"].tolist() == [20, 20, 20]
    # What the directives asked for arrived.
    assert torque.field(job, "NumCPUs") == "1"
    assert torque.field(job, "TimeLimit") == "00:10:00"
    assert "mem=700M" in torque.field(job, "TRES")
    assert torque.field(job, "JobName") == "out"
    assert waited(launch, job, "done")
    assert waited(launch, later, "done")
    text = (work / "out.job" / "out-then.log").read_text()
    assert text.endswith(f"{work}/out\nconfig.json\nmerge_manifest.json\n")
    assert "was over already" in launch("cancel", job).out


def test_gpus_of_the_torque_form(torque, launch, models, work: Path) -> None:
    words = ("pbs", "out", *models, *WORDS, "--python", sys.executable, "--ngpus", "2")
    (job,) = submitted(launch(*words))
    assert "gpu:2" in torque.field(job, "TresPerNode")
    launch("cancel", job)


def test_a_failure_and_what_waits_for_it(torque, launch, models, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / ".merge-partial").touch()
    words = ("pbs", "out", *models, *WORDS, "--python", sys.executable, "--then", "touch never")
    job, later = submitted(launch(*words))
    assert waited(launch, job, "failed")
    assert "Exit code 4" in launch("why", job).out
    assert state(launch, later) == "queued"
    assert launch("cancel", later).code == 0
    assert not (work / "out" / "never").exists()


def test_cancel_and_retry(torque, launch, models, work: Path, python) -> None:
    endless = python(
        running='touch "$HOME/begun"; trap "exit 75" TERM; while :; do sleep 0.1; done'
    )
    (job,) = submitted(launch("pbs", "out", *models, *WORDS, "--python", endless))
    assert waited(launch, job, "running")
    until((work.parent / "home" / "begun").exists, "the worker to begin")
    assert launch("cancel", job).code == 0
    # Slurm does not say through Torque's qstat who ended it; the job does.
    assert waited(launch, job, "stopped")
    program = Path(endless)
    unpacking = program.read_text().partition("\nexit\nfi\n")[0]
    program.write_text(f"{unpacking}\nexit\nfi\n{LEAVE_MANIFEST}:\n")
    (again,) = submitted(launch("retry", job))
    assert waited(launch, again, "done")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--queue", "nowhere"), "invalid partition specified: nowhere"),
        (("--mem", "900gb"), "Memory specification can not be satisfied"),
    ],
)
def test_refusals_are_told_on_stdout_there(
    words, reason: str, torque, launch, models, work: Path
) -> None:
    done = launch("pbs", "out", *models, *WORDS, *words)
    assert (done.code, done.out) == (6, "")
    assert reason in done.err and "The command was" not in done.err
    assert not (work / "out.job").exists()


def test_an_unknown_job_has_no_words_there(torque, launch, models, work: Path) -> None:
    (job,) = submitted(launch("pbs", "out", *models, *WORDS, "--directive=-h"))
    assert state(launch, job) == "queued"
    for path in [*(work.parent / "home").rglob("*.json"), *(work / "out.job").glob("*.json")]:
        path.write_text(path.read_text().replace(f'"job_id": "{job}"', '"job_id": "77777"'))
    assert "77777  unknown" in launch("status", "out").out
    torque.ask("scancel", job)


def test_jobs_of_another_dialect_are_known_there_too(torque, launch, models, work: Path) -> None:
    """Its qstat takes neither -x nor -F."""
    (job,) = submitted(launch("pbs", "out", *models, *WORDS, "--directive=-h"))
    for path in [*(work.parent / "home").rglob("*.json"), *(work / "out.job").glob("*.json")]:
        path.write_text(path.read_text().replace('"dialect": "torque"', '"dialect": "openpbs"'))
    assert state(launch, job) == "queued"
    torque.ask("scancel", job)
