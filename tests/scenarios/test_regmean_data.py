"""Merges by regmean that run their models on texts: from the recipe to the finished folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from merge_worker.cli import main
from support.checkpoint_factory import read_tensors
from support.language_models import loaded, make, write_tokenizer
from support.stopped_measurements import run, run_until

TEXT = "the cat.\n\nab the\n\nthe the the ab\n\nzebra the cat\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seed in (("base", 1), ("math", 2), ("code", 3)):
        write_tokenizer(make(tmp_path / name, "LlamaForCausalLM", "llama", seed=seed))
    (tmp_path / "math.txt").write_text(TEXT)
    (tmp_path / "code.txt").write_text("ab ab cat\n\nfox.\n\nthe fox ab the\n")
    return tmp_path


def recipe(folder: Path, base: bool = True, **parameters: object) -> Path:
    text = {
        "merge_method": "regmean",
        "models": [
            {"model": str(folder / name), "data": str(folder / f"{name}.txt")}
            for name in ("math", "code")
        ],
        "parameters": {"weight": 1, **parameters},
        **({"base_model": str(folder / "base")} if base else {}),
    }
    path = folder / "regmean.yml"
    path.write_text(json.dumps(text))
    return path


def merge(folder: Path, *more: object, out: str = "out") -> int:
    path = folder / "regmean.yml"
    return main(["merge", *map(str, (path, folder / out, "--progress", "off", *more))])


@pytest.mark.parametrize("base", [False, True])
def test_a_finished_folder(folder: Path, base: bool, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(folder, base)
    assert merge(folder, "--dtype", "float32") == 0, capsys.readouterr().err
    out = folder / "out"
    said = capsys.readouterr().err
    assert "2 models are run on texts before the merge: that takes transformers" in said
    assert "4 samples of" in said and "3 samples of" in said
    assert {"merge_manifest.json", "README.md", "mergekit_config.yml", "config.json"} <= {
        path.name for path in out.iterdir()
    }
    assert [path.name for path in folder.iterdir() if "stage" in path.name] == []
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert main(["verify", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert str(folder) not in card and "data: math.txt" in card.replace('"', "")
    got, math, code = (read_tensors(folder / name) for name in ("out", "math", "code"))
    for name in ("model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"):
        assert torch.allclose(got[name], (math[name] + code[name]) / 2, atol=1e-6)
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.allclose(got[name], (math[name] + code[name]) / 2, atol=1e-3)
    loaded(out)(input_ids=torch.tensor([[3, 4, 5]]))


def test_outputs_are_nearer_than_those_of_the_mean(folder: Path) -> None:
    """The purpose of the method, in the first layer, whose inputs no merged layer changes: the
    squared distance of outputs, on the texts of each model, is the least there is."""
    recipe(folder, base=False, reduction=1.0)
    assert merge(folder, "--dtype", "float32") == 0
    got = read_tensors(folder / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    distances = []
    own = {model: read_tensors(folder / model)[name] for model in ("math", "code")}
    mean = (own["math"] + own["code"]) / 2
    for weight in (got[name], mean):
        total = 0.0
        for model in ("math", "code"):
            inputs = inputs_of(folder, model)
            total += float((inputs @ (weight - own[model]).T).square().sum()) / len(inputs)
        distances.append(total)
    assert distances[0] < 0.9 * distances[1]


def inputs_of(folder: Path, name: str) -> torch.Tensor:
    from transformers import AutoTokenizer

    model, tokenizer = loaded(folder / name), AutoTokenizer.from_pretrained(folder / name)
    seen: list[torch.Tensor] = []
    model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(
        lambda module, args: seen.append(args[0][0])
    )
    with torch.no_grad():
        for text in (folder / f"{name}.txt").read_text().split("\n\n"):
            model(input_ids=torch.tensor([tokenizer(text.strip("\n"))["input_ids"]]))
    return torch.cat(seen)


def test_the_same_again_and_other_texts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(folder)
    assert merge(folder) == 0
    before = read_tensors(folder / "out")
    capsys.readouterr()
    assert merge(folder) == 0
    assert "already there; nothing to do" in capsys.readouterr().out
    (folder / "math.txt").write_text("fox fox\n")
    assert merge(folder) == 4
    assert merge(folder, "--overwrite") == 0
    after = read_tensors(folder / "out")
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("at", [4, 10, 17, 40])
def test_a_signal_stops_it_and_the_same_command_continues(folder: Path, at: int) -> None:
    recipe(folder)
    words = ["merge", folder / "regmean.yml", folder / "out", "--progress", "off"]
    done = run_until(at, *words)
    assert done.returncode == 75, done.stderr
    assert "run the same command to resume" in done.stderr
    assert run("-m", "merge_worker", *words).returncode == 0
    words[2] = folder / "whole"
    assert run("-m", "merge_worker", *words).returncode == 0
    got, want = (read_tensors(folder / name) for name in ("out", "whole"))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_faults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(change: object, code: int) -> str:
        path = recipe(folder)
        text = json.loads(path.read_text())
        change(text)  # type: ignore[operator]  # a function
        path.write_text(json.dumps(text))
        assert merge(folder) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert not (folder / "out" / "merge_manifest.json").exists()
        shutil.rmtree(folder / "out", ignore_errors=True)
        return said

    missing = answer(lambda text: text["models"][0].pop("data"), 2)
    assert "other models have no data" in missing and "math" in missing
    gone = answer(lambda text: text["models"][0].update(data=str(folder / "none.txt")), 3)
    assert "none.txt: No such file or directory" in gone
    both = answer(lambda text: text["models"][0].update(importance="x.safetensors"), 2)
    assert "stands beside 'importance'; keep one of the two" in both
    wrong = answer(lambda text: text["models"][0].update(data=3), 2)
    assert "expected the path of a file of texts" in wrong
    share = answer(lambda text: text["parameters"].update(reduction=2), 2)
    assert "reduction is from 0 to 1" in share
    layers = answer(lambda text: text["parameters"].update(weight=[0.2, 0.8]), 2)
    assert "one value of each parameter for all tensors; leave out gradients" in layers
    negative = answer(lambda text: text["parameters"].update(weight=-1), 2)
    assert "0 or more" in negative


def test_models_of_another_class_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(folder / "code")
    write_tokenizer(make(folder / "code", "LlamaForCausalLM", "llama", seed=3, mlp_bias=True))
    recipe(folder)
    assert merge(folder, "--surplus", "drop") == 2
    assert "its layers have other tensors than those of" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_another_method_says_that_it_reads_no_texts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(folder)
    path.write_text(path.read_text().replace('"regmean"', '"task_arithmetic"'))
    assert merge(folder) == 0
    assert "task_arithmetic does not read texts" in capsys.readouterr().err
