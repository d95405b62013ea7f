"""Adapters that do not fit a base are refused with the true reason."""

from pathlib import Path

import pytest
import torch

from support.adapter_factory import write_adapter
from support.checkpoint_factory import write_checkpoint
from support.recipes import average

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
OTHER, ORDER, SHARED = "matches nothing in", "in another order of elements", "trains apart what"


@pytest.mark.parametrize(
    ("model", "module", "reason"),
    [
        ("Kimi_K25ForConditionalGeneration", "model.vision_tower.layers.0.attn.q_proj", ORDER),
        ("Kimi_K25ForConditionalGeneration", "model.vision_tower.layers.1.attn.q_proj", OTHER),
        ("LukeForMaskedLM", "entity_predictions.decoder", SHARED),
        ("NeoMMEForMaskedLM", "unembedding_projection", SHARED),
        ("BlipForConditionalGeneration", "text_decoder.cls.predictions.decoder", SHARED),
        (
            "DiffusionGemmaForBlockDiffusion",
            "model.encoder.language_model.layers.0.mlp.up_proj",
            SHARED,
        ),
        ("BertForMaskedLM", "bert.encoder.layer.7.output.dense", OTHER),
    ],
)
def test_the_reason_is_true(
    model: str, module: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {
        "vision_tower.encoder.blocks.0.wqkv.weight": torch.randn(24, 8),
        "model.decoder.layers.0.mlp.up_proj.weight": torch.randn(8, 8),
    }
    base = write_checkpoint(tmp_path / "base", weights, config={"architectures": [model]})
    factors = {"A": torch.randn(2, 8), "B": torch.randn(8, 2)}
    named = {f"base_model.model.{module}.lora_{x}.weight": f for x, f in factors.items()}
    write_adapter(tmp_path / "adapter", CONFIG, named)
    assert average(tmp_path / "out", [f"{base}+{tmp_path / 'adapter'}"]) == 3
    told = capsys.readouterr().err
    assert reason in told
    assert sum(other in told for other in (OTHER, ORDER, SHARED)) == 1
