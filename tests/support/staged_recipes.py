"""Three models, and recipes of several documents over them."""

from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import write_checkpoint
from support.recipes import run


@pytest.fixture
def models(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        tensors = {
            "layers.0.first.w": torch.randn(33, 40, generator=generator).bfloat16(),
            "layers.1.w": torch.randn(33, 40, generator=generator).bfloat16(),
            "ids": torch.arange(5),
        }
        config = {"model_type": "none", "torch_dtype": "bfloat16"}
        write_checkpoint(tmp_path / name, tensors, config=config)
    return tmp_path


def merge(models: Path, text: str, *options: object, out: str = "out") -> int:
    recipe = models / "recipe.yml"
    recipe.write_text(text, encoding="utf-8")
    words = ["--relative-to", models, "--progress", "off", "--threads", 1]
    return run("merge", recipe, models / out, *words, *options)


def document(name: str | None, *models: str) -> str:
    named = f"name: {name}\n" if name else ""
    return (
        f"{named}merge_method: linear\nmodels: [{', '.join(models)}]\nparameters: {{weight: 1}}\n"
    )


def several(*documents: str) -> str:
    return "---\n".join(documents)
