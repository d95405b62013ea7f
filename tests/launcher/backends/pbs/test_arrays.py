"""Sweeps as job arrays of PBS: split under the cap, a verdict for each, what failed again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

WORDS = ("sweep", "s.yml", "pbs", "--array", "--python")
# What a merge leaves, of a worker that needs no time.
MERGE = """
[ ! -e "$4/.merge-partial" ] || exit 4
mkdir -p "$4" && cp "$3" "$4/mergekit_config.yml" && echo '{}' > "$4/merge_manifest.json"
"""
RESULTS = ("sweep", "s.yml", "results")


@pytest.fixture
def words(python) -> tuple[object, ...]:
    return (*WORDS, python(running=MERGE))


def norm(folder: Path) -> float:
    return float(load_file(folder / "model.safetensors")["norm"][0])


def states(launch) -> dict[str, str]:
    done = launch(*RESULTS, "--json")
    assert done.code == 0, done.err
    return {row["member"]: row["state"] for row in json.loads(done.out)}


def ids(text: str) -> list[str]:
    return re.findall(r"^(\S+)  w\d$", text, re.MULTILINE)


@pytest.mark.slow
def test_from_the_queue_to_the_verdicts(launch, sweep: Path, fakes) -> None:
    done = launch(*WORDS, sys.executable, "--at-once", "2")
    assert done.code == 0, done.err
    assert ids(done.out) == [f"12[{n}].pbs-server" for n in range(3)]
    calls = [call.replace("\\", "") for call in fakes.calls()]
    script = sweep.parent / "runs.job" / "s-0.pbs"
    assert calls == ["qstat -B -f", f"qsub -J 0-2%2 -N s -k n -o {script.parent}/ {script}"]
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "queued")
    assert "3 of 3 are done or on their way" in launch(*WORDS, sys.executable).err
    fakes.pbs("schedule")
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "done")
    assert [norm(sweep / name) for name in ("w1", "w3", "w7")] == [15, 17.5, 18.75]
    assert (sweep / "w3.job" / "12[1].pbs-server.exit").read_text() == "0\n"
    assert "2 tensors merged" in launch("logs", "12[1].pbs-server").out
    # Nothing but what PBS itself had to say.
    assert {path.read_text() for path in script.parent.glob("*.OU")} == {""}


def test_one_member_fails_and_goes_again_alone(
    words, launch, sweep: Path, fakes, monkeypatch
) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    (sweep / "w3").mkdir(parents=True)
    (sweep / "w3" / ".merge-partial").touch()
    assert launch(*words).code == 0
    assert states(launch) == {"w1": "done", "w3": "failed", "w7": "done"}
    assert "Exit code 4" in launch("why", "12[1].pbs-server").out
    (sweep / "w3" / ".merge-partial").unlink()
    again = launch(*words)
    assert "2 of 3 are done or on their way" in again.err
    # PBS takes no array of one member.
    assert ids(again.out) == ["13.pbs-server"]
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "done")


def test_retry_of_a_member(words, launch, sweep: Path, fakes) -> None:
    launch(*words)
    assert launch("cancel", "12[1].pbs-server").code == 0
    fakes.pbs("schedule")
    assert states(launch) == {"w1": "done", "w3": "cancelled", "w7": "done"}
    assert launch("retry", "12[1].pbs-server").out.startswith("job     13.pbs-server\n")
    fakes.pbs("schedule")
    assert states(launch)["w3"] == "done"


def test_members_that_have_ended_while_others_run(words, launch, sweep: Path, fakes) -> None:
    """PBS gives them the letter X, and their codes with it."""
    (sweep / "w3").mkdir(parents=True)
    (sweep / "w3" / ".merge-partial").touch()
    launch(*words)
    last = fakes.folder / "pbs" / "12[2].pbs-server.job"
    last.write_text(json.dumps(json.loads(last.read_text()) | {"state": "R"}))
    fakes.pbs("schedule")
    for exit_file in sweep.glob("*/*.exit"):
        exit_file.unlink()
    assert (
        "job_state = X"
        in subprocess.run(
            ["qstat", "-x", "-f", "12[0].pbs-server"], capture_output=True, text=True
        ).stdout
    )
    assert states(launch) == {"w1": "done", "w3": "failed", "w7": "running"}


@pytest.mark.parametrize(
    ("cap", "more", "numbers"),
    [
        ("10000", ("--array-size", "2"), ["12[0]", "12[1]", "13"]),
        ("2", (), ["12[0]", "12[1]", "13"]),
        ("3", (), ["12[0]", "12[1]", "12[2]"]),
        ("10000", ("--array-size", "1"), ["12", "13", "14"]),
    ],
)
def test_split_under_the_cap(cap, more, numbers, words, launch, sweep: Path, fakes) -> None:
    (fakes.folder / "pbs").mkdir()
    (fakes.folder / "pbs" / "array-limit").write_text(cap)
    done = launch(*words, *more)
    assert done.code == 0, done.err
    assert ids(done.out) == [f"{number}.pbs-server" for number in numbers]


def test_what_follows_runs_at_the_end_of_its_member(words, launch, sweep: Path, fakes) -> None:
    """PBS knows no job that waits for one member."""
    then = """printf '{"loss": 0.%s}\\n' "${PWD##*w}" """
    done = launch(*words, "--array-size", "2", "--then", then)
    assert done.code == 0, done.err
    assert " then " in done.out.splitlines()[2], "the last one is no array"
    fakes.pbs("schedule")
    fakes.pbs("schedule")
    rows = json.loads(launch(*RESULTS, "--json").out)
    assert [(row["state"], row["loss"]) for row in rows] == [
        *(("done", 0.1), ("done", 0.3), ("done", 0.7))
    ]


def test_what_follows_fails(words, launch, sweep: Path, fakes) -> None:
    assert launch(*words, "--then", '[ "${PWD##*w}" != 3 ]').code == 0
    fakes.pbs("schedule")
    assert states(launch) == {"w1": "done", "w3": "done, then failed", "w7": "done"}


def test_torque(words, launch, sweep: Path, fakes, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_PBS", "torque")
    monkeypatch.setenv("FAKE_RUN", "1")
    done = launch(*words, "--dialect", "torque", "--at-once", "1")
    assert done.code == 0, done.err
    assert "qsub -t 0-2%1 -N s -k n -o " in fakes.calls()[1]
    assert states(launch) == dict.fromkeys(("w1", "w3", "w7"), "done")
    assert fakes.calls()[-1].replace("\\", "").startswith("qstat -f 12[")


def test_a_cap_that_changed_meanwhile(words, launch, sweep: Path, fakes) -> None:
    fakes.answer("qsub", 255, err="qsub: Array job exceeds server or queue size limit\n")
    done = launch(*words)
    assert (done.code, done.out) == (6, "")
    assert "0 of 3 submitted" in done.err and "exceeds server or queue size limit" in done.err
    assert not list(sweep.parent.glob("runs*"))
