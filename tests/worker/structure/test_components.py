"""Attention, MLP, experts … from names alone, for every architecture that the tests know."""

import pytest

from merge_worker.structure.components import COMPONENTS, component_of, place_of
from support.checkpoint_factory import ARCHITECTURES, make_model

NAMES = {
    "model.embed_tokens.weight": "embeddings",
    "lm_head.weight": "embeddings",
    "transformer.wte.weight": "embeddings",
    "output.weight": "embeddings",
    "visual.patch_embed.proj.weight": "embeddings",
    "model.layers.0.input_layernorm.weight": "norms",
    "model.layers.0.self_attn.q_norm.weight": "norms",
    "model.layers.0.linear_attn.norm.weight": "norms",
    "model.embedding_norm.weight": "norms",
    "transformer.h.0.ln_1.bias": "norms",
    "model.norm_f.weight": "norms",
    "bert.encoder.layer.0.attention.output.LayerNorm.weight": "norms",
    "model.layers.0.self_attn.q_proj.weight": "attention",
    "model.layers.0.self_attn.kv_b_proj.weight": "attention",
    "model.layers.0.self_attn.in_proj_weight": "attention",
    "model.layers.0.mixer.k_proj.weight": "attention",
    "transformer.h.0.attn.c_attn.weight": "attention",
    "gpt_neox.layers.0.attention.query_key_value.weight": "attention",
    "decoder.block.0.layer.1.EncDecAttention.o.weight": "attention",
    "model.layers.0.linear_attn.q_proj.weight": "linear attention/SSM",
    "model.layers.0.mixer.in_proj.weight": "linear attention/SSM",
    "model.layers.0.mamba.A_log": "linear attention/SSM",
    "model.layers.0.conv.in_proj.weight": "linear attention/SSM",
    "model.layers.0.mlp.gate_proj.weight": "MLP",
    "model.layers.0.mixer.up_proj.weight": "MLP",
    "model.layers.0.shared_mlp.input_linear.weight": "MLP",
    "decoder.block.0.layer.2.DenseReluDense.wo.weight": "MLP",
    "bert.encoder.layer.0.output.dense.weight": "MLP",
    "model.layers.0.mlp.gate.weight": "experts",
    "model.layers.0.mlp.experts.5.gate_proj.weight": "experts",
    "model.layers.0.mlp.shared_expert_gate.weight": "experts",
    "model.layers.0.block_sparse_moe.experts.0.w1.weight": "experts",
    "model.layers.0.mixer.gate.e_score_correction_bias": "experts",
    "layers.0.weight": "other",
    "x": "other",
}


@pytest.mark.parametrize(("name", "component"), NAMES.items())
def test_components(name: str, component: str) -> None:
    assert component_of(name) == component


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_nothing_that_matters_is_other(model_type: str) -> None:
    sizes = dict.fromkeys(COMPONENTS, 0)
    for name, tensor in make_model(model_type).state_dict().items():
        sizes[component_of(name)] += tensor.numel()
    # zamba2 joins two streams with a matrix that is neither.
    assert sizes["other"] < 0.06 * sum(sizes.values())
    assert sizes["embeddings"] and sizes["norms"]
    hybrid = model_type in "olmo_hybrid jamba bamba falcon_h1 granitemoehybrid nemotron_h " + (
        "qwen3_next lfm2 zamba2"
    )
    assert bool(sizes["linear attention/SSM"]) == hybrid
    experts = ("jamba", "granitemoehybrid", "nemotron_h", "qwen3_next", "mixtral", "qwen3_moe")
    assert bool(sizes["experts"]) == (model_type in experts)


def test_places() -> None:
    assert place_of("model.layers.12.mlp.experts.3.w1") == ("model.layers.", 12)
    assert place_of("model.embed_tokens.weight") == ("input", -1)
    assert place_of("model.norm.weight") == place_of("lm_head.weight") == ("output", -1)
