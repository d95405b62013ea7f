"""Commands as users type them: the seeds, dry runs that change nothing, exit codes, start-up."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from merge_launch import backends, cli
from merge_launch.job import payload
from merge_launch.submission import prepare
from merge_launch.tracking import records
from merge_worker import __version__
from support.paths import SOURCES

SEEDS = [
    ["beaker", "out/", "m1", "m2", "m3"],
    ["pbs", "--ngpus", "2", "recipe.yml"],
    [
        "pbs",
        "recipe.yml",
        "--ngpus",
        "2",
        "--ncpus",
        "16",
        "--mem",
        "80g",
        "--walltime",
        "12:00:00",
    ],
]
RECIPE = "merge_method: linear\nmodels: [{model: m1}, {model: m2}]\nparameters: {weight: 1}\n"


@pytest.fixture
def recipe(work: Path) -> Path:
    path = work / "recipe.yml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize("words", SEEDS, ids=" ".join)
def test_the_calls_of_the_seeds(launch, recipe, words: list[str]) -> None:
    shown = launch(*words, "--dry-run")
    assert shown.code == 0, shown.err
    assert launch("render", *words).out == shown.out
    if words[0] == "beaker":
        assert yaml.safe_load(shown.out)["version"] == "v2"
        return
    assert "#PBS -l select=1:" in shown.out
    assert "ngpus=2" in shown.out
    done = subprocess.run(["bash", "-n"], input=shown.out, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_options_before_and_after_the_sources(launch, recipe) -> None:
    first = launch("render", "pbs", "--ngpus", 2, "--queue", "gpu", "recipe.yml", "out").out
    assert launch("render", "pbs", "recipe.yml", "--queue", "gpu", "out", "--ngpus", 2).out == first


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("backend", backends.names())
def test_a_dry_run_writes_nothing_and_calls_nothing(
    backend: str, launch, fakes, models, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("BEAKER_TOKEN", "")
    before = everything_below(tmp_path)
    for words in ([backend, "out", *models, "--dry-run"], ["render", backend, "out", *models]):
        assert launch(*words).code == 0
    assert everything_below(tmp_path) == before
    assert fakes.calls() == []


def test_a_dry_run_is_the_job_and_nothing_else(launch_process) -> None:
    done = launch_process("slurm", "out", "m1", "m2", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("#!/bin/bash\n#SBATCH ")


def test_a_dry_run_needs_no_models_but_a_right_recipe(launch, work: Path) -> None:
    (work / "recipe.yml").write_text("merge_method: lineal\nmodels: [{model: /gone}]\n")
    done = launch("pbs", "recipe.yml", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'linear'" in done.err


def test_warnings_of_a_recipe_go_to_stderr(launch, work: Path) -> None:
    (work / "recipe.yml").write_text(RECIPE + "slice: 3\n")
    done = launch("slurm", "recipe.yml", "--dry-run")
    assert done.code == 0
    assert "warning: recipe.yml:4: slice" in done.err
    assert "unknown key" not in done.out


def test_check(launch, models, fakes, tmp_path: Path) -> None:
    before = everything_below(tmp_path)
    done = launch("check", "out", *models, "--dtype", "float16", "--shard-size", "1KB")
    assert done.code == 0, done.err
    assert "2 merged" in done.out
    assert "float16" in done.out
    assert everything_below(tmp_path) == before


def test_check_as_json(launch, models) -> None:
    import json

    assert isinstance(json.loads(launch("check", "out", *models, "--json").out), dict)


def test_check_of_a_merge_that_does_not_fit(launch, models, monkeypatch) -> None:
    from merge_worker.output import space

    monkeypatch.setattr(space, "SPARE_BYTES", 1 << 60)
    done = launch("check", "out", *models)
    assert done.code == 4
    assert "\ndisk       needs 1048576.00 TiB" in done.out and "are free there" in done.err


def test_check_reports_what_headers_show(launch, models) -> None:
    weights = models[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    done = launch("check", "out", *models)
    assert done.code == 3
    assert "merge-launch: m2/model.safetensors: " in done.err
    assert "Traceback" not in done.err


def test_faults_of_inputs_come_before_the_submission(launch, models, fakes) -> None:
    weights = models[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    for backend in ("pbs", "slurm", "local"):
        done = launch(backend, "out", *models)
        assert (done.code, done.out) == (3, "")
    assert fakes.calls() == []
    assert not Path("out.job").exists()


def test_models_on_other_machines_are_not_checked(launch, models, fakes) -> None:
    done = launch("slurm", "out", "m1", "/on/the/cluster/m2", "org/name")
    assert done.code == 0
    assert "not on this machine; not checked: /on/the/cluster/m2" in done.err
    assert "org/name" in done.err


def test_payload(launch, work: Path) -> None:
    made = payload.build()
    done = launch("payload")
    assert (done.code, done.out) == (0, f"{made.digest}  merge-worker.pyz\n")
    assert list(work.iterdir()) == []
    assert launch("payload", "-o", "w.pyz").out == f"{made.digest}  w.pyz\n"
    assert Path("w.pyz").read_bytes() == made.archive
    checked = subprocess.run(
        ["sha256sum", "-c"], input=launch("payload", "-o", "w.pyz").out, text=True, check=True
    )
    assert checked.returncode == 0
    assert launch("payload", "-o", "no/folder/w.pyz").code == 4


def test_an_unknown_option_or_command(launch) -> None:
    assert launch("pbs", "out", "m1", "m2", "--ngpu", "2").code == 2
    assert launch("torque", "out").code == 2
    assert launch("pbs").code == 2


def test_version_and_help(launch) -> None:
    assert launch("--version").out == f"merge-launch {__version__}\n"
    shown = launch("--help").out
    for command in [*backends.names(), "check", "render", "payload", "status", "logs", "cancel"]:
        assert f"\n  {command} " in shown
    for flag in ("--ngpus", "--walltime", "--memory", "--profile", "--dry-run", "--then"):
        assert flag in launch("pbs", "--help").out


def processor_s(*words: object) -> float:
    """Return the CPU seconds of a Python process, the least of three runs."""
    used = []
    for _ in range(3):  # the first may compile modules
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        argv = [sys.executable, *map(str, words)]
        env = {**os.environ, "PYTHONPATH": SOURCES}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        subprocess.run(argv, env=env, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(used)


@pytest.fixture(scope="module")
def unit_s() -> float:
    """CPU seconds of importing a module of the standard library: the unit of start-up time."""
    return processor_s("-c", "import argparse, asyncio, http.client, yaml, jinja2")


@pytest.mark.parametrize("words", [["--help"], ["slurm", "--help"], ["compare", "--help"]])
def test_help_comes_at_once(words: list[str], unit_s: float) -> None:
    assert processor_s("-m", "merge_launch", *words) < 3 * unit_s


def test_the_id_of_a_job_comes_at_once(models, fakes, unit_s: float) -> None:
    """All of a submission, with the scheduler's part and a job for the same OUT in the records."""
    assert processor_s("-m", "merge_launch", "pbs", "out", *models) < 10 * unit_s
    assert len(records.load()[0]) == 3


@pytest.mark.parametrize(
    "words",
    [
        ["check", "out", "m1", "m2", "m3"],
        ["render", "beaker", "out", "m1", "m2"],
        ["render", "local", "out", "m1", "m2"],
        ["slurm", "out", "m1", "m2", "m3"],
        ["pbs", "out", "m1", "m2", "m3", "--then", "true"],
        ["jobs"],
        ["payload"],
    ],
    ids=" ".join,
)
def test_torch_is_never_loaded(words: list[str], models, fakes) -> None:
    code = (
        "import sys; from merge_launch import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'transformers', 'safetensors', 'beaker'} & set(sys.modules)\n"
        "print(heavy, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "set()"


def test_a_bug_keeps_its_traceback_and_says_how_to_report(monkeypatch, capsys) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(prepare.Request, "jobs", broken)
    monkeypatch.setattr(sys, "argv", ["merge-launch", "render", "local", "out", "m1", "m2"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "RuntimeError: a bug" in shown
    assert "report it" in shown


def test_nothing_ever_asks_a_question() -> None:
    asks = re.compile(r"\b(input|getpass|confirm|prompt)\(|prompt=")
    sources = Path(cli.__file__).parent.rglob("*.py")
    assert [path.name for path in sources if asks.search(path.read_text())] == []
