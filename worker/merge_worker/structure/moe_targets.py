"""Mixtures of experts that can be made of dense models: one row for each model type of a result.

Every row was checked with transformers: N equal experts and any router give the logits of the
dense model. `tests/scenarios/test_moe_targets.py` does so again for each.

Values of fields that begin with `=` are filled in: `=N` experts, `=K` of them for each token, `=I`
width of an expert, `=S` width of the shared expert, `=shared` number of shared experts, `=scale`
head_dim^-0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
NO_FIELDS: Fields = MappingProxyType({})

SPLIT_MLP = ("gate_proj", "up_proj", "down_proj")
NUMBERED_MLP = ("w1", "w3", "w2")


class MlpNames(NamedTuple):
    """Names of the three matrices of an expert below its layer, `{e}` for the number of the expert.

    If `fused`, there are two: gate rows then up rows, and down; without `{e}` in them, the matrices
    of all experts are stacked on a first axis.
    """

    names: tuple[str, ...]
    fused: bool = False

    @property
    def stacked(self) -> bool:
        return not any("{e}" in name for name in self.names)


class SharedExpert(NamedTuple):
    """The shared expert of a target. `gate`: name of its gate vector [1, H], if it has one.

    `without`: its width where the recipe names none; "none" leaves it out, "full" is that of the
    other experts, and a number is that width. Its matrices are zeros then.
    """

    mlp: MlpNames
    gate: str | None = None
    without: str = "none"


class Target(NamedTuple):
    """A model type that a mixture is written as.

    `bases` are the model types that it takes, each with fields of its own. `bias` is a tensor of
    zeros in float32 that its router needs: name, and whether it has a first axis of 1. `peer` is
    its name in mergekit.
    """

    name: str
    architecture: str
    bases: Mapping[str, Fields]
    router: str
    mlp: MlpNames
    fields: Fields
    shared: SharedExpert | None = None
    bias: tuple[str, bool] | None = None
    router_in_float32: bool = False
    sigmoid: bool = False
    peer: str = ""

    def matches(self, word: str) -> bool:
        """Return whether a recipe's `architecture` is the start of its name, or of the peer's."""
        names = (self.name, self.peer, self.name.replace("_", " "))
        return any(name.lower().startswith(word.lower()) for name in names if name)


def _below(prefix: str, names: tuple[str, ...] = SPLIT_MLP) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}.weight" for name in names)


_EXPERTS = MlpNames(_below("mlp.experts.{e}"))
_QWEN_SHARED = SharedExpert(MlpNames(_below("mlp.shared_expert")), "mlp.shared_expert_gate.weight")
_DEEPSEEK_SHARED = SharedExpert(MlpNames(_below("mlp.shared_experts")), None, "full")
_GRANITE = MlpNames(
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"), True
)
_GRANITE_SHARED = MlpNames(
    ("shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"), True
)
_GRANITE_ROUTER = "block_sparse_moe.router.layer.weight"
_SCORE_BIAS = ("mlp.gate.e_score_correction_bias", False)
_NO_MULTIPLIERS: Fields = {
    "attention_multiplier": "=scale",
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
}
_SPARSE: Fields = {
    "num_experts": "=N",
    "num_experts_per_tok": "=K",
    "moe_intermediate_size": "=I",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
_DEEPSEEK: Fields = {
    "n_routed_experts": "=N",
    "num_experts_per_tok": "=K",
    "n_shared_experts": 1,
    "moe_intermediate_size": "=I",
    "first_k_dense_replace": 0,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}
_WINDOWLESS: Fields = {"sliding_window": None}

TARGETS = (
    Target(
        name="mixtral",
        architecture="MixtralForCausalLM",
        bases={"llama": _WINDOWLESS, "mistral": NO_FIELDS, "phi3": NO_FIELDS},
        router="block_sparse_moe.gate.weight",
        mlp=MlpNames(_below("block_sparse_moe.experts.{e}", NUMBERED_MLP)),
        fields={"num_local_experts": "=N", "num_experts_per_tok": "=K", "intermediate_size": "=I"},
        peer="Mixtral",
    ),
    Target(
        name="qwen2_moe",
        architecture="Qwen2MoeForCausalLM",
        bases={
            "qwen2": NO_FIELDS,
            "llama": {"qkv_bias": False, "use_sliding_window": False},
            "mistral": {"qkv_bias": False, "use_sliding_window": False},
        },
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={**_SPARSE, "intermediate_size": "=I", "shared_expert_intermediate_size": "=S"},
        shared=_QWEN_SHARED._replace(without="16"),
        peer="Qwen MoE",
    ),
    Target(
        name="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        bases={"qwen3": NO_FIELDS},
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={**_SPARSE, "intermediate_size": "=I"},
        peer="Qwen3 MoE",
    ),
    Target(
        name="granitemoe",
        architecture="GraniteMoeForCausalLM",
        bases={"granite": NO_FIELDS, "llama": _NO_MULTIPLIERS},
        router=_GRANITE_ROUTER,
        mlp=_GRANITE,
        fields={"num_local_experts": "=N", "num_experts_per_tok": "=K", "intermediate_size": "=I"},
    ),
    Target(
        name="granitemoeshared",
        architecture="GraniteMoeSharedForCausalLM",
        bases={"granite": NO_FIELDS, "llama": _NO_MULTIPLIERS},
        router=_GRANITE_ROUTER,
        mlp=_GRANITE,
        fields={
            "num_local_experts": "=N",
            "num_experts_per_tok": "=K",
            "intermediate_size": "=I",
            "shared_intermediate_size": "=S",
        },
        shared=SharedExpert(_GRANITE_SHARED, None, "16"),
    ),
    Target(
        name="granitemoehybrid",
        architecture="GraniteMoeHybridForCausalLM",
        bases={"granitemoehybrid": NO_FIELDS},
        router=_GRANITE_ROUTER,
        mlp=_GRANITE,
        fields={
            "num_local_experts": "=N",
            "num_experts_per_tok": "=K",
            "intermediate_size": "=I",
            "shared_intermediate_size": "=S",
        },
        shared=SharedExpert(_GRANITE_SHARED, None, "16"),
    ),
    Target(
        name="flex_olmo",
        architecture="FlexOlmoForCausalLM",
        bases={"olmo2": NO_FIELDS},
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={
            "num_experts": "=N",
            "num_experts_per_tok": "=K",
            "intermediate_size": "=I",
            "norm_topk_prob": True,
        },
    ),
    Target(
        name="lfm2_moe",
        architecture="Lfm2MoeForCausalLM",
        bases={"lfm2": NO_FIELDS},
        router="feed_forward.gate.weight",
        mlp=MlpNames(_below("feed_forward.experts.{e}", NUMBERED_MLP)),
        fields={
            "num_experts": "=N",
            "num_experts_per_tok": "=K",
            "intermediate_size": "=I",
            "moe_intermediate_size": "=I",
            "num_dense_layers": 0,
            "use_expert_bias": True,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
        },
        bias=("feed_forward.expert_bias", False),
        sigmoid=True,
    ),
    Target(
        name="ernie4_5_moe",
        architecture="Ernie4_5_MoeForCausalLM",
        bases={"ernie4_5": NO_FIELDS},
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={
            "moe_num_experts": "=N",
            "moe_k": "=K",
            "intermediate_size": "=I",
            "moe_intermediate_size": "=I",
            "moe_num_shared_experts": "=shared",
            "moe_layer_start_index": 0,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 1,
        },
        shared=SharedExpert(MlpNames(_below("mlp.shared_experts"))),
        bias=("mlp.moe_statics.e_score_correction_bias", True),
    ),
    Target(
        name="hunyuan_v1_moe",
        architecture="HunYuanMoEV1ForCausalLM",
        bases={"hunyuan_v1_dense": NO_FIELDS},
        router="mlp.gate.wg.weight",
        mlp=_EXPERTS,
        fields={"num_experts": "=N", "moe_topk": "=K", "intermediate_size": "=I"},
        shared=SharedExpert(MlpNames(_below("mlp.shared_mlp")), None, "full"),
        router_in_float32=True,
    ),
    Target(
        name="dots1",
        architecture="Dots1ForCausalLM",
        bases={"qwen3": _WINDOWLESS},
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={**_DEEPSEEK, "intermediate_size": "=I"},
        shared=_DEEPSEEK_SHARED,
        bias=_SCORE_BIAS,
        sigmoid=True,
    ),
    Target(
        name="glm4_moe",
        architecture="Glm4MoeForCausalLM",
        bases={"llama": {"use_qk_norm": False}, "qwen3": {"use_qk_norm": True}},
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={
            **_DEEPSEEK,
            "intermediate_size": "=I",
            "partial_rotary_factor": 1.0,
            "num_nextn_predict_layers": 0,
        },
        shared=_DEEPSEEK_SHARED,
        bias=_SCORE_BIAS,
        sigmoid=True,
        peer="DeepSeek MoE",
    ),
    Target(
        name="qwen3_5_moe_text",
        architecture="Qwen3_5MoeForCausalLM",
        bases={"qwen3_5_text": NO_FIELDS},
        router="mlp.gate.weight",
        mlp=MlpNames(("mlp.experts.gate_up_proj", "mlp.experts.down_proj"), True),
        fields={
            "num_experts": "=N",
            "num_experts_per_tok": "=K",
            "moe_intermediate_size": "=I",
            "shared_expert_intermediate_size": "=S",
        },
        shared=_QWEN_SHARED._replace(without="16"),
    ),
    Target(
        name="cohere2_moe",
        architecture="Cohere2MoeForCausalLM",
        bases={"cohere2": NO_FIELDS},
        router="mlp.gate.weight",
        mlp=_EXPERTS,
        fields={
            "num_experts": "=N",
            "num_experts_per_tok": "=K",
            "intermediate_size": "=I",
            "num_shared_experts": 0,
            "first_k_dense_replace": 0,
            "expert_selection_fn": "softmax",
            "norm_topk_prob": True,
        },
    ),
)

DROPPED = (
    "attention_bias", "auto_map", "block_auto_adjust_ff_dim", "block_ffn_dim_multiplier",
    "block_multiple_of", "mlp_bias", "pretraining_tp",
)  # fmt: skip
"""Fields of dense configs that mean nothing in a mixture, or name code of the dense model."""

_HEADS = "=heads"
DENSE_DEFAULTS: Mapping[str, Fields] = {
    "llama": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": _HEADS, "vocab_size": 32000, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "mistral": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "phi3": {
        "hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": _HEADS, "vocab_size": 32064, "max_position_embeddings": 4096,
        "rope_theta": 10000.0, "eos_token_id": 32000, "pad_token_id": 32000,
    },
    "qwen2": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "qwen3": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    },
    "olmo2": {
        "vocab_size": 50304, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "eos_token_id": 50279, "pad_token_id": 1,
    },
    "lfm2": {"hidden_size": 2560},
    "ernie4_5": {
        "hidden_size": 1024, "num_hidden_layers": 18, "num_attention_heads": 16,
        "num_key_value_heads": 2, "head_dim": 128,
    },
    "cohere2": {"head_dim": "=head"},
    "qwen3_5_text": {"hidden_size": 4096, "num_hidden_layers": 32, "num_key_value_heads": 4},
}  # fmt: skip
"""Defaults of dense config classes that are others in the class of a target. They are written out
where the base's own file leaves them out. `=heads`: the number of attention heads, `=head`: the
width of one."""

_LLAMA = r"self_attn\.[qkvo]_proj\.weight|(input|post_attention)_layernorm\.weight"
BODIES: Mapping[str, str] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _LLAMA,
    "granite": _LLAMA,
    "ernie4_5": _LLAMA,
    "qwen2": rf"{_LLAMA}|self_attn\.[qkv]_proj\.bias",
    "qwen3": rf"{_LLAMA}|self_attn\.[qk]_norm\.weight",
    "hunyuan_v1_dense": rf"{_LLAMA}|self_attn\.(query|key)_layernorm\.weight",
    "olmo2": r"self_attn\.([qkvo]_proj|[qk]_norm)\.weight"
    r"|post_(attention|feedforward)_layernorm\.weight",
    "cohere2": r"self_attn\.[qkvo]_proj\.weight|input_layernorm\.weight",
}
"""Tensors of a layer beside its MLP that the targets of a model type have a place for; all, for
the types that are not here."""

NO_TWIN = {
    "gemma": "its embeddings are scaled and its norms add 1 to their weights",
    "gemma2": "its layers have norms that no mixture has",
    "gemma3_text": "its layers have norms that no mixture has",
    "gemma3": "its layers have norms that no mixture has",
    "olmo": "its norms have no weights",
    "deepseek_v2": "its attention is of another kind",
    "deepseek_v3": "its attention is of another kind",
    "phi": "its MLP has biases and no gate",
    "gpt2": "its MLP has biases and no gate",
    "gpt_neox": "its MLP has biases and no gate",
}
"""Why well-known model types have no mixture that computes the same."""


def takers(model_type: object) -> Iterator[Target]:
    """Yield the targets that take a dense model type, in the order of preference."""
    return (target for target in TARGETS if model_type in target.bases)
