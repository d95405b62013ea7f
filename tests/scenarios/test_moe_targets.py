"""Every mixture of the table, read by transformers: N equal experts are the dense model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from merge_worker.cli import main
from merge_worker.structure.moe_targets import TARGETS
from support.adapter_factory import adapt, merged_by_peft, save_base
from support.checkpoint_factory import read_tensors
from support.dense_models import (
    COMMON,
    ROWS,
    TYPES,
    WIDTH,
    logits,
    mixture_recipe,
    write_dense,
)

PAIRS = [(base, target.name) for target in TARGETS for base in target.bases]
# The class adds 1e-6 to the sum of the sigmoids, which are small where gates are large.
STD = {"lfm2_moe": 0.05}


def build(folder: Path, recipe: str, out: str = "out") -> Path:
    path = folder / f"{out}.yml"
    path.write_text(recipe)
    assert main(["merge", str(path), str(folder / out), "--progress", "off"]) == 0
    return folder / out


def equal_experts(folder: Path, model_type: str, target: str, **changes: Any) -> None:
    """Check a mixture of three equal experts against its base."""
    base = write_dense(folder / "base", model_type, **changes)
    out = build(
        folder, mixture_recipe(base, [base] * 3, architecture=target, gate_std=STD.get(target, 1.0))
    )
    assert json.loads((out / "config.json").read_text())["model_type"] == target
    expected = logits(base)
    largest = float(expected.abs().max())
    difference = float((logits(out) - expected).abs().max())
    assert largest > 0.1 and difference < 1e-5 * max(1.0, largest)


def test_mixtral_of_llama(tmp_path: Path) -> None:
    equal_experts(tmp_path, "llama", "mixtral")


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "target"), PAIRS)
def test_equal_experts_are_the_dense_model(tmp_path: Path, model_type: str, target: str) -> None:
    window = {"sliding_window": None} if (model_type, target) == ("mistral", "qwen2_moe") else {}
    equal_experts(tmp_path, model_type, target, **window)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "target", "changes"),
    [
        ("llama", "mixtral", {"tie_word_embeddings": True}),
        ("llama", "mixtral", {"head_dim": 16}),
        ("llama", "qwen2_moe", {"head_dim": 16}),
        ("llama", "glm4_moe", {"head_dim": 16, "tie_word_embeddings": True}),
        ("llama", "granitemoe", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
        ("llama", "mixtral", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
        (
            "llama",
            "mixtral",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 50000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        ("phi3", "mixtral", {"num_key_value_heads": 4, "sliding_window": 5}),
        ("qwen2", "qwen2_moe", {"tie_word_embeddings": True}),
        ("qwen2", "qwen2_moe", {"use_sliding_window": True, "sliding_window": 4,
                                "max_window_layers": 1}),
        ("qwen3", "qwen3_moe", {"head_dim": 16, "tie_word_embeddings": True}),
        ("qwen3", "dots1", {"head_dim": 16}),
        ("granite", "granitemoeshared", {"tie_word_embeddings": True}),
        ("cohere2", "cohere2_moe", {"logit_scale": 0.5}),
    ],
)  # fmt: skip
def test_variants_of_the_base(
    tmp_path: Path, model_type: str, target: str, changes: dict[str, Any]
) -> None:
    equal_experts(tmp_path, model_type, target, **changes)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "target"), PAIRS)
def test_fields_that_the_base_leaves_out(tmp_path: Path, model_type: str, target: str) -> None:
    # Only what the shapes need, and what this base needs to be tiny: the classes decide the rest.
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
    kept = {**{key: COMMON[key] for key in sizes}, **TYPES[model_type], "vocab_size": ROWS}
    kept |= {"model_type": model_type, "num_key_value_heads": 2}
    if (model_type, target) == ("mistral", "qwen2_moe"):
        kept["sliding_window"] = None
    base = write_dense(tmp_path / "base", model_type)
    (base / "config.json").write_text(json.dumps(kept))
    out = build(
        tmp_path,
        mixture_recipe(base, [base] * 2, architecture=target, gate_std=STD.get(target, 1.0)),
    )
    result = json.loads((out / "config.json").read_text())
    dense = CONFIG_MAPPING[model_type].from_dict(kept)
    mixed = CONFIG_MAPPING[target].from_dict(result)
    names = (
        "rms_norm_eps", "rope_parameters", "num_key_value_heads", "vocab_size", "hidden_act",
        "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id",
        "pad_token_id", "attention_dropout", "initializer_range", "norm_eps", "layer_norm_eps",
        "logit_scale", "embedding_multiplier", "logits_scaling", "residual_multiplier",
        "attention_multiplier", "layer_types", "sliding_window",
    )  # fmt: skip
    for name in names:
        if not hasattr(dense, name) or not hasattr(mixed, name):
            continue
        mine, theirs = getattr(dense, name), getattr(mixed, name)
        if name == "rope_parameters":
            mine, theirs = ({**part, "partial_rotary_factor": 1.0} for part in (mine, theirs))
        elif name == "sliding_window":
            mine, theirs = mine or None, theirs or None
        elif name == "layer_types" and set(mine or ()) == {"full_attention"}:
            continue
        assert theirs == mine, name
    if (dense.pad_token_id or 0) < ROWS:
        assert float((logits(out) - logits(base)).abs().max()) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("target", [target for target in TARGETS if target.shared])
def test_a_shared_expert_stands_beside_the_others(tmp_path: Path, target: Any) -> None:
    model_type = next(iter(target.bases))
    base = write_dense(tmp_path / "base", model_type)
    recipe = mixture_recipe(
        base,
        [base] * 2,
        architecture=target.name,
        gate_mode="zeros",
        shared_experts=[{"source_model": str(base)}],
    )
    out = build(tmp_path, recipe)
    half = mixture_recipe(
        base,
        [{"source_model": str(base), "residual_scale": 0.0}] * 2,  # type: ignore[list-item]
        architecture=target.name,
        gate_mode="zeros",
    )
    silent = json.loads(half)
    silent["experts"] = [{"source_model": str(base), "residual_scale": 0.0}] * 2
    scale = 2.0 if target.shared.gate else 1.0  # the gate of zeros is a weight of 1/2
    silent["shared_experts"] = [{"source_model": str(base), "residual_scale": scale}]
    alone = build(tmp_path, json.dumps(silent), "alone")
    expected = logits(base)
    # Experts of zeros leave the shared one, which is the dense model's MLP.
    assert float((logits(alone) - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    assert float((logits(out) - expected).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "target"), PAIRS)
def test_bytes_of_experts_are_those_of_the_source(
    tmp_path: Path, model_type: str, target: str
) -> None:
    window = {"sliding_window": None} if (model_type, target) == ("mistral", "qwen2_moe") else {}
    base = write_dense(tmp_path / "a", model_type, dtype=torch.bfloat16, **window)
    other = write_dense(tmp_path / "b", model_type, seed=1, dtype=torch.bfloat16, **window)
    out = build(tmp_path, mixture_recipe(base, [base, other], architecture=target))
    result = read_tensors(out)
    row = next(row for row in TARGETS if row.name == target)
    kinds = {tensor.dtype for name, tensor in result.items() if "gate" in name or "bias" in name}
    assert kinds <= {torch.bfloat16, torch.float32}
    for number, folder in enumerate((base, other)):
        dense = read_tensors(folder)
        for layer in range(2):
            prefix = f"model.layers.{layer}."
            own = [_mixed(result, prefix, row, number, part) for part in range(3)]
            for mine, theirs in zip(own, _dense(dense, prefix), strict=True):
                assert mine.dtype == torch.bfloat16 and torch.equal(mine, theirs)


def _mixed(
    tensors: dict[str, torch.Tensor], prefix: str, row: Any, number: int, part: int
) -> torch.Tensor:
    if not row.mlp.fused:
        return tensors[prefix + row.mlp.names[part].replace("{e}", str(number))]
    gate_up, down = (tensors[prefix + name][number] for name in row.mlp.names)
    return down if part == 2 else gate_up[part * WIDTH : (part + 1) * WIDTH]


def _dense(tensors: dict[str, torch.Tensor], prefix: str) -> list[torch.Tensor]:
    for fused, down in (
        ("mlp.gate_up_proj", "mlp.down_proj"),
        ("shared_mlp.input_linear", "shared_mlp.output_linear"),
    ):
        if f"{prefix}{fused}.weight" in tensors:
            both = tensors[f"{prefix}{fused}.weight"]
            return [both[:WIDTH], both[WIDTH:], tensors[f"{prefix}{down}.weight"]]
    for names in (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")):
        for module in ("mlp", "feed_forward"):
            if f"{prefix}{module}.{names[0]}.weight" in tensors:
                return [tensors[f"{prefix}{module}.{name}.weight"] for name in names]
    raise AssertionError(prefix)


@pytest.mark.slow
def test_an_expert_with_an_adapter(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = adapt(base, tmp_path / "adapter", target_modules="all-linear")
    merged = merged_by_peft(base, adapter, tmp_path / "merged")
    out = build(tmp_path, mixture_recipe(base, [f"{base}+{adapter}", str(base)]))
    result, dense, plain = (read_tensors(folder) for folder in (out, merged, base))
    for part, name in enumerate(("gate", "down", "up"), 1):
        prefix = "model.layers.1."
        own = [
            result[f"{prefix}block_sparse_moe.experts.{number}.w{part}.weight"]
            for number in range(2)
        ]
        wanted = f"{prefix}mlp.{name}_proj.weight"
        assert torch.allclose(own[0].float(), dense[wanted].float(), rtol=2**-7, atol=1e-3)
        assert torch.equal(own[1], plain[wanted]) and not torch.equal(own[0], own[1])


def test_several_mixtures_in_one_pass(tmp_path: Path) -> None:
    base = write_dense(tmp_path / "base", "llama", dtype=torch.bfloat16)
    other = write_dense(tmp_path / "other", "llama", seed=1, dtype=torch.bfloat16)
    recipes = {
        "two": mixture_recipe(base, [base, other]),
        "three": mixture_recipe(base, [other, base, other]),
        "stacked": mixture_recipe(base, [base, other], architecture="granitemoe"),
    }
    words = []
    for name, text in recipes.items():
        (tmp_path / f"{name}.yml").write_text(text)
        words += ["-a", str(tmp_path / f"{name}.yml"), str(tmp_path / "joint" / name)]
    assert main(["merge", *words, "--progress", "off"]) == 0
    for name, text in recipes.items():
        alone, joint = build(tmp_path, text, name), tmp_path / "joint" / name
        one, other_one = read_tensors(alone), read_tensors(joint)
        assert one.keys() == other_one.keys()
        assert all(torch.equal(one[key], other_one[key]) for key in one)
