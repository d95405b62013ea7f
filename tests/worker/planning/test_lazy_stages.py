"""Documents that are made while they stream: never a folder, the same bits, watched like all."""

import json
import os
from pathlib import Path

import pytest
import torch

from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.staged_recipes import document, merge, models, several

__all__ = ["models"]


def test_what_can_be_made_on_the_way_is_no_folder(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = several(
        document("one", "a", "b"),
        "name: two\n"
        "merge_method: task_arithmetic\nbase_model: one\nmodels: [{model: c}]\n"
        "parameters: {weight: 0.25}\n",
        "merge_method: ties\nbase_model: one\nmodels: [{model: two}, {model: c}]\n"
        "parameters: {weight: 1, density: 0.5}\n",
    )
    plan = make_plan(parse(sums), PlanOptions(relative_to=models))
    assert [each.recipe.name for each in plan.lazy] == ["one", "two"] and not plan.stages
    assert sorted(plan.inputs) == ["a", "b", "c"]
    assert merge(models, sums) == 0
    assert "intermediate" not in capsys.readouterr().err
    manifest = json.loads((models / "out" / "merge_manifest.json").read_text())
    assert sorted(entry["model"] for entry in manifest["inputs"]) == ["a", "b", "c"]
    # The same in three merges, whose results are kept in float32.
    one = document(None, "a", "b")
    assert merge(models, one, "--dtype", "float32", out="one") == 0
    two = sums.split("---\n")[1].replace("name: two\n", "")
    assert merge(models, two, "--dtype", "float32", out="two") == 0
    ties = sums.split("---\n")[2]
    assert merge(models, ties, "--dtype", "bfloat16", out="three") == 0
    found, expected = read_tensors(models / "out"), read_tensors(models / "three")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_output_within_an_input_of_another_document_is_refused(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = several(document("one", "a", "b"), document(None, "one", "c"))
    assert merge(models, text, out="b/out") == 4
    assert "is inside the input b" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--memory", "1MiB"), ("--threads", 3)])
def test_what_is_made_on_the_way_depends_on_no_cut(tmp_path: Path, options: tuple[str]) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in "abc":
        big = torch.randn(700, 1000, generator=generator).bfloat16()
        write_checkpoint(tmp_path / name, {"w": big})
    text = several(
        document("one", "a", "b"),
        "merge_method: dare_linear\nbase_model: c\nmodels: [{model: one}, {model: a}]\n"
        "parameters: {weight: 1, density: 0.5}\nname: two\n",
        "merge_method: nuslerp\nmodels: [{model: two, parameters: {weight: 1}}, "
        "{model: one, parameters: {weight: 2}}]\nparameters: {nuslerp_row_wise: true}\n",
    )
    assert merge(tmp_path, text, "--dtype", "float32", out="first") == 0
    assert merge(tmp_path, text, "--dtype", "float32", *options, out="second") == 0
    first, second = read_tensors(tmp_path / "first"), read_tensors(tmp_path / "second")
    assert torch.equal(first["w"], second["w"])


def test_an_input_of_a_lazy_document_that_changes_meanwhile(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from merge_worker.engine.stream import Engine

    text = several(document("one", "a", "b"), document(None, "one", "c"))
    streamed = Engine.run

    def touched(self: Engine, *words: object) -> None:
        streamed(self, *words)  # type: ignore[arg-type]
        os.utime(models / "b" / "model.safetensors", (1, 1))

    monkeypatch.setattr(Engine, "run", touched)
    assert merge(models, text) == 3
    assert "while the merge read it" in capsys.readouterr().err
