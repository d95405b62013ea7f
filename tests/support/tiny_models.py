"""Tiny random models of any transformers class, made from its default config.

Every field of the config that counts something is cut by its name, sections included. Where the
class refuses the result, single fields keep their default until it accepts; HINTS hold what no
rule can know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

LARGEST = 12_000_000
"""Parameters of a model; a class that stays larger cannot be built small."""
DEPTH, SHALLOW = 6, 3
"""Layers of the language model, and of all other stacks."""

RULES: tuple[tuple[str, int], ...] = (
    (r".*token_(id|index)|.*_id|eos_.*|bos_.*|pad_.*idx?", 100),
    (r".*vocab_size.*|.*codebook_size|num_embeddings", 128),
    (r"num_kv_shared_layers|num_hash_layers|.*(adapter|dense|residual|conv|coda)_layers", 1),
    (r"num_nextn_predict_layers|first_k_dense_replace|.*mtp.*layers", 1),
    (r".*encoder.*layers|vision_layers|num_conv_.*layers|.*(query|prompt|pooler)_layers", SHALLOW),
    (r"(num_)?(hidden_|decoder_|transformer_)?layers|n_layers?|depth|num_blocks", DEPTH),
    (r".*layers", SHALLOW),
    (r".*(experts?_per|top_?k|moe_k).*|n_groups?|topk_group|n_shared_experts", 2),
    (r".*experts|zero_expert_num", 4),
    (r".*(kv|key_value|num_key)_heads|num_key_value_.*heads|.*ngroups", 2),
    (r".*mamba.*heads", 8),
    (r".*heads|n_head", 4),
    (r".*head_(dim|size)|d_kv|qk_.*dim|v_head_dim|.*_d_head|.*d?_state(_size)?|state_size", 8),
    (r".*rank", 16),
    (r".*(intermediate|ffn_hidden)_?.*(size|dim).*|.*ffn_dim|.*n_inner|mlp_dim|d_ff", 48),
    (r".*(feedforward|feed_forward).*", 48),
    (r".*position_embeddings|.*positions|n_ctx|context_length|max_seq_len", 64),
    (r".*(hidden|embed|embedding|embd|proj|projection|model|output)_?(size|dim)s?", 32),
    (r"d_model|n_embd|.*_dim|dim|.*width|.*channels?|.*hiddens?|codebook_dim|.*_d_ssm", 32),
)
"""Names of fields, in order, and the largest number that a field keeps."""
CUT_LISTS = re.compile(r".*(hidden_sizes|embed_dims|dims?|channels)")
ASIDE = re.compile("vision|visual|audio|speech|encoder|image|qformer|perceiver|codec")
"""Sections whose layers are not those of the language model."""
SKIPPED = ("num_channels", "in_channels", "audio_channels", "query_pre_attn_scalar")

HINTS: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 128},
    "chameleon": {"vocabulary_map": {"<image>": 3}},
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 16,
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "emu3": {"vocabulary_map": {"<image>": 3, "<|extra_200|>": 4, "<|visual token 000000|>": 5}},
    "granite4_vision": {"deepstack_layer_map": [[0, 0], [2, 3]], "downsample_rate": "1/2"},
    "hunyuan_v1_dense": {"head_dim": 8},
    "mamba2": {"num_heads": 8},
    "moonshine_streaming": {"num_key_value_heads": 2},
}
"""Fields by `model_type` that no default gives; a section is written `section.field`."""

Changes = dict[tuple[str, ...], Any]


class TooLarge(Exception):
    """A model has many parameters even with every field cut; the text says how many."""


def tiny_config(config_class: Any, accepts: Any) -> Any:
    """Return a small config for which `accepts(config)` does not raise.

    Raises the first error if no field that keeps its default helps.
    """
    default = config_class()
    hints = {tuple(key.split(".")): v for key, v in HINTS.get(default.model_type, {}).items()}
    changes = {**_changes(default, default.to_dict(), ()), **hints}
    failed: Exception | None = None
    for dropped in _attempts(changes, hints):
        try:
            kept = {path: value for path, value in changes.items() if path not in dropped}
            config = config_class(**_arguments(default, default.to_dict(), kept))
            accepts(config)
            return config
        except TooLarge:
            raise
        except Exception as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _attempts(changes: Changes, hints: Changes) -> Iterator[set[tuple[str, ...]]]:
    """Yield sets of changes to leave out: none, then each field, then each kind of field."""
    yield set()
    optional = [path for path in changes if path not in hints]
    names = dict.fromkeys(path[-1] for path in optional)
    for name in names:
        yield {path for path in optional if path[-1] == name}
    for pattern, _ in RULES:
        gone = {path for path in optional if re.fullmatch(pattern, path[-1])}
        if len({path[-1] for path in gone}) > 1:
            yield gone


def _changes(config: Any, section: Mapping[str, Any], path: tuple[str, ...]) -> Changes:
    found: Changes = {}
    for key, value in section.items():
        if isinstance(value, dict):
            inner = getattr(config, key, None)
            found |= _changes(inner, value, (*path, key)) if hasattr(inner, "to_dict") else {}
        elif key in SKIPPED:
            continue
        elif type(value) is int and (smaller := _smaller(key, value, path)) < value:
            found[(*path, key)] = smaller
        elif _is_numbers(value) and CUT_LISTS.fullmatch(key) and max(value) >= 64:
            found[(*path, key)] = [max(8, number // 8) for number in value]
        elif _is_numbers(value) and key in ("depths", "num_blocks") and max(value) > 2:
            found[(*path, key)] = [min(2, number) for number in value]
    return found


def _smaller(key: str, value: int, path: tuple[str, ...]) -> int:
    for pattern, limit in RULES:
        if re.fullmatch(pattern, key):
            aside = limit == DEPTH and "layer" in pattern and ASIDE.search(".".join(path))
            return min(value, SHALLOW if aside else limit)
    return value


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(n) is int for n in value)


def _arguments(config: Any, section: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """Return the arguments of a config: its sections whole, apart from lists that layers imply."""
    here: dict[str, Any] = {}
    for key in dict.fromkeys(path[0] for path in changes):
        deeper = {path[1:]: value for path, value in changes.items() if path[0] == key and path[1:]}
        if deeper:
            inner = getattr(config, key)
            whole = {k: v for k, v in section[key].items() if not isinstance(v, list | dict)}
            here[key] = whole | _arguments(inner, section[key], deeper)
        else:
            here[key] = changes[key,]
    return here


def tiny_model(model_class: Any, config_class: Any) -> Any:
    """Return a small random float32 model of a class."""
    config = tiny_config(config_class, lambda config: _check_size(model_class, config))
    torch.manual_seed(0)
    return model_class(config).float().eval()


def _check_size(model_class: Any, config: Any) -> None:
    try:
        with torch.device("meta"):
            model = model_class(config)
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error):
            raise
        model = model_class(config)  # it computes with values as it is built
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > LARGEST:
        raise TooLarge(f"{count:,} parameters when made small")


def retrain(model: Any, seed: int) -> Any:
    """Give every floating parameter of a model other random values; returns the model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model
