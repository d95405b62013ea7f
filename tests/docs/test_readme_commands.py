"""The commands of README are typed in its order; the recorded session is what is printed today."""

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from support.doc_examples import ROOT, blocks, difference, programs, walk

PAGE = ROOT / "README.md"


def demo_models() -> Any:
    place = ROOT / "scripts" / "demo_models.py"
    spec = importlib.util.spec_from_file_location("demo_models", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_specialists(folder: Path) -> None:
    """The models of scripts/demo, as far as they can be had without training."""
    demo = demo_models()
    tokenizer = demo.make_tokenizer()
    model = demo.make_model(len(tokenizer))
    for name in demo.TASKS:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight), alpha=1e-3)
        demo.save(model, tokenizer, folder / name)


@pytest.mark.slow
@pytest.mark.usefixtures("fakes", "models")
def test_every_command(work: Path, tmp_path: Path) -> None:
    save_specialists(work)
    for name, source in (("base", "m1"), ("math", "m2"), ("code", "m3")):
        shutil.copytree(work / source, work / name)
    recipe = next(text for kind, name, text in blocks(PAGE) if name == "recipe.yml")
    (work / "recipe.yml").write_text(recipe)
    variables = {
        "PATH": programs(tmp_path / "bin"),
        "FAKE_RUN": "1",
        "MERGE_LAUNCH_PYTHON": sys.executable,
    }
    outcomes = list(walk(PAGE, work, variables))
    assert [text for o in outcomes if (text := difference(o, work, "/models"))] == []
    assert len(outcomes) > 12
