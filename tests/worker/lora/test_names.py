"""Adapters extracted from models whose files have other names than their classes in memory."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from support.checkpoint_factory import write_checkpoint
from support.recipes import run
from support.tiny_models import retrain, tiny_model


def loaded(model_class: Any, folder: Path) -> Any:
    return model_class.from_pretrained(folder, dtype=torch.float32)


def fine_tune(model_class: Any, base: Path, out: Path) -> dict[str, torch.Tensor]:
    """Save a fine-tune of a base with full weights; return what is in memory."""
    model = loaded(model_class, base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    model.save_pretrained(out)
    weights: dict[str, torch.Tensor] = loaded(model_class, out).state_dict()
    return weights


def slow(*values: str) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("UltrabertForMaskedLM", "ultrabert"),
        ("TimesFm2_5Model", "timesfm2_5"),
        ("MixtralForCausalLM", "mixtral"),
        slow("Tipsv2Model", "tipsv2"),
        slow("OlmoHybridForCausalLM", "olmo_hybrid"),
        slow("NomicBertForMaskedLM", "nomic_bert"),
        slow("SegformerModel", "segformer"),
        slow("Sapiens2Model", "sapiens2"),
        slow("Qwen2VLForConditionalGeneration", "qwen2_vl"),
        slow("Gemma3ForConditionalGeneration", "gemma3"),
        slow("T5Gemma2ForConditionalGeneration", "t5gemma2"),
        slow("ColPaliForRetrieval", "colpali"),
        slow("Kimi_K25ForConditionalGeneration", "kimi_k25"),
        slow("Emu3ForConditionalGeneration", "emu3"),
        slow("VisionEncoderDecoderModel", "vision-encoder-decoder"),
    ],
)
def test_peft_loads_it_onto_the_class(name: str, kind: str, tmp_path: Path) -> None:
    """The names are renamed, joined, split and stacked ones, of towers and of shared modules."""
    from peft import PeftModel

    model_class = getattr(transformers, name)
    base = tmp_path / "base"
    retrain(tiny_model(model_class, CONFIG_MAPPING[kind]), 2).save_pretrained(base)
    wanted = fine_tune(model_class, base, tmp_path / "tuned")
    words = (base, tmp_path / "tuned", tmp_path / "lora", "--rank", 512)
    assert run("extract-lora", *words) == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = PeftModel.from_pretrained(loaded(model_class, base), tmp_path / "lora")
    assert not [str(w.message) for w in caught if "missing" in str(w.message)]
    found = tuned.merge_and_unload().state_dict()
    assert found.keys() == wanted.keys()
    for key, weight in wanted.items():
        torch.testing.assert_close(found[key], weight, rtol=1e-3, atol=1e-4, msg=key)


def test_elements_in_another_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They may be there, but not change."""
    config = {"architectures": ["Kimi_K25ForConditionalGeneration"]}
    names = ["vision_tower.encoder.blocks.0.wqkv.weight", "vision_tower.encoder.blocks.0.wo.weight"]
    weights = {name: torch.randn(24, 8) for name in names}
    base = write_checkpoint(tmp_path / "base", weights, config=config)
    for name, code in zip(names, (3, 0), strict=True):
        folder = tmp_path / f"tuned-{code}"
        tuned = weights | {name: torch.randn(24, 8)}
        write_checkpoint(folder, tuned, config=config)
        assert run("extract-lora", base, folder, tmp_path / f"lora-{code}") == code
    assert "wqkv.weight' differs from the base" in capsys.readouterr().err
