"""Models with values that identify their origin, and recipes that pick their layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.errors import InputError, UsageError
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan, make_plan
from merge_worker.recipe import parse
from support.checkpoint_factory import read_tensors
from support.recipes import run


def plain(value: float, depth: int = 4, stack: str = "model.layers.") -> dict[str, Tensor]:
    """Write a model with identifying values: model + layer / 10, or + 0.9 after the layers."""
    layers = {
        f"{stack}{n}.{part}.weight": torch.full((2, 2), value + n / 10)
        for n in range(depth)
        for part in ("attn", "mlp")
    }
    return {
        "model.embed_tokens.weight": torch.full((3, 2), float(value)),
        **layers,
        "model.norm.weight": torch.full((2,), value + 0.9),
        "lm_head.weight": torch.full((3, 2), value + 0.9),
    }


def merge(models: Path, text: str, *options: object) -> dict[str, float]:
    """Merge, and return the first element of every tensor of the result."""
    path, out = models / "recipe.yml", models / "out"
    path.write_text(text, encoding="utf-8")
    words = ["--relative-to", models, "--progress", "off", "--threads", 1]
    assert run("merge", path, out, *words, *options) == 0
    return {name: round(float(t.flatten()[0]), 5) for name, t in read_tensors(out).items()}


def plan(models: Path, text: str) -> Plan:
    return make_plan(parse(text, "recipe.yml"), PlanOptions(relative_to=models))


def fault(models: Path, text: str) -> str:
    with pytest.raises((UsageError, InputError)) as caught:
        plan(models, text)
    return str(caught.value)


def source(model: str, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    return {"model": model, "layer_range": [first, last], "parameters": parameters}


def recipe(method: str, *slices: Any, **more: Any) -> str:
    listed = [{"sources": s} if isinstance(s, list) else s for s in slices]
    return json.dumps({"merge_method": method, "slices": listed, **more})
