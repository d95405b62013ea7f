"""Adapters of classifiers on language models."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from support.adapter_factory import read_adapter, save_base, shaken, write_adapter
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import average


def train(base: Path, out: Path, task: str, auto: Any, **config: Any) -> dict[str, torch.Tensor]:
    """Save an adapter of a classifier on `base`. Return the state of PEFT's merged model."""
    from peft import LoraConfig, PeftModel, get_peft_model

    def load() -> Any:
        return auto.from_pretrained(base, pad_token_id=0, dtype=torch.float32, **config)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(load(), LoraConfig(task_type=task, r=4))
        shaken(tuned, seed=len(str(out))).save_pretrained(out)
        merged = PeftModel.from_pretrained(load(), out).merge_and_unload()
    state: dict[str, torch.Tensor] = merged.state_dict()
    return state


@pytest.mark.parametrize(
    ("model_type", "task", "labels"),
    [
        ("llama", "SEQ_CLS", 1),
        ("llama", "SEQ_CLS", 2),
        ("llama", "TOKEN_CLS", 5),
        ("gpt2", "SEQ_CLS", 3),
    ],
)
def test_a_classifier_replaces_the_head_of_a_language_model(
    model_type: str, task: str, labels: int, tmp_path: Path
) -> None:
    import transformers

    kind = {"SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}[task]
    auto = getattr(transformers, f"AutoModelFor{kind}")
    base = save_base(tmp_path / "base", model_type)
    states = [train(base, tmp_path / f"a{n * 10}", task, auto, num_labels=labels) for n in range(2)]
    models = [f"{base}+{tmp_path / f'a{n * 10}'}" for n in range(2)]
    assert average(tmp_path / "out", models) == 0
    model, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    assert type(model).__name__.endswith(kind) and model.config.num_labels == labels
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    assert not any("lm_head" in name for name in read_tensors(tmp_path / "out"))
    for name, tensor in model.state_dict().items():
        mean = (states[0][name].double() + states[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), mean, atol=1e-6, rtol=1e-5)


def test_names_of_a_headless_base_get_the_beginning_of_the_classifier(tmp_path: Path) -> None:
    tensors = {"h.0.attn.c_attn.weight": torch.randn(8, 6), "wte.weight": torch.randn(9, 8)}
    config = {"architectures": ["GPT2Model"]}
    base = write_checkpoint(tmp_path / "base", tensors, config=config)
    settings = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "fan_in_fan_out": True}
    settings |= {"modules_to_save": ["classifier", "score"]}
    module = "base_model.model.transformer.h.0.attn.c_attn"
    factors = {f"{module}.lora_A.weight": torch.randn(2, 8)}
    factors |= {f"{module}.lora_B.weight": torch.randn(6, 2)}
    factors |= {"base_model.model.score.weight": torch.randn(3, 8)}
    adapter = write_adapter(tmp_path / "adapter", settings, factors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 0
    result = read_tensors(tmp_path / "out")
    assert result.keys() == {f"transformer.{name}" for name in tensors} | {"score.weight"}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["GPT2ForSequenceClassification"]
    assert list(written["id2label"]) == ["0", "1", "2"]


def test_a_head_of_an_unknown_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForSequenceClassification

    base = save_base(tmp_path / "base")
    train(base, tmp_path / "a", "SEQ_CLS", AutoModelForSequenceClassification)
    config, tensors = read_adapter(tmp_path / "a")
    adapter = write_adapter(tmp_path / "b", {**config, "task_type": None}, tensors)
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 3
    error = capsys.readouterr().err
    assert "brings a head of its own, score.weight" in error and "set task_type in" in error
