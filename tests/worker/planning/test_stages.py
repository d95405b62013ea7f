"""Several documents in one recipe, whose results feed each other."""

import json
import os
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from merge_worker.engine.options import Clock, RunOptions
from merge_worker.engine.run import run_merges
from merge_worker.errors import UsageError
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import make_plan
from merge_worker.recipe import parse
from merge_worker.recipe.schema import Recipe
from merge_worker.system.ranks import Rank
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.paths import SOURCES
from support.staged_recipes import document, merge, models, several

__all__ = ["models"]
ROOT = Path(__file__).resolve().parents[3]

CHAIN = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]
---
merge_method: task_arithmetic
base_model: first
models: [second, c]
parameters: {weight: 0.5}
---
name: second
merge_method: slerp
base_model: c
models: [first]
parameters: {t: [{filter: first, value: 0.9}, {value: 0.3}]}
"""


def faults(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(text, "r.yml")
    return str(caught.value)


def test_order_and_models() -> None:
    recipe = parse(CHAIN)
    assert recipe.name is None and recipe.method == "task_arithmetic"
    assert [stage.name for stage in recipe.stages] == ["first", "second"]
    assert [str(ref) for ref in recipe.model_refs()] == ["a", "b", "c"]


def reference(models: Path) -> dict[str, torch.Tensor]:
    a, b, c = (read_tensors(models / name) for name in "abc")
    tensors = {}
    for name in ("layers.0.first.w", "layers.1.w"):
        x, y, z = (model[name].double() for model in (a, b, c))
        first = (x + 2 * y) / 3
        t = 0.9 if "first" in name else 0.3
        cosine = (z * first).sum() / z.norm() / first.norm()
        angle = torch.acos(cosine)
        second = (torch.sin((1 - t) * angle) * z + torch.sin(t * angle) * first) / torch.sin(angle)
        tensors[name] = first + 0.5 * (second - first) + 0.5 * (z - first)
    return tensors


def test_the_result(models: Path) -> None:
    assert merge(models, CHAIN) == 0
    out = read_tensors(models / "out")
    for name, exact in reference(models).items():
        # As the inputs are, and rounded once: half a unit in the last place of bfloat16.
        assert out[name].dtype == torch.bfloat16
        assert float(((out[name].double() - exact) / exact).abs().max()) <= 2**-8, name
    assert out["ids"].tolist() == [0, 1, 2, 3, 4]
    assert json.loads((models / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert list(models.glob(".*")) == []


def test_what_a_stage_says_of_its_dtype_holds_for_those_after_it(models: Path) -> None:
    text = CHAIN.replace("merge_method: linear", "merge_method: linear\nout_dtype: float16")
    assert merge(models, text) == 0
    # The first model of the last document is `first`.
    assert read_tensors(models / "out")["layers.1.w"].dtype == torch.float16
    assert json.loads((models / "out" / "config.json").read_text())["torch_dtype"] == "float16"
    assert merge(models, text, "--dtype", "float32", out="wide") == 0
    assert read_tensors(models / "wide")["layers.1.w"].dtype == torch.float32


def test_ranks_wait_for_each_other(models: Path) -> None:
    assert merge(models, CHAIN, out="alone") == 0
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "merge_worker",
                "merge",
                "recipe.yml",
                "together",
                "--progress",
                "off",
                "--ranks",
                "auto",
            ],
            cwd=models,
            env={**os.environ, "PYTHONPATH": SOURCES, "RANK": rank, "WORLD_SIZE": "2"},
        )
        for rank in "01"
    ]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    alone, together = read_tensors(models / "alone"), read_tensors(models / "together")
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    assert list(models.glob(".*")) == []


def test_stages_that_were_left_are_gone_on_with(models: Path) -> None:
    recipe = models / "recipe.yml"
    recipe.write_text(CHAIN)
    options = PlanOptions(relative_to=models, stages_folder=models / ".out.stages")
    first = make_plan(parse(CHAIN), options).stages[0]
    assert first.folder is not None
    clock = Clock(0.0)
    run_merges([(first, first.folder)], RunOptions(progress="off"), Rank(), clock)
    # A mark by which its result is known again.
    with (first.folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("f", 1000.0))
    (models / ".out.stages" / "7-0123456789abcdef").mkdir()  # of an earlier recipe
    assert merge(models, CHAIN) == 0
    marked = [name for name, t in read_tensors(models / "out").items() if t.max() > 100]
    assert len(marked) == 1
    assert list(models.glob(".*")) == []


def test_it_is_known_when_it_is_there(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(models, CHAIN) == 0
    assert merge(models, CHAIN) == 0
    assert "already there" in capsys.readouterr().out
    # A change of a stage is another merge.
    assert merge(models, CHAIN.replace("weight: 2", "weight: 3")) == 4


def test_only_models_are_references(models: Path) -> None:
    # mergekit would put a path into the filter, and into the name of the method.
    text = several(document("linear", "a", "b"), document(None, "linear", "c"))
    assert merge(models, text) == 0
    (stage,) = parse(CHAIN.split("---")[0] + "---\n" + document(None, "first", "c")).stages
    assert stage.name == "first"


def chain_of(*names: str) -> Recipe:
    return parse(several(*(document(name, model) for name, model in pairwise(names))))


def test_the_document_that_no_other_uses_makes_the_result() -> None:
    recipe = chain_of("x", "y", "z", "model")
    assert recipe.name == "x"
    assert [stage.name for stage in recipe.stages] == ["z", "y"]


def test_documents_that_nothing_uses_are_told() -> None:
    recipe = parse(several(document("x", "a"), document(None, "b")), "r.yml")
    assert recipe.warnings == ("r.yml: nothing uses the document 'x'; it is not merged",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            several(document("x", "y"), document("y", "x"), document(None, "x")),
            "r.yml: documents need each other: x → y → x",
        ),
        (
            several(document("x", "x"), document(None, "x")),
            "r.yml: documents need each other: x → x",
        ),
        (
            several(document(None, "a"), document(None, "b")),
            "r.yml: 2 documents have no name; only the one that makes the result may have none",
        ),
        (
            several(document("x", "a"), document("x", "b"), document(None, "x")),
            "r.yml: 2 documents have the name 'x'",
        ),
        (
            several(document("x", "a"), document("y", "b")),
            "r.yml: which document makes the result? Leave its name away (not used by another: "
            "x, y)",
        ),
    ],
)
def test_documents_that_do_not_fit(text: str, expected: str) -> None:
    assert faults(text) == expected


def test_faults_of_all_documents_at_once() -> None:
    text = several(document("x", "a").replace("linear", "lineer"), document(None, "x", "x"))
    lines = faults(text).splitlines()
    assert lines[0].startswith("r.yml:2: merge_method: unknown method 'lineer'")
    assert lines[-1].startswith("r.yml:7: models[1]: model 'x' is listed twice")


def test_a_result_has_no_revision(models: Path) -> None:
    assert merge(models, several(document("x", "a"), document(None, "x@1", "b"))) == 3


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
    assert [lazy.recipe.name for lazy in plan.lazy] == ["one", "two"] and not plan.stages
    assert sorted(plan.inputs) == ["a", "b", "c"]
    assert merge(models, sums) == 0
    assert "intermediate" not in capsys.readouterr().err
    manifest = json.loads((models / "out" / "merge_manifest.json").read_text())
    assert sorted(entry["model"] for entry in manifest["inputs"]) == ["a", "b", "c"]
    # The same in three merges, whose results are kept in float32.
    first = document(None, "a", "b")
    assert merge(models, first, "--dtype", "float32", out="one") == 0
    two = sums.split("---\n")[1].replace("name: two\n", "")
    assert merge(models, two, "--dtype", "float32", out="two") == 0
    ties = sums.split("---\n")[2]
    assert merge(models, ties, "--dtype", "bfloat16", out="three") == 0
    streamed, stored = read_tensors(models / "out"), read_tensors(models / "three")
    assert all(torch.equal(streamed[name], stored[name]) for name in stored)


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

    def touched(self: Engine, *words: object) -> list[str]:
        differing = streamed(self, *words)  # type: ignore[arg-type]
        os.utime(models / "b" / "model.safetensors", (1, 1))
        return differing

    monkeypatch.setattr(Engine, "run", touched)
    assert merge(models, text) == 3
    assert "while the merge read it" in capsys.readouterr().err
