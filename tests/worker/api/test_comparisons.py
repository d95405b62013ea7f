"""`compare`: the figures and the advice of the command, as data."""

import json
from pathlib import Path

import pytest
import torch

import merge_worker as mw
from support.checkpoint_factory import write_checkpoint
from support.recipes import run


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    base = {f"layers.{n}.weight": torch.randn(40, 30) for n in range(3)}
    folders = [write_checkpoint(tmp_path / "base", base)]
    for name in ("one", "two"):
        tuned = {key: value + 0.01 * torch.randn(40, 30) for key, value in base.items()}
        folders.append(write_checkpoint(tmp_path / name, tuned))
    comparison = mw.compare(folders[1:], base=folders[0])
    assert run("compare", *folders[1:], "--base", folders[0], "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    advice = printed.pop("advice")
    assert json.loads(json.dumps(comparison.figures)) == printed
    assert list(comparison.findings) == advice["findings"]
    assert comparison.recipe == advice["recipe"] and "layers.0" in str(comparison)
    assert comparison.recipe and mw.plan(comparison.recipe).reads > 0
    comparison.save_plot(tmp_path / "look.html")
    assert (tmp_path / "look.html").stat().st_size > 1000


def test_one_model_is_not_compared() -> None:
    with pytest.raises(mw.errors.UsageError, match="only one model"):
        mw.compare(["a"])
