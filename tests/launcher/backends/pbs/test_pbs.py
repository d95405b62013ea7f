"""PBS: directives that qsub takes, its answers, and what became of a job."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from merge_launch import backends
from merge_launch.settings.groups import JobOptions

PBS = backends.get("pbs")


def directives(text: str) -> list[str]:
    return [line.removeprefix("#PBS ") for line in text.splitlines() if line.startswith("#PBS")]


def settings(**values):
    return PBS.resources(**values)


def test_golden(make_job, render_job, golden) -> None:
    job = make_job("./runs/out", "m1", "m2", "m3", name="soup")
    text = render_job(
        "pbs",
        job,
        ngpus=2,
        ncpus=16,
        mem="80g",
        walltime="12:00:00",
        queue="gpu",
        project="ab12",
        directive=("-l place=scatter", "-W umask=022"),
    )
    golden("pbs.sh", text)


def test_directives_stand_above_all_else_and_are_plain(make_job, render_job) -> None:
    text = render_job("pbs", make_job("out", "é m1", "m2"), ngpus=1)
    lines = text.splitlines()
    last = max(number for number, line in enumerate(lines) if line.startswith("#PBS"))
    assert lines[0] == "#!/bin/bash"
    assert all(line.startswith("#PBS ") for line in lines[1 : last + 1])
    assert "\n".join(lines[: last + 1]).isascii()
    assert "\r" not in text
    assert text.endswith("\n")


def test_only_what_was_asked_for(make_job, render_job) -> None:
    assert directives(render_job("pbs", make_job())) == [
        "-N out",
        "-k oed",
        "-j oe",
        '-o "/home/me/work/out.job/out.log"',
        "-r y",
    ]
    assert "-l select=1:ngpus=0" in directives(render_job("pbs", make_job(), ngpus=0))


@pytest.mark.parametrize("mem", ["80g", "80gb", "80GB", "80G"])
def test_memory_in_a_unit_that_all_dialects_know(make_job, render_job, mem: str) -> None:
    assert "-l select=1:mem=80gb" in directives(render_job("pbs", make_job(), mem=mem))


def test_a_bare_number_of_bytes_stays_one(make_job, render_job) -> None:
    assert "-l select=1:mem=100b" in directives(render_job("pbs", make_job(), mem="100b"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--walltime", "1-00:00:00"),
        ("--walltime", "12:00:00 # x"),
        ("--mem", "1.5gb"),
        ("--mem", "4GiB"),
        ("--mem", "80"),
        ("--queue", "a b"),
        ("--queue", "gpu\n#PBS -l x"),
        ("--project", "-P"),
        ("--directive", "place=scatter"),
        ("--directive", "-l a\n-l b"),
        ("--directive", "-N é"),
        ("--dialect", "pbspro"),
        ("--ngpus", "-1"),
        ("--ncpus", "0"),
        ("--nodes", "0"),
        ("--resource", "place=scatter # x"),
        ("--resource", "-l"),
        ("--charge", "W"),
    ],
)
def test_what_no_directive_may_hold(launch, flag: str, value: str) -> None:
    done = launch("pbs", "out", "m1", "m2", f"{flag}={value}", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert flag in done.err


def test_an_out_that_no_directive_can_name(launch) -> None:
    done = launch("pbs", "a:b\n/out", "m1", "m2", "--dry-run")
    assert done.code == 2
    assert r"a:b\n/out.job/out.log" in done.err
    assert launch("pbs", "with blank/a:b", "m1", "m2", "--dry-run").code == 0


def test_torque_takes_short_names_only(make_job) -> None:
    job = make_job(name="a-name-of-sixteen")
    assert "15 characters" in PBS.faults(job, settings(dialect="torque"))[0]
    assert PBS.faults(job, settings()) == []


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("12.pbs-server\n", "12.pbs-server"),
        ("0.server", "0.server"),
        ("7[].server\n", "7[].server"),
        ("123\n", "123"),
        ("a greeting of the site\n123456.gadi-pbs\n", "123456.gadi-pbs"),
        ("", None),
        ("qsub: job accepted", None),
        ("12 pbs", None),
    ],
)
def test_ids(text: str, job_id: str | None) -> None:
    assert PBS.parse_submit(text) == job_id


def test_commands() -> None:
    assert PBS.submit_argv("/w/out.job/out.pbs") == ["qsub", "/w/out.job/out.pbs"]
    two = ["1.s", "2.s"]
    for dialect in ("openpbs", "generic"):
        argv = PBS.status_argv("qstat -x -f -F json", two, dialect)
        assert argv == ["qstat", "-x", "-f", "-F", "json", "1.s", "2.s"]
    assert PBS.status_argv("qstat -x -f -F json", two, "torque") is None
    assert PBS.status_argv("qstat -f -F json", two, "torque") == ["qstat", "-f", "1.s", "2.s"]
    after = ["qsub", "-W", "depend=afterok:1.s", "/w/then.pbs"]
    assert PBS.submit_argv("/w/then.pbs", "1.s") == after
    assert PBS.cancel_argv(two) == ["qdel", "--", "1.s", "2.s"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("-z", "would not print the job id"),
        ("-q work -z", "would not print the job id"),
        ("-W depend=afterok:1 -v A=1", "visible to every user in qstat"),
        ("-R oe", "the log would be removed"),
        ("-m a -W block=true", "would wait"),
        ("-J 0-3", "sweep SWEEP.yml pbs --array"),
        ("-A 'x", "no closing quotation"),
    ],
)
def test_no_directive_takes_away_what_the_rest_relies_on(make_job, line: str, reason: str) -> None:
    (fault,) = PBS.faults(make_job(), settings(directive=(line,)))
    assert f"--directive '{line}': " in fault and reason in fault


@pytest.mark.parametrize("line", ["-p -10", "-W umask=022", "-l place=scatter -q work", "-A 'x y'"])
def test_other_directives_are_free(make_job, line: str) -> None:
    assert PBS.faults(make_job(), settings(directive=(line,))) == []


def test_files_get_the_modes_that_the_user_gives(make_job, render_job) -> None:
    before = os.umask(0o027)
    try:
        assert "\numask 0027\n" in render_job("pbs", make_job())
        own = render_job("pbs", make_job(), directive=("-W umask=077",))
        assert "\numask " not in own
    finally:
        os.umask(before)


@pytest.mark.parametrize("dialect", ["openpbs", "torque"])
def test_the_text_is_bash(make_job, render_job, dialect: str) -> None:
    job = make_job("out", "it's", "m\n2", setup=("module load x",), then="echo 'done'")
    text = render_job("pbs", job, dialect=dialect)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_job_options_have_no_say_in_directives(make_job, render_job) -> None:
    """Paths and commands are shell, not directives: none of them reaches a #PBS line."""
    job = make_job("out", "m1", "#PBS -q x", then="\n#PBS -q y", setup=("a=1\n#PBS -q z",))
    text = render_job("pbs", job)
    assert not re.search(r"-q", "\n".join(directives(text.partition("\n\n")[0])))
    assert isinstance(job.options, JobOptions)


def test_submission(launch, fakes, models, work: Path) -> None:
    done = launch("pbs", "--ngpus", 2, "out", *models)
    assert done.code == 0, done.err
    folder = work / "out.job"
    assert fakes.calls() == [f"qsub {folder}/out.pbs"]
    assert done.out.splitlines() == [
        "job     12.pbs-server",
        f"out     {work}/out",
        f"log     {folder}/out.log",
        "follow  merge-launch logs -f 12.pbs-server",
        "cancel  merge-launch cancel 12.pbs-server",
    ]
    assert (folder / "out.pbs").read_text() == launch(
        "render", "pbs", "out", *models, "--ngpus", 2
    ).out
