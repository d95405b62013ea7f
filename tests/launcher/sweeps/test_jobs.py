"""Submitting sweeps: one job each, arrays, one pass; finished members are skipped; results."""

import csv
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from merge_launch.job import payload
from merge_launch.profiles import file
from merge_launch.sweeps import lock
from support.launcher_fixtures import SWEEP
from support.paths import SOURCES

# `--then`: a JSON object over several lines, below a line of something else.
THEN = (
    """echo loaded; printf '{\\n "model": "x",\\n "loss": {"valid": 0.%s}\\n}\\n' "${PWD##*w}" """
)
PYTHON = ("--python", sys.executable)


@pytest.fixture
def runs(monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")


def norm(folder: Path) -> float:
    return float(load_file(folder / "model.safetensors")["norm"][0])


def states(launch) -> dict[str, str]:
    rows = json.loads(launch("sweep", "s.yml", "results", "--json").out)
    return {row["member"]: row["state"] for row in rows}


def test_a_dry_run_shows_the_members(launch, sweep: Path, fakes) -> None:
    done = launch("sweep", "s.yml", "slurm", "--dry-run")
    assert done.code == 0, done.err
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["MEMBER", "WEIGHT", "NOW", "OUT"]
    assert [line[:2] for line in lines[1:]] == [["w1", "1"], ["w3", "3"], ["w7", "7"]]
    assert "3 of 3 to submit; nothing was" in done.err
    assert not sweep.exists() and fakes.calls() == []


def test_the_members_for_programs(launch, sweep: Path, fakes) -> None:
    rows = json.loads(launch("sweep", "s.yml", "slurm", "--dry-run", "--json").out)
    assert rows[0] == {"member": "w1", "weight": 1, "now": "to submit", "out": f"{sweep}/w1"}
    done = launch("sweep", "s.yml", "slurm", "--json")
    assert (done.code, done.out) == (2, "")
    assert "--json requires --dry-run" in done.err


def test_the_command_for_the_table_is_one_that_finds_the_members(launch, sweep, fakes) -> None:
    done = launch("sweep", "s.yml", "slurm", "--out", "other runs")
    *_, command = done.out.splitlines()
    assert command == "table   merge-launch sweep s.yml results --out 'other runs'"
    table = launch(*shlex.split(command)[2:]).out
    assert table.count("queued") == 3


def test_one_job_each(launch, sweep: Path, fakes, runs) -> None:
    done = launch("sweep", "s.yml", "slurm", *PYTHON, "--then", THEN)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == ["34 then 35  w1", "36 then 37  w3", "38 then 39  w7"]
    assert [norm(sweep / name) for name in ("w1", "w3", "w7")] == [15, 17.5, 18.75]
    assert (sweep / "w3" / "mergekit_config.yml").read_text().startswith("merge_method: linear")
    asked = len(fakes.calls())
    table = launch("sweep", "s.yml", "results", "--sort", "valid", "--descending")
    assert [line.split() for line in table.out.splitlines()] == [
        ["MEMBER", "WEIGHT", "STATE", "VALID", "JOB"],
        *(["w7", "7", "done", "0.7", "38"], ["w3", "3", "done", "0.3", "36"]),
        ["w1", "1", "done", "0.1", "34"],
    ]
    # One question for all of them.
    assert [call.split()[0] for call in fakes.calls()[asked:]] == ["squeue"]


@pytest.mark.slow
def test_results_for_programs(launch, sweep: Path, fakes, runs) -> None:
    launch("sweep", "s.yml", "slurm", *PYTHON, "--then", THEN)
    rows = list(csv.DictReader(io.StringIO(launch("sweep", "s.yml", "results", "--csv").out)))
    assert rows[1] == {
        "member": "w3",
        "weight": "3",
        "state": "done",
        "model": "x",
        "valid": "0.3",
        "job": "36",
        "out": str(sweep / "w3"),
    }
    text = launch("sweep", "s.yml", "results", "--column", "model").out
    assert text.splitlines()[0].split() == ["MEMBER", "WEIGHT", "STATE", "MODEL", "JOB"]
    for flag, words in (("--sort", "no such column"), ("--column", "printed no such value")):
        done = launch("sweep", "s.yml", "results", flag, "vald")
        assert done.code == 2
        assert words in done.err and "did you mean 'valid'?" in done.err


@pytest.mark.slow
def test_an_array_split_under_the_limit(launch, sweep: Path, fakes, runs) -> None:
    """The fake's MaxArraySize is 3, so numbers go up to 2; here --array-size makes it fewer."""
    words = ("--array", "--array-size", "2", "--at-once", "1", *PYTHON, "--then", THEN)
    done = launch("sweep", "s.yml", "slurm", *words)
    assert done.code == 0, done.err
    assert re.findall(r"^(\S+) then \d+  (w\d)$", done.out, re.MULTILINE) == [
        *(("34_0", "w1"), ("34_1", "w3"), ("37_0", "w7"))
    ]
    calls = [call.replace("\\", "") for call in fakes.calls() if "--array=" in call]
    assert ["--array=0-1%1" in calls[0], "--array=0-0%1" in calls[1]] == [True, True]
    assert all("--job-name=s " in call for call in calls)
    assert (sweep / "w3.job" / "34_1.exit").read_text() == "0\n"
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "done")
    assert "merge-launch: begun on" in (sweep / "w3.job" / "w3.log").read_text()


def test_the_limit_of_the_site(launch, sweep: Path, fakes) -> None:
    (sweep.parent / "s.yml").write_text(SWEEP.replace("[1, 3, 7]", "[1, 2, 3, 4, 5, 6, 7]"))
    done = launch("sweep", "s.yml", "slurm", "--array")
    assert done.code == 0, done.err
    ids = re.findall(r"^(\d+)_(\d)  w\d$", done.out, re.MULTILINE)
    assert [int(number) for _, number in ids] == [0, 1, 2, 0, 1, 2, 0]
    assert len({array for array, _ in ids}) == 3


def test_the_text_of_an_array(launch, sweep: Path, fakes) -> None:
    launch("sweep", "s.yml", "slurm", "--array", "--mem", "5G", "--directive=--qos=high")
    text = (sweep.parent / "runs.job" / "s-0.sbatch").read_text()
    assert "\n#SBATCH --mem=5G\n" in text and "\n#SBATCH --qos=high\n" in text
    assert "\n".join(str(sweep / f"w{n}.job" / f"w{n}.sbatch") for n in (1, 3, 7)) in text
    assert len(text) < 2000
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_an_array_has_one_worker(launch, sweep: Path, fakes, runs) -> None:
    words = ("sweep", "s.yml", "slurm", "--array", *PYTHON)
    assert launch(*words).code == 0
    (worker,) = (sweep.parent / "runs.job").glob("*-merge-worker.pyz.bz2")
    for script in sweep.glob("*.job/*.sbatch"):
        text = script.read_text()
        assert len(text) < 20_000 and "MERGE_WORKER_PYZ" not in text
        assert f"cat -- {worker} > " in text
    # A damaged worker does not run; the next submission writes it again.
    worker.write_bytes(worker.read_bytes()[:-1])
    launch("retry", "34_1")
    assert "SHA-256 differs" in launch("logs", "35").out
    assert launch(*words, "--overwrite").code == 0
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "done")
    worker.unlink()
    launch("retry", "34_1")
    assert "the worker of this array cannot be read" in launch("logs", "37").out


def test_only_what_failed_is_submitted_again(launch, sweep: Path, fakes, runs) -> None:
    (sweep / "w3").mkdir(parents=True)
    (sweep / "w3" / ".merge-partial").touch()
    words = ("sweep", "s.yml", "slurm", "--array", *PYTHON)
    assert launch(*words).code == 0
    assert states(launch) == {"w1": "done", "w3": "failed", "w7": "done"}
    (sweep / "w3" / ".merge-partial").unlink()
    again = launch(*words)
    assert "2 of 3 are done or on their way" in again.err
    assert again.out.splitlines()[0] == "35_0  w3"
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "done")
    before = len(fakes.calls())
    assert launch(*words).code == 0
    assert not [call for call in fakes.calls()[before:] if call.startswith("sbatch")]


def test_waiting_members_are_not_submitted_twice(launch, sweep: Path, fakes) -> None:
    assert launch("sweep", "s.yml", "slurm").code == 0
    before = len(fakes.calls())
    again = launch("sweep", "s.yml", "slurm")
    assert "3 of 3 are done or on their way" in again.err
    assert [call.split()[0] for call in fakes.calls()[before:]] == ["squeue"]


@pytest.mark.parametrize("seen", [True, False])
def test_members_are_left_alone_while_nobody_knows_their_state(
    seen: bool, launch, sweep: Path, fakes
) -> None:
    assert launch("sweep", "s.yml", "slurm").code == 0
    if seen:
        assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "queued")
    fakes.answer("squeue", 1, err="slurm_load_jobs error: Unable to contact slurm controller\n")
    fakes.answer("sacct", 1, err="sacct: error: Problem talking to the database\n")
    before = len(fakes.calls())
    again = launch("sweep", "s.yml", "slurm")
    assert not [call for call in fakes.calls()[before:] if call.startswith("sbatch")]
    left = "3 members are left alone, since they may be waiting or running: w1, w3, w7"
    assert (left in again.err) is not seen
    # Those that the scheduler has forgotten are submitted again.
    for name in ("squeue", "sacct"):
        (fakes.folder / f"{name}.status").unlink()
    (fakes.folder / "34.state").unlink()
    assert launch("sweep", "s.yml", "slurm").out.splitlines()[0] == "37  w1"


def test_members_that_a_pbs_does_not_mention_are_left_alone(launch, sweep: Path, fakes) -> None:
    assert launch("sweep", "s.yml", "pbs").code == 0
    fakes.switch("first-only")
    fakes.answer("qstat", 0, out="Job Id: 12.pbs-server\n    job_state = Q\n")
    before = len(fakes.calls())
    again = launch("sweep", "s.yml", "pbs")
    assert "2 members are left alone" in again.err
    assert not [call for call in fakes.calls()[before:] if call.startswith("qsub")]


def test_a_second_shell_waits_and_finds_the_sweep_submitted(
    launch, sweep: Path, fakes, monkeypatch
) -> None:
    paths = []
    take = lock.Lock
    monkeypatch.setattr(lock, "Lock", lambda path, about: paths.append(path) or take(path, about))
    assert launch("sweep", "s.yml", "slurm").code == 0
    assert not paths[0].exists()
    first = take(paths[0])
    first.__enter__()
    monkeypatch.setattr(lock.time, "sleep", lambda _: first.__exit__())
    before = len(fakes.calls())
    second = launch("sweep", "s.yml", "slurm")
    assert (second.code, second.out) == (0, "")
    assert "another process is submitting this sweep; waiting for it" in second.err
    assert "3 of 3 are done or on their way" in second.err
    assert [call.split()[0] for call in fakes.calls()[before:]] == ["squeue"]


@pytest.mark.slow
def test_two_shells_at_once(sweep: Path, fakes) -> None:
    argv = [sys.executable, "-m", "merge_launch", "sweep", "s.yml", "slurm"]
    env = {**os.environ, "PYTHONPATH": SOURCES}
    shells = [subprocess.Popen(argv, env=env) for _ in range(3)]
    assert [shell.wait(timeout=300) for shell in shells] == [0, 0, 0]
    assert len([call for call in fakes.calls() if call.startswith("sbatch")]) == 3


def test_without_a_state_folder_there_is_no_lock(launch, sweep: Path, fakes, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    assert launch("sweep", "s.yml", "slurm").out.count("  w") == 3


def test_jobs_of_members_differ_in_fifteen_characters(launch, sweep: Path, fakes) -> None:
    text = SWEEP.replace("w{weight}", "a-long-beginning-{weight}")
    (sweep.parent / "s.yml").write_text(text)
    assert launch("sweep", "s.yml", "slurm", "--then", "true").code == 0
    texts = [path.read_text() for path in sweep.glob("*.job/*.sbatch")]
    names = re.findall("--job-name=(.*)", "\n".join(texts))
    assert set(names) == {f"m{n}-a-long-{end}" for n in (1, 2, 3) for end in ("begin", "-then")}
    assert (sweep / "a-long-beginning-3.job" / "m2-a-long-begin.sbatch").exists()


def test_a_member_is_a_job_like_any_other(launch, sweep: Path, fakes, runs) -> None:
    launch("sweep", "s.yml", "slurm", "--array", *PYTHON)
    assert "34_1  done" in launch("status", "34_1").out
    assert "2 tensors merged" in launch("logs", "34_1").out
    assert launch("retry", "34_1").out.startswith("job     35\n")


def test_here_one_after_the_other(launch_process, sweep: Path, work: Path) -> None:
    (sweep / "w3").mkdir(parents=True)
    (sweep / "w3" / ".merge-partial").touch()
    done = launch_process("sweep", "s.yml", "local", "--then", THEN, "--progress", "plain")
    assert done.code == 4
    assert "w3: exit code 4" in done.err
    assert norm(sweep / "w7") == 18.75
    rows = json.loads(launch_process("sweep", "s.yml", "results", "--json").out)
    assert [(row["state"], row.get("valid")) for row in rows] == [
        ("done", 0.1),
        ("-", None),
        ("done", 0.7),
    ]


def test_one_pass(launch, sweep: Path, fakes, runs) -> None:
    done = launch("sweep", "s.yml", "slurm", "--one-pass", *PYTHON, "--then", THEN)
    assert done.code == 0, done.err
    assert done.out.splitlines()[:3] == ["34 then 35  w1", "34 then 36  w3", "34 then 37  w7"]
    assert [norm(sweep / name) for name in ("w1", "w3", "w7")] == [15, 17.5, 18.75]
    rows = json.loads(launch("sweep", "s.yml", "results", "--json").out)
    assert [(row["state"], row["job"], row["valid"]) for row in rows] == [
        *(("done", "34", 0.1), ("done", "34", 0.3), ("done", "34", 0.7))
    ]
    text = (sweep / "w1.job" / "w1.sbatch").read_text()
    assert text.count("MERGE_WORKER_PYZ\n") == 1 and text.count("\nMERGE_RECIPE_YML\n") == 3


def test_a_damaged_recipe_of_one_pass(launch, sweep: Path, fakes, bare_bash, tmp_path) -> None:
    launch("sweep", "s.yml", "slurm", "--one-pass", "--python", "touch")
    path = sweep / "w1.job" / "w1.sbatch"
    lines = path.read_text().splitlines()
    (at,) = (n for n, line in enumerate(lines) if "recipe-3.yml" in line and "base64 -d" in line)
    lines[at + 1] = "AAAA" + lines[at + 1][4:]
    path.write_text("\n".join(lines))
    done = bare_bash(str(path))
    assert done.code == 3
    assert "is damaged (SHA-256 differs)" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("slurm", "--array", "--one-pass"), "--array conflicts with --one-pass"),
        (("slurm", "--name", "x"), "members of a sweep have names of their own"),
        (("slurm", "--follow"), "--follow: for one job"),
        (("slurm", "--at-once", "2"), "--array-size and --at-once require --array"),
        (("beaker", "--array"), "--array: beaker has no arrays"),
        (("local", "--detach"), "one after the other"),
        (("local", "--one-pass", "--then", "ls"), "no job that waits for another"),
        (("slurm", "--array", "--time", "noon"), "--time 'noon' must be"),
    ],
)
def test_options_that_do_not_go_together(words, message: str, launch, sweep: Path, fakes) -> None:
    done = launch("sweep", "s.yml", *words)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert fakes.calls() == []


def test_faults_of_all_members_before_any_is_submitted(launch, sweep: Path, fakes) -> None:
    text = SWEEP.replace("[{model: m1", "[{model: nowhere, x: 1}, {model: m1")
    (sweep.parent / "s.yml").write_text(text.replace(", x: 1", ", parameters: {weight: 1}"))
    (sweep / "w3").mkdir(parents=True)
    (sweep / "w3" / "merge_manifest.json").write_text("{}")
    done = launch("sweep", "s.yml", "slurm", "--directive=--array=1")
    assert done.code == 2
    lines = done.err.splitlines()
    assert any("every member: --directive '--array=1'" in line for line in lines)
    assert any("w3: " in line and "holds another merge; --overwrite" in line for line in lines)
    assert [call for call in fakes.calls() if call.startswith("sbatch")] == []


def test_a_damaged_input_is_reported_once(launch, sweep: Path, fakes) -> None:
    (sweep.parent / "m2" / "model.safetensors").write_bytes(b"x")
    done = launch("sweep", "s.yml", "slurm")
    assert done.code == 3
    assert done.err.count("m2") == 1 and "every member: " in done.err
    assert fakes.calls() == []


def test_a_scheduler_that_refuses_in_the_middle(launch, sweep: Path, fakes, monkeypatch) -> None:
    """Submitted members are kept; the same command submits the rest."""
    assert launch("sweep", "s.yml", "slurm", "--array-size", "1", "--array").code == 0
    quota = "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
    (sweep.parent / "s.yml").write_text(SWEEP.replace("[1, 3, 7]", "[1, 3, 7, 8]"))
    fakes.answer("sbatch", 1, err=quota)
    done = launch("sweep", "s.yml", "slurm")
    assert done.code == 6
    assert "0 of 1 submitted; the same command submits the rest" in done.err
    assert "QOSMaxSubmitJobPerUserLimit" in done.err
    assert not (sweep / "w8.job").exists()
    (fakes.folder / "sbatch.status").unlink()
    assert launch("sweep", "s.yml", "slurm").out.splitlines()[0].endswith("  w8")


def test_a_profile_holds_the_limits(launch, sweep: Path, fakes) -> None:
    (sweep.parent / file.FILE_NAME).write_text("array_size = 1\n[slurm]\nmem = '7G'\n")
    done = launch("sweep", "s.yml", "slurm", "--array")
    assert done.code == 0, done.err
    assert re.findall(r"^\d+_(\d)  w\d$", done.out, re.MULTILINE) == ["0", "0", "0"]
    assert "--mem=7G\n" in (sweep / "w1.job" / "w1.sbatch").read_text()


def test_one_payload_for_members_alike(launch, sweep: Path, fakes, monkeypatch) -> None:
    made = []
    pack = payload._zipped
    monkeypatch.setattr(payload, "_zipped", lambda package: made.append(package) or pack(package))
    payload.build.cache_clear()
    assert launch("sweep", "s.yml", "slurm").code == 0
    assert len(made) == 1
