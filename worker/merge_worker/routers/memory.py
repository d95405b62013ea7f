"""Memory that a training takes, estimated before the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError
from ..system.machine import read_ascii
from ..units import size
from .training import Settings

COPIES = 5
"""Float32 numbers for each of a router: its copy, gradient, two averages, and one in passing."""


def estimate(weights: int, routers: int, section: Mapping[str, Any], settings: Settings) -> int:
    """Return bytes for a model of so many bytes, with so many numbers in its routers.

    The graph keeps some thirty vectors of a layer's width for each token, and the inner ones of
    the experts that it reaches; the logits are there in float32 three times.
    """
    hidden = _number(section, ("hidden_size", "d_model"), 4096)
    layers = _number(section, ("num_hidden_layers", "num_layers", "n_layer"), 32)
    inner = _number(section, ("moe_intermediate_size", "intermediate_size"), 4 * hidden)
    words = _number(section, ("vocab_size",), 32000)
    reached = _number(section, ("num_experts_per_tok", "moe_k", "moe_topk"), 2) + 1
    tokens = settings.at_once * settings.length
    width = 4 if settings.dtype == "float32" else 2
    graph = tokens * layers * (30 * hidden + 4 * reached * inner) * width
    return weights + graph + tokens * words * 12 + COPIES * 4 * routers


def _number(section: Mapping[str, Any], names: Sequence[str], default: int) -> int:
    return next((section[n] for n in names if type(section.get(n)) is int), default)


def refuse_too_large(needed: int, free: int, where: str) -> None:
    """Raise UsageError if a training needs more than is free; 0 free: unknown."""
    if free and needed > free:
        raise UsageError(
            f"{where}: training would need about {size(needed)} of memory, {size(free)} is free\n"
            f"  lower --at-once or --length, or use a machine or GPUs with more memory"
        )


def free_bytes(devices: Sequence[torch.device]) -> int:
    """Return what is free on the devices together; 0 if that is not known."""
    if devices[0].type == "cpu":
        return _available()
    module = getattr(torch, devices[0].type)
    if not hasattr(module, "mem_get_info"):
        return 0
    return sum(int(module.mem_get_info(device)[0]) for device in devices)


def _available(root: Path = Path("/")) -> int:
    """Return the memory that this process may still take on the host, by its cgroup as well."""
    lines = read_ascii(root / "proc/meminfo").splitlines()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    free = int(facts.get("MemAvailable", "0").split()[0]) * 1024
    group = root / "sys/fs/cgroup"
    limit, used = read_ascii(group / "memory.max").strip(), read_ascii(group / "memory.current")
    if not limit.isdigit() or not used.strip().isdigit():
        return free
    words = read_ascii(group / "memory.stat").split()
    cached = int(words[words.index("inactive_file") + 1]) if "inactive_file" in words else 0
    left = max(1, int(limit) - int(used) + cached)
    return min(free, left) if free else left
