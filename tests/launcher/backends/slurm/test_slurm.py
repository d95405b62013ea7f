"""Slurm: directives that sbatch takes, its answers, and what became of a job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from merge_launch import backends

SLURM = backends.get("slurm")


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line[:7] == "#SBATCH"]


def test_golden(make_job, render_job, golden) -> None:
    text = render_job(
        "slurm",
        make_job("./runs/out", "m1", "m2", "m3", name="soup"),
        gpus="a100:2",
        cpus=16,
        mem="80g",
        time="1-12:00:00",
        partition="gpu,long",
        account="ab12",
        directive=("--constraint=nvme",),
    )
    golden("slurm.sh", text)


def test_golden_of_several_nodes(make_job, render_job, golden) -> None:
    job = make_job("./runs/out", "m1", "m2", setup=("module load python",))
    golden("slurm-nodes.sh", render_job("slurm", job, nodes=4, gpus="8", cpus=32, time="1:00:00"))


def test_only_what_was_asked_for(make_job, render_job) -> None:
    assert directives(render_job("slurm", make_job())) == [
        "--job-name=out",
        "--nodes=1",
        "--ntasks=1",
        "--signal=B:USR1@60",
        '--output="/home/me/work/out.job/out.log"',
        "--open-mode=append",
        "--requeue",
    ]


def test_one_rank_for_each_node(make_job, render_job) -> None:
    text = render_job("slurm", make_job(), nodes=3, gpus="2", cpus=8)
    assert {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1", "--gres=gpu:2"} < set(
        directives(text)
    )
    # srun takes no cores over from the job, and kills its tasks when it gets TERM.
    assert "\nsrun --nodes=3 --ntasks=3 --ntasks-per-node=1 --cpus-per-task=8 bash " in text
    assert 'kill -USR1 "$worker"' in text and "kill -TERM" not in text


def test_what_follows_asks_for_one_node(make_job, render_job) -> None:
    _, then = make_job(then="ls").split()
    text = render_job("slurm", then, nodes=3, gpus="2")
    assert {"--nodes=1", "--ntasks=1", "--gres=gpu:2"} < set(directives(text))
    assert "srun" not in text and "scontrol requeue" not in text and "--signal" not in text


@pytest.mark.parametrize(
    ("time", "seconds", "warned"),
    [
        (None, None, True),
        ("0", None, True),  # no limit at all
        ("1", 60, False),  # a minute's warning would come at once
        ("14:59", 899, False),
        ("90", 5400, True),
        ("90:30", 5430, True),
        ("1:30:30", 5430, True),
        ("2-00", 172800, True),
        ("1-12:30", 131400, True),
        ("1-12:30:10", 131410, True),
    ],
)
def test_the_limit_and_its_warning(
    time: str | None, seconds: int | None, warned: bool, make_job, render_job
) -> None:
    assert SLURM.run(SLURM.resources(time=time)).walltime_s == seconds
    text = render_job("slurm", make_job(), time=time)
    assert ("--signal=B:USR1@60" in directives(text)) is warned
    assert ("--deadline=" in text) is (seconds is not None)


def test_no_way_back_into_the_queue(make_job, render_job) -> None:
    text = render_job("slurm", make_job(), requeue=0)
    assert "--no-requeue" in directives(text) and "--requeue" not in directives(text)
    assert "scontrol" not in text
    # Without the trap the warning would end the shell.
    assert "--signal=B:USR1@60" in text and "trap 'merge_warned=1" in text


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--time", "12h"),
        ("--time", "1-"),
        ("--mem", "80GB"),
        ("--mem", "32"),  # megabytes
        ("--mem", "4GiB"),
        ("--gpus", "two"),
        ("--gpus", "a b:2"),
        ("--partition", "a b"),
        ("--account", "x\ny"),
        ("--directive", "constraint=x"),
        ("--directive", "-C 'a100"),
        ("--nodes", "0"),
        ("--cpus", "0"),
        ("--requeue", "-1"),
    ],
)
def test_what_no_directive_may_hold(launch, flag: str, value: str) -> None:
    done = launch("slurm", "out", "m1", "m2", f"{flag}={value}", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert flag in done.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--array=0-3", "merge-launch sweep"),
        ("-C a100 --array=0-3", "merge-launch sweep"),
        ("--ar=0-3", "merge-launch sweep"),
        ("-a0-3", "merge-launch sweep"),
        ("-n 4", "for all of its GPUs"),  # four tasks: a quarter of the merge
        ("--ntasks-per-node=2", "for all of its GPUs"),
        ("--output=/dev/null", "next to OUT"),
        ("-o x", "next to OUT"),
        ("--wait", "use --follow"),  # sbatch would not answer until the end
        ("--no-requeue", "use --requeue 0"),
        ("--time=1", "use --time"),
        ("--signal=USR1@10", "before the time limit"),
    ],
)
def test_directives_that_the_job_relies_on(launch, line: str, words: str) -> None:
    done = launch("slurm", "out", "m1", "m2", f"--directive={line}", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert f"--directive '{line}'" in done.err and words in done.err


@pytest.mark.parametrize(
    "line",
    ["--constraint=a100", "-C 'a100|h100'", "--exclusive", "--qos=high", "--dependency=afterok:7"],
)
def test_directives_that_are_the_users(make_job, render_job, launch, line: str) -> None:
    text = launch("slurm", "out", "m1", "m2", f"--directive={line}", "--dry-run").out
    assert line in directives(text)


def test_a_percent_sign_would_be_a_pattern_of_slurm(launch) -> None:
    done = launch("slurm", "100%j/out", "m1", "m2", "--dry-run")
    assert done.code == 2
    assert "100%j" in done.err


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("34\n", "34"),
        ("34;cluster\n", "34"),
        ("a greeting\n34\n", "34"),
        ("Submitted batch job 34\n", "34"),
        ("34;cluster\nYour project has 300 hours left.\n", "34"),
        ("", None),
    ],
)
def test_ids(text: str, job_id: str | None) -> None:
    assert SLURM.parse_submit(text) == job_id


def test_the_text_is_bash(make_job, render_job) -> None:
    text = render_job("slurm", make_job("out", "it's", "m\n2", then="echo 'done'"))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_submission(launch, fakes, models, work: Path) -> None:
    done = launch("slurm", "out", *models, "--gpus", 2, "--mem", "80g", "--time", "12:00:00")
    assert done.code == 0, done.err
    assert fakes.calls() == [f"sbatch --parsable {work}/out.job/out.sbatch"]
    assert done.out.startswith("job     34\n")
    assert "cancel  merge-launch cancel 34\n" in done.out


def test_all_jobs_in_one_question(launch, fakes, models) -> None:
    for name in ("a", "b", "c"):
        assert launch("slurm", name, *models).code == 0
    before = len(fakes.calls())
    done = launch("jobs")
    assert done.code == 0, done.err
    asked = fakes.calls()[before:]
    assert [call.split()[0] for call in asked] == ["squeue"]
    assert "--jobs=36,35,34" in asked[0].replace("\\", "")


def test_why_it_waits(launch, fakes, models) -> None:
    launch("slurm", "out", *models)
    done = launch("why", "34")
    assert "Waiting for nodes to become free.\n" in done.out
    assert "Requeued 2 times.\n" in done.out


def test_what_follows_waits_for_the_merge(launch, fakes, models, work: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    words = ("--python", sys.executable, "--then", "pwd; echo $((6 * 7))")
    done = launch("slurm", "out", *models, *words)
    assert "then    35  (after it; log " in done.out
    call = fakes.calls()[-1].replace("\\", "")
    assert "--dependency=afterok:34 --kill-on-invalid-dep=yes" in call
    assert (work / "out.job" / "out-then.log").read_text().endswith(f"{work}/out\n42\n")


def test_what_follows_a_failure_never_runs(launch, fakes, models, work: Path, monkeypatch) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    (work / "out").mkdir()
    (work / "out" / ".merge-partial").touch()
    launch("slurm", "out", *models, "--python", sys.executable, "--then", "touch x")
    assert not (work / "out.job" / "out-then.log").exists()
    assert "Can never run: the job it depends on" in launch("why", "35").out


def test_the_environment_of_an_outer_job_stays_out(launch, fakes, models, monkeypatch) -> None:
    """sbatch hands it on: srun ends over it, and an array's number would be taken for its own."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_MEM_PER_CPU", "SLURM_CONF"):
        monkeypatch.setenv(name, "7")
    answer = 'env | grep ^SLURM_ | sort > "$FAKES/environment"; echo 34'
    (fakes.folder / "sbatch").write_text(f"#!/bin/bash\n{answer}\n")
    (fakes.folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{fakes.folder}:{os.environ['PATH']}")
    assert launch("slurm", "out", *models).code == 0
    assert (fakes.folder / "environment").read_text() == "SLURM_CONF=7\n"


def test_a_job_that_no_sbatch_takes(launch, models, fakes, monkeypatch) -> None:
    """Beyond 4 MiB it says that a path is too long."""
    assert SLURM.max_bytes is not None and SLURM.max_bytes < 4 * 1024**2
    monkeypatch.setattr(type(SLURM), "max_bytes", 50_000)
    done = launch("slurm", "out", *models)
    assert (done.code, done.out) == (2, "")
    assert "slurm takes 50000; shorten the recipe" in done.err
    assert fakes.calls() == [] and not Path("out.job").exists()
    assert launch("pbs", "out", *models, "--dry-run").code == 0


def test_variables_that_would_overrule_the_job(launch, fakes, models, monkeypatch) -> None:
    """The fake refuses them; what the user prefers otherwise is passed on."""
    for name in ("ARRAY_INX", "OUTPUT", "TIMELIMIT", "WAIT"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    monkeypatch.setenv("SBATCH_WAIT_ALL_NODES", "1")
    done = launch("slurm", "out", *models)
    assert done.code == 0, done.err
    assert "warning: SBATCH_TIMELIMIT: ignored, since it would overrule the job's text" in done.err
    assert done.err.count("ignored") == 4
    assert launch("slurm", "out", *models, "--dry-run").err.count("ignored") == 4


@pytest.mark.parametrize("backend", ["slurm", "pbs"])
def test_a_name_with_a_blank_is_made_safe(backend: str, launch, fakes, models) -> None:
    done = launch(backend, "out", *models, "--name", "my merge")
    assert done.code == 0, done.err
    assert (
        "warning: --name 'my merge': schedulers refuse it; the job is called 'my-merge'" in done.err
    )
    for word in ("my merge", "my-merge"):
        assert "queued" in launch("status", word).out


def test_folders_with_other_letters(launch, fakes, models, work: Path) -> None:
    folder = work / "Jörg's (übung), #1 & $x"
    done = launch("slurm", folder / "out", *models)
    assert done.code == 0, done.err
    text = (folder / "out.job" / "out.sbatch").read_text()
    assert f'--output="{folder}/out.job/out.log"' in text
    for letter in '"\\%':
        refused = launch("slurm", work / f"a{letter}b" / "out", *models)
        assert refused.code == 2
        assert "schedulers do not accept this path of the log" in refused.err
