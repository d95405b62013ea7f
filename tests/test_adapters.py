"""Adapters on their bases while they stream, against PEFT's own `merge_and_unload`."""

import os
from pathlib import Path
from typing import Any

import pytest
from adapters import LINEARS, adapt, merged_by_peft, save_base
from checkpoints import load, read_tensors
from merges import average

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="session", autouse=True)
def _quiet_transformers() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": LINEARS}),
    "alpha": ("llama", {"target_modules": ["q_proj"], "lora_alpha": 7}),
    "regex": ("llama", {"target_modules": r".*layers\.1\..*(q|v)_proj", "r": 3}),
    "rank_pattern": (
        "llama",
        {
            "target_modules": LINEARS,
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*up_proj": 6},
            "alpha_pattern": {"q_proj": 5, "^model.layers.0.mlp.down_proj": 1},
        },
    ),
    "rslora": ("llama", {"target_modules": LINEARS, "use_rslora": True}),
    "dora": ("llama", {"target_modules": LINEARS, "use_dora": True}),
    "dora_embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "bias": ("llama", {"target_modules": ["q_proj"], "bias": "all"}),
    "lora_bias": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "modules_to_save": (
        "llama",
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d_dora": (
        "gpt2",
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "olmo_hybrid": ("olmo_hybrid", {"target_modules": "all-linear"}),
    "qwen3_next": ("qwen3_next", {"target_modules": "all-linear", "target_parameters": EXPERTS}),
    "jamba": ("jamba", {"target_modules": ["in_proj", "x_proj", "q_proj"]}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {
            "target_modules": ["in_proj", "q_proj"],
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj", "router.weight"],
        },
    ),
    "nemotron_h": ("nemotron_h", {"target_modules": ["in_proj", "q_proj", "embeddings"]}),
    "qwen3_moe": ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "mixtral": (
        "mixtral",
        {
            "target_modules": ["q_proj"],
            "target_parameters": [*EXPERTS, "mlp.gate.weight"],
            "rank_pattern": {"experts.down_proj": 2},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_is_applied_as_peft_does(case: str, tmp_path: Path) -> None:
    model_type, config = CASES[case]
    options = {"attention_bias": True} if "bias" in case else {}
    base = save_base(tmp_path / "base", model_type, **options)
    adapter = adapt(base, tmp_path / "adapter", **config)
    peft = read_tensors(merged_by_peft(base, adapter, tmp_path / "peft"))
    assert average(tmp_path / "out", [f"{base}+{adapter}"]) == 0
    ours, before = read_tensors(tmp_path / "out"), read_tensors(base)
    assert ours.keys() == peft.keys()
    changed = [name for name in peft if not peft[name].equal(before[name])]
    assert changed, "the adapter changes nothing"
    for name, expected in peft.items():
        step = 2.0**-21 * float(expected.abs().max())
        assert ours[name].dtype == expected.dtype
        assert float((ours[name] - expected).abs().max()) <= step, name
    _, info = load(tmp_path / "out")
    assert {kind: keys for kind, keys in info.items() if keys} == {}
