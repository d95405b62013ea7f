"""`--try` after a merge: the same run, recorded, resumed, done by one rank, said before."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from merge_worker.commands import after_merge
from merge_worker.output.evaluation import evaluating
from merge_worker.output.scores import Evaluation, Outcome
from support.recipes import average, manifest, run
from support.spoken_models import change_tensors, save_spoken, with_nan, without

Capture = pytest.CaptureFixture[str]
NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture
def spoken(tmp_path: Path) -> list[Path]:
    return [save_spoken(tmp_path / name) for name in ("one", "two")]


def kinds(out: Path) -> list[str]:
    return [run["kind"] for run in json.loads((out / "evaluation.json").read_text())]


def test_a_merge_is_tried_and_that_is_recorded(
    tmp_path: Path, spoken: list[Path], capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert average(out, spoken, "--try", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert printed.index("tensors merged") < printed.index("every tensor has its place")
    assert kinds(out) == ["try"] and run("verify", out) == 0
    assert "as LlamaForCausalLM: every tensor has its place." in (out / "README.md").read_text()
    assert manifest(out)["evaluations"][0]["kind"] == "try"
    assert str(tmp_path) not in (out / "evaluation.json").read_text()
    facts = json.loads((out / "evaluation.json").read_text())[0]["facts"]["trial"]
    assert len(facts["texts"]) == 3 and facts["faults"] == []


def test_the_same_command_does_only_what_is_left(
    tmp_path: Path, spoken: list[Path], capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert average(out, spoken) == 0
    shard = (out / "model.safetensors").stat()
    capsys.readouterr()
    assert average(out, spoken, "--try") == 0
    printed = capsys.readouterr().out
    assert "already there" in printed and "every tensor has its place" in printed
    assert (out / "model.safetensors").stat().st_mtime_ns == shard.st_mtime_ns
    assert average(out, spoken, "--try") == 0
    printed = capsys.readouterr().out
    assert "--try is recorded already; nothing to do" in printed
    assert "every tensor" not in printed and kinds(out) == ["try"]
    assert average(out, spoken, "--try", "--overwrite") == 0
    assert kinds(out) == ["try"] and run("verify", out) == 0


def test_a_trial_that_fails_leaves_the_merge(
    tmp_path: Path, spoken: list[Path], capsys: Capture
) -> None:
    for model in spoken:
        change_tensors(model, without(NORM))
    out = tmp_path / "out"
    assert average(out, spoken, "--try") == 5
    printed = capsys.readouterr()
    assert "tensors merged" in printed.out
    assert f"merge-worker: out: 1 tensor is missing: {NORM}\n" in printed.err
    assert "the merge is finished and stays" in printed.err
    assert run("verify", out) == 0 and not (out / "evaluation.json").exists()
    assert not (out / ".merge-partial").exists()
    assert average(out, spoken, "--try") == 5, "it is tried again"
    assert average(out, spoken) == 0


def test_missing_transformers_are_said_before_the_merge(
    tmp_path: Path, spoken: list[Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert average(tmp_path / "out", spoken, "--try") == 2
    assert "--try: transformers is missing in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_recipes_in_one_pass(tmp_path: Path, spoken: list[Path], capsys: Capture) -> None:
    words: list[object] = []
    for name, weight in (("a", 1), ("b", 2)):
        models = "".join(
            f"- {{model: {m}, parameters: {{weight: {w}}}}}\n"
            for m, w in zip(spoken, (weight, 1), strict=True)
        )
        (tmp_path / f"{name}.yml").write_text(f"merge_method: linear\nmodels:\n{models}")
        words += ["-a", tmp_path / f"{name}.yml", tmp_path / name]
    assert run("merge", *words, "--try", "--progress", "off") == 0
    assert kinds(tmp_path / "a") == kinds(tmp_path / "b") == ["try"]


def test_one_rank_evaluates(tmp_path: Path, spoken: list[Path], capsys: Capture) -> None:
    out = tmp_path / "out"
    assert average(out, spoken) == 0
    with evaluating(out):
        capsys.readouterr()
        assert average(out, spoken, "--try") == 0
        assert "another process evaluates it" in capsys.readouterr().out
        assert average(out, spoken, "--overwrite") == 4, "the merge is read"
    assert not (out / "evaluation.json").exists()
    assert average(out, spoken, "--try") == 0 and kinds(out) == ["try"]


def test_every_step_runs_and_faults_come_last(
    tmp_path: Path, spoken: list[Path], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_tensors(spoken[0], with_nan(NORM))

    class Steps:
        @staticmethod
        def measured_prepare(arguments: Any) -> None: ...

        @staticmethod
        def measured_settings(arguments: Any) -> dict[str, Any]:
            return {"of": "strict"}

        @staticmethod
        def measured_run(out: Path, arguments: Any) -> Outcome:
            return Outcome(Evaluation("measured", {"of": "strict"}), "measured it")

    monkeypatch.setitem(sys.modules, "merge_worker.commands.measured", Steps)
    row = after_merge.Step("strict", "measured", "measured", "measured")
    monkeypatch.setattr(after_merge, "STEPS", (*after_merge.STEPS, row))
    out = tmp_path / "out"
    assert average(out, spoken, "--try", "--strict", "--allow-nonfinite") == 5
    printed = capsys.readouterr()
    assert "measured it" in printed.out and f"has NaN or Inf: {NORM}" in printed.err
    assert kinds(out) == ["measured"]


@pytest.mark.slow
def test_of_three_ranks_one_tries(tmp_path: Path, spoken: list[Path]) -> None:
    import os
    import subprocess

    out = tmp_path / "out"
    command = [sys.executable, "-m", "merge_worker", "average", out, *spoken]
    command += ["--try", "--ranks", "auto:60s", "--progress", "off", "--device", "cpu"]
    ranks = [
        subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, "RANK": str(number), "WORLD_SIZE": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    outputs = [rank.communicate() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], outputs
    tried = [out for out, _ in outputs if "every tensor has its place" in out]
    assert len(tried) == 1 and kinds(out) == ["try"] and run("verify", out) == 0
