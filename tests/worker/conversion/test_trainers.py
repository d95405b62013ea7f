"""Names of trainers: each row of the table gives the model that transformers had, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker import cli
from merge_worker.conversion.trainers import trainers
from support.checkpoint_factory import load, make_model, read_tensors, write_checkpoint
from support.trainer_names import (
    Tensors,
    megatron,
    megatron_apart,
    megatron_stacked,
    olmo_core,
    torchtitan,
)

Writer = Callable[[Any, Any], Tensors]
BIASES = {"attention_bias": True}

CASES: dict[str, tuple[Writer, str, dict[str, Any]]] = {
    "OLMo-core, OLMo 2": (olmo_core, "olmo2", {}),
    "OLMo-core, OLMo 3": (olmo_core, "olmo3", {}),
    "OLMo-core, Llama": (olmo_core, "llama", {"tie_word_embeddings": True}),
    "OLMo-core, Qwen 2": (olmo_core, "qwen2", {}),
    "OLMo-core, Qwen 3": (olmo_core, "qwen3", {"head_dim": 16}),
    "torchtitan, Llama": (torchtitan, "llama", {}),
    "torchtitan, Llama with biases": (torchtitan, "llama", BIASES),
    "Meta's names, Mistral": (torchtitan, "mistral", {"head_dim": 16}),
    "torchtitan, Qwen 3": (torchtitan, "qwen3", {"head_dim": 16}),
    "torchtitan, Qwen 3 MoE": (torchtitan, "qwen3_moe", {}),
    "Megatron, Llama": (megatron, "llama", {}),
    "Megatron, Llama tied, all apart": (megatron_apart, "llama", {"tie_word_embeddings": True}),
    "Megatron, Mistral": (megatron, "mistral", {"head_dim": 16}),
    "Megatron, Qwen 2 with biases": (megatron, "qwen2", {}),
    "Megatron, Qwen 3, all layers in one": (megatron_stacked, "qwen3", {"head_dim": 16}),
    "Megatron, Qwen 3 MoE": (megatron, "qwen3_moe", {}),
    "Megatron, Qwen 3 MoE, all apart": (megatron_apart, "qwen3_moe", {}),
}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(torch.arange(40).view(2, 20) % 128).logits


def saved(folder: Path, kind: str, config: dict[str, Any]) -> tuple[Any, Tensors]:
    """Save a model with norms and biases that are not all alike; return it and its tensors."""
    model = make_model(kind, **{"num_hidden_layers": 2, **config})
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model, read_tensors(folder)


def convert(*words: object) -> int:
    return cli.main(["convert", *map(str, words), "--progress", "off"])


@pytest.mark.parametrize("case", CASES)
def test_a_model_in_the_names_of_a_trainer_becomes_itself(tmp_path: Path, case: str) -> None:
    write, kind, config = CASES[case]
    model, tensors = saved(tmp_path / "hf", kind, config)
    names = write(tensors, model.config)
    write_checkpoint(tmp_path / "run", names)
    assert convert(tmp_path / "run", tmp_path / "out", "--config", tmp_path / "hf") == 0
    result = read_tensors(tmp_path / "out")
    assert result.keys() == tensors.keys()
    assert all(torch.equal(result[name], tensor) for name, tensor in tensors.items())
    again, report = load(tmp_path / "out")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again), logits(model))
    assert cli.main(["verify", str(tmp_path / "out")]) == 0


def test_every_type_of_the_table_is_in_a_case() -> None:
    for trainer in trainers():
        writer = trainer.name.split()[0].replace("-", "_").lower()
        cases = {kind for write, kind, _ in CASES.values() if write.__name__.startswith(writer)}
        assert cases == set(trainer.types), trainer.name


def test_an_average_of_a_run_and_a_release_is_of_the_release_s_names(tmp_path: Path) -> None:
    model, tensors = saved(tmp_path / "hf", "llama", {})
    moved = {name: tensor + 0.25 for name, tensor in tensors.items()}
    write_checkpoint(tmp_path / "run", torchtitan(moved, model.config))
    words = ["average", tmp_path / "out", tmp_path / "run", tmp_path / "hf"]
    assert cli.main([*map(str, words), "--config", str(tmp_path / "hf")]) == 0
    for name, tensor in read_tensors(tmp_path / "out").items():
        exact = (tensors[name].double() + moved[name].double()) / 2
        assert torch.equal(tensor, exact.to(tensor.dtype)), name


def test_without_a_config_the_names_stay_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tensors = saved(tmp_path / "hf", "llama", {})
    names = megatron(tensors, model.config)
    write_checkpoint(tmp_path / "run", names)
    assert convert(tmp_path / "run", tmp_path / "out") == 0
    assert read_tensors(tmp_path / "out").keys() == names.keys()
    assert "the names are those of Megatron" in (text := capsys.readouterr().err)
    assert "--config DIR" in text


def test_tokenizer_and_generation_config_are_the_run_s_if_it_has_them(tmp_path: Path) -> None:
    model, tensors = saved(tmp_path / "hf", "llama", {})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "notes.txt"):
        (tmp_path / "hf" / name).write_text("{}")
    run = write_checkpoint(tmp_path / "run", olmo_core(tensors, model.config), config={"dim": 3})
    assert convert(run, tmp_path / "one", "--config", tmp_path / "hf") == 0
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert "notes.txt" not in names
    vocabulary = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}
    (run / "tokenizer.json").write_text(json.dumps(vocabulary))
    (run / "generation_config.json").write_text('{"temperature": 0.5}')
    assert convert(run, tmp_path / "two", "--config", tmp_path / "hf" / "config.json") == 0
    two = tmp_path / "two"
    assert json.loads((two / "tokenizer.json").read_text()) == vocabulary
    assert json.loads((two / "generation_config.json").read_text()) == {"temperature": 0.5}
    assert not (two / "chat_template.jinja").exists()
    assert json.loads((two / "config.json").read_text())["model_type"] == "llama"
    manifest = json.loads((two / "merge_manifest.json").read_text())
    assert manifest["config"]["model"] == "hf"
    assert str(tmp_path) not in json.dumps(manifest)
    again = ["merge", two / "merge_manifest.json", tmp_path / "again", "--relative-to", tmp_path]
    assert cli.main([*map(str, again), "--progress", "off"]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        two / "model.safetensors"
    ).read_bytes()


FAULTS: dict[str, tuple[dict[str, Any], Callable[[Tensors], object], str]] = {
    "another type": ({"model_type": "gemma"}, lambda t: None, "the config is of type gemma"),
    "more layers": (
        {"num_hidden_layers": 3},
        lambda t: None,
        "it has 2 layers, the config says 3",
    ),
    "another width": (
        {"hidden_size": 64, "head_dim": 8},
        lambda t: None,
        "the config says a width of 64",
    ),
    "more heads": ({"num_attention_heads": 8}, lambda t: None, "whose parts would be"),
    "a larger vocabulary": (
        {"vocab_size": 500},
        lambda t: None,
        "has 137 rows, the config's vocabulary 500",
    ),
    "a matrix less": (
        {},
        lambda t: t.pop("decoder.layers.1.mlp.linear_fc2.weight"),
        "model.layers.1.mlp.down_proj.weight is missing",
    ),
    "a tensor more": (
        {},
        lambda t: t.update({"decoder.layers.1.gamma": torch.zeros(2)}),
        "1 tensor of Megatron",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    changes, change, expected = FAULTS[fault]
    model, tensors = saved(tmp_path / "hf", "llama", {"head_dim": 8})
    names = megatron(tensors, model.config)
    change(names)
    write_checkpoint(tmp_path / "run", names)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | changes))
    assert convert(tmp_path / "run", tmp_path / "out", "--config", tmp_path / "hf") == 3
    text = capsys.readouterr().err
    assert expected in text
    assert len(text.strip().splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_config_is_no_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tensors = saved(tmp_path / "hf", "llama", {})
    run = write_checkpoint(tmp_path / "run", torchtitan(tensors, model.config))
    (tmp_path / "empty").mkdir()
    assert convert(run, tmp_path / "out", "--config", tmp_path / "empty") == 3
    assert "no config.json with a model_type" in capsys.readouterr().err
