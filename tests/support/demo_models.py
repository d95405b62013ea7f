"""The folder that scripts/demo makes, without its training."""

import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from support.paths import ROOT


def demo_models() -> ModuleType:
    """Return scripts/demo_models.py as a module."""
    place = ROOT / "scripts" / "demo_models.py"
    spec = importlib.util.spec_from_file_location("demo_models", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_demo_models(folder: Path) -> None:
    """Save base, specialists, texts and links; each model is a little further than the last."""
    demo = demo_models()
    tokenizer = demo.make_tokenizer()
    model = demo.make_model(len(tokenizer))
    for name in ("base", *demo.TASKS):
        demo.save(model, tokenizer, folder / name)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=1e-3)
    demo.write_for_pages(folder)
