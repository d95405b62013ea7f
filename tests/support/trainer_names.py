"""Models of transformers as trainers save them: the inverse of what the worker does, by hand."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def _parts(name: str) -> tuple[str, str]:
    """Return the number of a layer, "" outside of layers, and the rest of the name."""
    if not name.startswith("model.layers."):
        return "", name
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return number, rest


def olmo_core(tensors: Mapping[str, Tensor], config: Any) -> Tensors:
    outside = {
        "model.embed_tokens.weight": "embeddings.weight",
        "model.norm.weight": "lm_head.norm.weight",
        "lm_head.weight": "lm_head.w_out.weight",
    }
    after = config.model_type in ("olmo2", "olmo3")
    inside = {
        "self_attn.q_proj": "attention.w_q",
        "self_attn.k_proj": "attention.w_k",
        "self_attn.v_proj": "attention.w_v",
        "self_attn.o_proj": "attention.w_out",
        "self_attn.q_norm": "attention.q_norm",
        "self_attn.k_norm": "attention.k_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_norm" if after else "feed_forward_norm",
        "post_feedforward_layernorm": "feed_forward_norm",
    }
    result = {}
    for name, tensor in tensors.items():
        number, rest = _parts(name)
        module, _, end = rest.rpartition(".")
        new = f"blocks.{number}.{inside[module]}.{end}" if number else outside[name]
        result[f"model.{new}"] = tensor
    return result


def neighbors(tensor: Tensor, heads: int) -> Tensor:
    """Put the two rows of each pair of a head next to each other, as Meta's code has them."""
    halves = tensor.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def torchtitan(tensors: Mapping[str, Tensor], config: Any) -> Tensors:
    outside = {
        "model.embed_tokens.weight": "tok_embeddings.weight",
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "output.weight",
    }
    inside = {
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "self_attn.q_norm": "attention.q_norm",
        "self_attn.k_norm": "attention.k_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.gate": "moe.router.gate",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"attention.wq": config.num_attention_heads, "attention.wk": config.num_key_value_heads}
    result: Tensors = {"freqs_cis": torch.zeros(4, 2)}
    experts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        number, rest = _parts(name)
        module, _, end = rest.rpartition(".")
        if module.startswith("mlp.experts."):
            word = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}[module.split(".")[-1]]
            experts.setdefault(f"layers.{number}.moe.experts.{word}", []).append(tensor)
            continue
        new = inside[module] if number else ""
        if new in heads and config.model_type in ("llama", "mistral"):
            tensor = neighbors(tensor, heads[new])
        result[f"layers.{number}.{new}.{end}" if number else outside[name]] = tensor
    return result | {name: torch.stack(matrices) for name, matrices in experts.items()}


def megatron(tensors: Mapping[str, Tensor], config: Any, fused_norms: bool = True) -> Tensors:
    """As `torch_dist` has it with a layer in each name; the vocabulary is filled up by 9 rows."""
    result: Tensors = {"decoder.final_layernorm.weight": tensors["model.norm.weight"]}
    for old, new in (
        ("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
        ("lm_head.weight", "output_layer.weight"),
    ):
        if old in tensors:
            filled = torch.full((9, tensors[old].shape[1]), 7.0, dtype=tensors[old].dtype)
            result[new] = torch.cat([tensors[old], filled])
    groups = config.num_key_value_heads
    for number in range(config.num_hidden_layers):
        own = {
            name.removeprefix(f"model.layers.{number}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.layers.{number}.")
        }
        place = f"decoder.layers.{number}."
        for end in ("weight", "bias"):
            if f"self_attn.q_proj.{end}" in own:
                q, k, v = (own[f"self_attn.{x}_proj.{end}"].chunk(groups) for x in "qkv")
                parts = [part for triple in zip(q, k, v, strict=True) for part in triple]
                result[f"{place}self_attention.linear_qkv.{end}"] = torch.cat(parts)
        result[f"{place}self_attention.linear_proj.weight"] = own["self_attn.o_proj.weight"]
        for x in "qk":
            if f"self_attn.{x}_norm.weight" in own:
                norm = own[f"self_attn.{x}_norm.weight"]
                result[f"{place}self_attention.{x}_layernorm.weight"] = norm
        first, second = (
            ("self_attention.linear_qkv.layer_norm_weight", "mlp.linear_fc1.layer_norm_weight")
            if fused_norms
            else ("input_layernorm.weight", "pre_mlp_layernorm.weight")
        )
        result[place + first] = own["input_layernorm.weight"]
        result[place + second] = own["post_attention_layernorm.weight"]
        if "mlp.gate_proj.weight" in own:
            gate_up = [own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]]
            result[f"{place}mlp.linear_fc1.weight"] = torch.cat(gate_up)
            result[f"{place}mlp.linear_fc2.weight"] = own["mlp.down_proj.weight"]
            continue
        result[f"{place}mlp.router.weight"] = own["mlp.gate.weight"]
        count = sum(name.endswith("gate_proj.weight") for name in own)
        experts = [f"mlp.experts.{n}" for n in range(count)]
        result[f"{place}mlp.experts.experts.linear_fc1.weight"] = torch.stack(
            [torch.cat([own[f"{e}.gate_proj.weight"], own[f"{e}.up_proj.weight"]]) for e in experts]
        )
        result[f"{place}mlp.experts.experts.linear_fc2.weight"] = torch.stack(
            [own[f"{e}.down_proj.weight"] for e in experts]
        )
    return result


def megatron_apart(tensors: Mapping[str, Tensor], config: Any) -> Tensors:
    """As other versions of Megatron have it: norms, gates and experts each by themselves."""
    result: Tensors = {}
    for name, tensor in megatron(tensors, config, fused_norms=False).items():
        if name.endswith("mlp.linear_fc1.weight"):
            gate_up = zip(("w", "v"), tensor.chunk(2), strict=True)
            result |= {f"{name}_{end}": part.clone() for end, part in gate_up}
        elif ".experts.experts." in name:
            place, _, end = name.partition("experts.experts.")
            each = enumerate(tensor)
            result |= {f"{place}experts.local_experts.{n}.{end}": e.clone() for n, e in each}
        else:
            result[name] = tensor
    return result


def megatron_stacked(tensors: Mapping[str, Tensor], config: Any) -> Tensors:
    return stacked(megatron(tensors, config))


def stacked(tensors: Mapping[str, Tensor]) -> Tensors:
    """Put all layers of a Megatron model into one tensor each."""
    result: Tensors = {}
    layers: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        rest = name.removeprefix("decoder.layers.")
        if rest == name:
            result[name] = tensor
            continue
        number, _, end = rest.partition(".")
        layers.setdefault(f"decoder.layers.{end}", {})[int(number)] = tensor
    return result | {
        name: torch.stack([own[number] for number in sorted(own)]) for name, own in layers.items()
    }
