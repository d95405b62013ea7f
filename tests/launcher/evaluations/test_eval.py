"""`merge-launch eval`: the harness is a program; inputs once each; scores in card and manifest."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from merge_launch.commands import COMMANDS
from merge_launch.evaluations.harness import Harness, Model, metrics
from merge_worker.cli import main
from support.launcher_fixtures import FAKES

SCORES = {"m1": 0.5, "m2": 0.25, "out": 0.75}


@pytest.fixture
def out(work: Path, models: list[Path], fakes: Any) -> Path:
    """Merge m1 and m2; the fake harness knows their scores."""
    words = ["average", "out", *(str(model) for model in models[:2]), "--progress", "off"]
    assert main(words) == 0
    (fakes.folder / "scores.json").write_text(json.dumps(SCORES))
    return work / "out"


def calls(fakes: Any) -> list[str]:
    return [call for call in fakes.calls() if call.startswith("lm-eval ")]


def test_a_merge_is_evaluated_and_recorded(launch: Any, fakes: Any, out: Path) -> None:
    result = launch("eval", "out", "here", "--tasks", "mine", "--limit", "8", "--num-fewshot", 2)
    assert result.code == 0, result.err
    assert [line.split() for line in result.out.splitlines()] == [
        ["TASK", "METRIC", "MERGED"],
        ["mine", "acc", "0.7500", "±", "0.1421"],
    ]
    (call,) = calls(fakes)
    assert f"--model hf --model_args pretrained={out} --tasks mine --output_path" in call
    assert call.endswith("--limit 8 --num_fewshot 2")
    (run,) = json.loads((out / "evaluation.json").read_text())
    assert run["kind"] == "lm-eval" and run["settings"]["tasks"] == ["mine"]
    assert run["source"]["name"] == "lm-evaluation-harness 0.4.13"
    assert "model-index" not in (out / "README.md").read_text()
    assert main(["verify", "out"]) == 0


def test_inputs_are_evaluated_once(launch: Any, fakes: Any, out: Path, work: Path) -> None:
    words = ("eval", "out", "here", "--tasks", "mine,loss", "--parents")
    result = launch(*words, "--card")
    assert result.code == 0, result.err
    assert len(calls(fakes)) == 3
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["TASK", "METRIC", "MERGED", "M1", "M2", "BEST", "INPUT", "DIFFERENCE"]
    # 0.75 - 0.5, and the error of both is 0.1421: their difference has sqrt(2) times that.
    assert lines[1][-4:] == ["m1", "+0.2500", "±", "0.2010"]
    loss = next(line for line in lines if line[:2] == ["loss", "word_perplexity"])
    assert "±" not in loss, "the harness says N/A"
    result = launch(*words)
    assert result.code == 0 and "m1: evaluated before, its results are reused" in result.err
    assert len(calls(fakes)) == 4, "only the merge again"
    (work / "m1" / "model.safetensors").touch()
    assert launch(*words).code == 0 and len(calls(fakes)) == 6, "the merge and m1"
    assert launch(*words, "--limit", "4").code == 0 and len(calls(fakes)) == 9


def test_the_card(launch: Any, fakes: Any, out: Path) -> None:
    assert launch("eval", "out", "here", "--tasks", "mine", "--parents", "--card").code == 0
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n", 2)[1])
    (found,) = head["model-index"][0]["results"]
    assert found["dataset"] == {
        "name": "mine",
        "type": "mine",
        "split": "test",
        "args": {"num_few_shot": 0},
    }
    assert found["metrics"] == [{"type": "acc", "value": 0.75, "name": "acc", "verified": False}]
    assert "| mine | acc | 0.7500 ± 0.1421 | 0.5000 ± 0.1421 | 0.2500 ± 0.1421 |" in text
    for name in ("README.md", "evaluation.json"):
        assert str(out.parent) not in (out / name).read_text()
    assert main(["verify", "out"]) == 0


def test_groups_stand_for_their_tasks(launch: Any, out: Path) -> None:
    result = launch("eval", "out", "here", "--tasks", "both", "--json")
    assert result.code == 0, result.err
    found = {(row["task"], row["metric"]) for row in json.loads(result.out)}
    assert found == {("both", "acc"), ("loss", "word_perplexity"), ("loss", "bits_per_byte")}


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("fails", "ended with code 1"),
        ("writes nothing", "ended, but wrote no results"),
        ("damaged", "the results cannot be read"),
    ],
)
def test_no_results_are_an_error(launch: Any, fakes: Any, out: Path, mode: str, words: str) -> None:
    (fakes.folder / "lm-eval.mode").write_text(mode)
    result = launch("eval", "out", "here", "--tasks", "mine")
    assert result.code == 5 and words in result.err
    assert not (out / "evaluation.json").exists()


def test_faults_are_told_before_the_harness_runs(
    launch: Any, fakes: Any, out: Path, models: list[Path]
) -> None:
    assert "no tasks given" in launch("eval", "out", "here").err
    result = launch("eval", "nowhere", "here", "--tasks", "mine")
    assert result.code == 3 and "not a finished merge" in result.err
    for words in (
        ("--include-path", "missing"),
        ("--model-args", "bfloat16"),
        ("--eval-args", "'open"),
        ("--limit", "many"),
        ("--model", "gguf"),
        ("--harness", "no-such-program"),
    ):
        assert launch("eval", "out", "here", "--tasks", "mine", *words).code == 2, words
    models[1].rename("moved")
    result = launch("eval", "out", "here", "--tasks", "mine", "--parents")
    assert result.code == 3 and "m2: no such folder" in result.err
    assert calls(fakes) == []


def test_without_the_harness(launch: Any, out: Path, no_scheduler: None) -> None:
    result = launch("eval", "out", "here", "--tasks", "mine")
    assert result.code == 2 and "lm-eval is not on this machine's PATH" in result.err
    assert "pip install 'lm-eval[hf]'" in result.err


def test_a_process_of_its_own_needs_no_place(
    launch_process: Any, fakes: Any, out: Path, models: list[Path]
) -> None:
    result = launch_process("eval", "out", "--tasks", "mine")
    assert result.code == 0, result.err
    assert result.out.startswith("TASK") and "a table of the harness" in result.err


def test_the_words_of_the_command() -> None:
    (command,) = (each for each in COMMANDS if each.name == "eval")
    assert command.place_in(["out", "--tasks", "a"]) == "here"
    assert command.place_in(["out", "--tasks", "a", "slurm"]) == "slurm"
    assert command.place_in(["out", "--queue", "local", "pbs"]) == "pbs"
    assert command.place_in(["out", "--parents", "pbs", "--tasks", "a"]) == "pbs"


def test_a_job_waits_for_the_merge(launch: Any, fakes: Any, work: Path, models: list[Path]) -> None:
    submitted = launch("slurm", "out", "m1", "m2", "--time", "1:00:00")
    assert submitted.code == 0, submitted.err
    merge = submitted.out.split()[1]
    result = launch("eval", "out", "slurm", "--tasks", "mine", "--parents", "--time", "30:00")
    assert result.code == 0, result.err
    call = [call for call in fakes.calls() if call.startswith("sbatch")][-1]
    assert f"--dependency=afterok:{merge}" in call
    script = (work / "out.job" / "out-eval.sbatch").read_text()
    assert "eval" in script and "--tasks=mine --parents" in script
    assert "which the evaluation requires" in script and "PYZ" not in script
    assert (work / "out.job" / "out.sbatch").read_text() != script, "the merge's job stays"


def test_a_job_for_what_is_not_there(launch: Any, fakes: Any, models: list[Path]) -> None:
    result = launch("eval", "out", "slurm", "--tasks", "mine")
    assert result.code == 2 and "no finished merge, and no job of slurm" in result.err
    assert not [call for call in fakes.calls() if call.startswith("sbatch")]


def test_a_job_of_a_finished_merge_runs(
    launch: Any, fakes: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RUN", "1")
    words = ("--env", f"FAKES={fakes.folder}", "--env", f"PYTHONPATH={_paths()}")
    result = launch("eval", "out", "slurm", "--tasks", "mine", "--card", *words)
    assert result.code == 0, result.err
    call = [call for call in fakes.calls() if call.startswith("sbatch")][-1]
    assert "--dependency" not in call
    log = (out.parent / "out.job" / "out-eval.log").read_text()
    assert "mine  acc     0.7500" in log, log
    assert "model-index" in (out / "README.md").read_text()


def _paths() -> str:
    from support.paths import SOURCES

    return str(SOURCES)


@pytest.mark.parametrize("backend", ["slurm", "pbs", "beaker", "local"])
def test_every_backend_renders_the_job(launch: Any, out: Path, backend: str) -> None:
    more = ("--weka", f"bucket:{out.parent}") if backend == "beaker" else ()
    words = ("--tasks", "mine", "--parents", "--dry-run", *more)
    result = launch("eval", "out", backend, *words)
    assert result.code == 0, result.err
    assert "merge_launch eval" in result.out or "merge-launch eval" in result.out
    assert "--tasks=mine --parents" in result.out


def test_paths_with_commas_are_given_as_json(tmp_path: Path) -> None:
    harness = Harness("mine", program=str(FAKES / "lm-eval"))
    argv = harness.argv(Model("a", "/models/a,b=c", adapter="/lora"), tmp_path)
    assert json.loads(argv[argv.index("--model_args") + 1]) == {
        "pretrained": "/models/a,b=c",
        "peft": "/lora",
    }
    argv = harness.argv(Model("a", "org/a", "main"), tmp_path)
    assert "pretrained=org/a,revision=main" in argv


def test_the_forms_of_real_results() -> None:
    value = json.loads((FAKES / "lm_eval_results.json").read_text())
    found = {(metric.task, metric.name): metric for metric in metrics(value)}
    assert ("both", "acc") in found and ("mine", "acc") not in found, "the group has it"
    value["groups"] = {}
    found = {(metric.task, metric.name): metric for metric in metrics(value)}
    accuracy = found["mine", "acc"]
    assert accuracy.higher_is_better is True and accuracy.number.stderr is not None
    perplexity = found["loss", "word_perplexity"]
    assert perplexity.number.stderr is None and perplexity.number.value > 1
