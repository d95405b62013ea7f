"""The job text, run as every backend carries it: by plain bash with python and torch only."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merge_launch import backends
from merge_launch.job import payload
from merge_launch.settings.groups import WorkerOptions
from support.checkpoint_factory import read_tensors
from support.paths import SOURCES

RECIPE = """# as given
merge_method: linear
models:
- {model: m1, parameters: {weight: 1}}
- {model: m2, parameters: {weight: 3}}
"""


def merged_value(out: Path) -> float:
    tensors = read_tensors(out)
    (value,) = set(tensors["model.layers.0.weight"].flatten().tolist())
    assert torch.equal(tensors["norm"], torch.full((3,), 10 * value))
    return float(value)


@pytest.mark.parametrize("backend", backends.names())
def test_the_job_of_each_backend_merges(
    backend: str, job_argv, models, bare_bash, manifest, work: Path, tmp_path: Path
) -> None:
    temporary = tmp_path / "t m p"
    temporary.mkdir()
    argv = job_argv(backend, "out", *models, "--progress", "off")
    done = bare_bash(*argv, cwd=tmp_path, TMPDIR=str(temporary))
    assert (done.code, list(temporary.iterdir())) == (0, []), done.err
    assert merged_value(work / "out") == 2.0
    carried = payload.build()
    worker = {"sha256": carried.digest, "version": carried.version}
    assert worker.items() <= manifest(work / "out")["worker"].items()


def test_modules_of_the_user_do_not_get_in_the_way(
    launch_process, models, work: Path, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "worker").mkdir(parents=True)
    for name in ("worker/__init__.py", "worker/cli.py", "launcher.py"):
        (theirs / name).write_text("raise SystemExit('a module of the user')\n")
    path = f"{theirs}{os.pathsep}{SOURCES}"
    assert launch_process("check", "out", *models, PYTHONPATH=path).code == 0
    done = launch_process("local", "out", *models, "--python", sys.executable, PYTHONPATH=path)
    assert (done.code, merged_value(work / "out")) == (0, 2.0), done.err
    argv = [sys.executable, "-m", "merge_worker", "verify", str(work / "out")]
    assert subprocess.run(argv, env={**os.environ, "PYTHONPATH": path}).returncode == 0


@pytest.mark.parametrize("backend", ["slurm", "beaker"])
def test_a_recipe_travels_and_its_relative_paths_are_ours(
    backend: str, job_argv, models, bare_bash, work: Path, tmp_path: Path
) -> None:
    Path("recipe.yml").write_text(RECIPE)
    argv = job_argv(backend, "recipe.yml", "out")
    assert bare_bash(*argv, cwd=tmp_path).code == 0
    assert merged_value(work / "out") == 1.75
    assert (work / "out" / "mergekit_config.yml").read_text() == RECIPE


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "beaker"])
def test_names_that_shells_take_apart(
    backend: str, job_argv, models, bare_bash, work: Path, tmp_path: Path
) -> None:
    odd = [Path("it's $HOME"), Path("two\nlines 'and' \"quotes\""), Path("*`x`; rm -rf é")]
    for source, name in zip(models, odd, strict=True):
        source.rename(name)
    out = Path("out\n$(touch oops) \\ 'x'")
    argv = job_argv(backend, out, *(Path.cwd() / name for name in odd))
    assert bare_bash(*argv, cwd=tmp_path).code == 0
    assert merged_value(work / out) == 2.0
    assert not list(tmp_path.rglob("oops"))


def test_local_runs_the_text_that_it_shows(
    launch, launch_process, models, python, work: Path, tmp_path: Path
) -> None:
    words = ["out", *models, "--python", python(running="touch it-ran")]
    shown = launch("local", *words, "--dry-run")
    assert not (work / "it-ran").exists()
    kept = tmp_path / "kept"
    bash = tmp_path / "bin" / "bash"
    bash.write_text(f'#!/bin/sh\ncp "$1" {kept}\nexec /bin/bash "$@"\n')
    bash.chmod(0o755)
    done = launch_process("local", *words, PATH=f"{bash.parent}:{os.environ['PATH']}")
    assert done.code == 0, done.err
    assert (work / "it-ran").exists()
    assert kept.read_text() == shown.out


def test_the_exit_code_is_the_workers(launch_process, models, work: Path) -> None:
    (work / "out").mkdir()
    (work / "out" / ".merge-partial").write_text("mine")
    done = launch_process("local", "out", *models)
    assert done.code == 4, done.err
    assert "merge-worker:" in done.err
    assert (work / "out" / ".merge-partial").read_text() == "mine"


def test_setup_environment_and_then(launch_process, models, work: Path) -> None:
    done = launch_process(
        *["local", "out", *models, "--progress", "off"],
        *["--env", "WORD=it's $HOME", "--env", "EMPTY="],
        *["--setup", 'echo "setup: $WORD $unset_is_fine"', "--setup", 'say() { echo "then: $1"; }'],
        *["--then", 'say "$(ls | tr "\\n" " ")" && cd ..'],
    )
    assert done.code == 0, done.err
    assert "setup: it's $HOME \n" in done.out
    assert "then: README.md config.json merge_manifest.json" in done.out


def test_a_failing_setup_or_then_fails_the_job(launch_process, models, python, work: Path) -> None:
    words = ["local", "out", *models, "--python", python(running='mkdir "$4"')]
    assert launch_process(*words, "--setup", "false").code == 1
    assert not (work / "out").exists()
    assert launch_process(*words, "--then", "ls; (exit 9); ls").code == 9
    assert (work / "out").is_dir()


def test_then_waits_for_success(job_argv, models, bare_bash) -> None:
    shutil.rmtree(models[1])
    argv = job_argv("local", "out", *models, "--then", "touch ../after")
    assert bare_bash(*argv).code == 3
    assert not Path("after").exists()


@pytest.mark.parametrize("words", [["--setup", "merge_folder=$HOME"], ["--env", "merge_folder=/"]])
def test_nobody_redirects_the_folder_that_is_removed(
    words: list[str], job_argv, models, bare_bash, tmp_path: Path
) -> None:
    argv = job_argv("local", "out", *models, *words)
    done = bare_bash(*argv, HOME=str(tmp_path / "home"))
    assert done.code == 1
    assert "merge_folder: readonly variable" in done.err
    assert (tmp_path / "home").is_dir()
    assert not Path("out").exists()


# A worker that merges nothing and says what became of the signals.
SLOW = """case $WHEN in
    late) trap 'echo "got TERM"; sleep 0.5; exit 75' TERM ;;
    deaf) trap 'echo "got TERM"' TERM ;;
esac
echo ready
for i in 1 2 3 4; do sleep 0.25 & wait $!; wait $!; done
exit 0
"""


@pytest.fixture
def slow(launch, models, python, tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    program = python(running=SLOW)

    def start(when: str) -> subprocess.Popen[str]:
        text = launch("render", "local", "out", *models, "--python", program).out
        script = tmp_path / "job"
        script.write_text(text)
        job = subprocess.Popen(
            ["bash", str(script)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "WHEN": when, "TMPDIR": str(tmp_path)},
        )
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        return job

    return start


@pytest.mark.parametrize(
    ("when", "code"),
    [("late", 75), ("default", 75), ("deaf", 0)],
    ids=["worker stops in order", "signal before the worker listens", "worker ends all the same"],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_shell_alone_reaches_the_worker(slow, when: str, code: int, number) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("ignored here (nohup), and a shell cannot take back what it was told to ignore")
    job = slow(when)
    job.send_signal(number)
    time.sleep(0.1)
    if when == "late":
        job.send_signal(number)
    out, _ = job.communicate(timeout=120)
    assert job.returncode == code
    assert ("got TERM" in out) == (when != "default")


def test_the_launcher_hands_a_signal_on_and_waits(models, python) -> None:
    program = str(python(running=SLOW))
    argv = [sys.executable, "-m", "merge_launch", "local", "out", *models, "--python", program]
    env = {**os.environ, "PYTHONPATH": SOURCES, "WHEN": "late"}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (75, "got TERM\n")


def test_here_what_is_missing_is_missing(launch, models) -> None:
    done = launch("local", "out", "m1", "nope")
    assert done.code == 3
    assert "nope" in done.err


def test_golden(make_job, render_job, golden) -> None:
    job = make_job(
        "my out",
        "m1",
        "it's",
        setup=("module load python", "source env/bin/activate"),
        env=("HF_HOME=/scratch/it's",),
        then="ls -l",
        worker=WorkerOptions(device="cuda", memory="4GiB"),
    )
    golden("local.sh", render_job("local", job))


def test_its_own_python_where_that_has_torch() -> None:
    assert backends.get("local").python() == sys.executable
    assert backends.get("pbs").python() == "python3"
