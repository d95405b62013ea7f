"""The routers in a mixture of experts that transformers has loaded, and how its class routes.

A block of experts is found by its form: a module with a child `experts` beside a child that is
called a gate or a router, whose matrix has a row for each expert. Names of classes play no part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, UsageError

GATES = ("gate", "router", "gating", "block_sparse_gate")
"""Names of the module in a block that holds the router."""

SHARED_GATE = "shared_expert_gate"

_TOP_K = ("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "top_k_experts", "top_k")
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_SCORES = ("scoring_func", "score_function", "expert_selection_fn", "moe_router_activation_func")

_SIGMOID = frozenset(
    {
        "deepseek_v3",
        "dots1",
        "exaone_moe",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe",
        "lfm2_moe",
        "minimax_m2",
    }
)
"""Model types whose scores are sigmoids although no field of their config says so."""

_RENORMALIZED = frozenset(
    {
        "ernie4_5_moe",
        "ernie4_5_vl_moe",
        "gpt_oss",
        "granitemoe",
        "granitemoehybrid",
        "granitemoeshared",
        "hunyuan_v1_moe",
        "jetmoe",
        "minimax",
        "mixtral",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_next",
    }
)
"""Model types whose chosen weights add up to 1 although no field of their config says so."""


@dataclass(frozen=True)
class Router:
    """A matrix that scores experts: [N, H], or [1, H] for the gate of a shared expert.

    `bias` [N] is added to the scores where the experts are chosen, and is not trained.
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    top_k: int
    bias: Tensor | None = None

    @property
    def experts(self) -> int:
        return int(self.parameter.shape[0])

    @property
    def is_shared_gate(self) -> bool:
        return self.experts == 1


def config_section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a `config.json` that describes the language model."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def refuse_other_models(where: str, config: Mapping[str, Any]) -> None:
    """Raise InputError for a config without experts, UsageError for one that cannot be trained."""
    refuse_dense(where, config)
    section = config_section(config)
    kind = section.get("model_type") or config.get("model_type") or "unknown"
    if top_k(section) == 1 and is_renormalized(section):
        raise UsageError(
            f"{where}: its routers cannot be trained: one expert for each token, whose weight "
            f"{kind} always scales to 1, so that no gradient reaches them\n"
            f"  build it with experts_per_token: 2 or more"
        )


def refuse_dense(where: str, config: Mapping[str, Any]) -> None:
    """Raise InputError for a config that says that there are no experts."""
    section = config_section(config)
    counts = [section[name] for name in _COUNTS if type(section.get(name)) is int]
    if counts and max(counts) < 2:
        raise InputError(
            f"{where}: not a mixture of experts: its config has {max(counts)} experts\n"
            f"  a recipe with 'merge_method: moe' makes one"
        )


def top_k(section: Mapping[str, Any]) -> int | None:
    """Return how many experts a token reaches, the fewest of all layers; None if not in a config.

    Some classes take a list with a number for each layer.
    """
    for name in _TOP_K:
        value = section.get(name)
        numbers = value if isinstance(value, list) else [value]
        whole = [number for number in numbers if isinstance(number, int)]
        if whole and len(whole) == len(numbers):
            return min(whole)
    return None


def is_renormalized(section: Mapping[str, Any]) -> bool:
    """Whether the weights of the chosen experts are scaled to add up to 1."""
    chosen_only = section.get("expert_selection_fn") == "softmax"
    named = section.get("norm_topk_prob", section.get("norm_topk", False)) is True
    return named or chosen_only or section.get("model_type") in _RENORMALIZED


def is_sigmoid(section: Mapping[str, Any]) -> bool:
    """Whether experts are scored one by one, not against each other by a softmax."""
    words = [section[name] for name in _SCORES if isinstance(section.get(name), str)]
    return "sigmoid" in words if words else section.get("model_type") in _SIGMOID


def find_routers(model: nn.Module, section: Mapping[str, Any], shared_gate: bool) -> list[Router]:
    """Return the routers in order of the layers, with gates of shared experts if asked for."""
    default = top_k(section) or 2
    routers = [r for name, block in model.named_modules() for r in _in_block(name, block, default)]
    return [router for router in routers if shared_gate or not router.is_shared_gate]


def _in_block(name: str, block: nn.Module, default: int) -> Iterator[Router]:
    children = dict(block.named_children())
    gate = next((children[word] for word in GATES if word in children), None)
    if gate is None or "experts" not in children:
        return
    word = next(word for word in GATES if word in children)
    parameters = dict(gate.named_parameters())
    matrices = [n for n, p in parameters.items() if p.ndim == 2 and p.shape[0] > 1]
    if len(matrices) != 1:
        return
    inner, parameter = matrices[0], parameters[matrices[0]]
    prefix = f"{name}." if name else ""
    k = getattr(gate, "top_k", getattr(block, "top_k", default))
    count = int(parameter.shape[0])
    k = min(k, count) if type(k) is int and k > 0 else min(default, count)
    owner = gate.get_submodule(inner.rpartition(".")[0])
    yield Router(f"{prefix}{word}.{inner}", parameter, owner, k, _bias(block, count))
    shared = children.get(SHARED_GATE)
    if isinstance(shared, nn.Linear):
        matrix = dict(shared.named_parameters())["weight"]
        yield Router(f"{prefix}{SHARED_GATE}.weight", matrix, shared, 1)


def _bias(block: nn.Module, count: int) -> Tensor | None:
    """Return the correction that a block adds to scores where it chooses, if it has one."""
    tensors = [*block.named_buffers(), *block.named_parameters()]
    found = [t for n, t in tensors if n.endswith(("correction_bias", "expert_bias"))]
    return next((t.detach().reshape(-1) for t in found if t.numel() == count), None)


def scores(router: Router, x: Tensor, sigmoid: bool) -> Tensor:
    """Return the score of each expert for tokens x [T, H] in float32 [T, N]."""
    logits = x.float() @ router.parameter.float().T
    return torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=-1)


def chosen(router: Router, values: Tensor) -> Tensor:
    """Return the numbers of the experts that tokens reach [T, k], by their scores [T, N]."""
    if router.bias is not None:
        values = values + router.bias.to(values)
    return torch.topk(values, router.top_k, dim=-1).indices
