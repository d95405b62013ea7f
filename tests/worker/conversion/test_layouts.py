"""Merges across layouts of whole small models: the mean of what each holds, and it loads."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from merge_worker import cli
from support.checkpoint_factory import load, read_tensors, ulps_from_mean, write_checkpoint
from support.layout_factory import LAYOUTS, OTHERS, exporter, save_pair

PAIRS = [
    pytest.param(model_type, pair, marks=[pytest.mark.slow] if model_type in OTHERS else [])
    for model_type, layouts in LAYOUTS.items()
    for pair in itertools.permutations(layouts, 2)
]


@pytest.mark.parametrize(("model_type", "pair"), PAIRS)
def test_every_pair_of_layouts(model_type: str, pair: tuple[str, str], tmp_path: Path) -> None:
    models = save_pair(tmp_path, model_type, pair)
    out = tmp_path / "out"
    assert cli.main(["average", str(out), *map(str, models), "--progress", "off"]) == 0
    assert read_tensors(out).keys() == read_tensors(models[0]).keys()
    merged, info = load(out)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    # In memory both inputs have one layout, whatever it was on disk.
    inputs = [load(path)[0].state_dict() for path in models]
    for name, tensor in merged.state_dict().items():
        assert ulps_from_mean(tensor, [tensors[name] for tensors in inputs]) <= 0.5, name
    tokens = torch.arange(3, 19)[None]
    assert torch.isfinite(merged(input_ids=tokens).logits).all()


def test_names_of_the_exporter(tmp_path: Path) -> None:
    """transformers loads none of these, so what they should make is what others made."""
    models = save_pair(tmp_path, "olmo_hybrid", ("released", "released"))
    stacked = read_tensors(tmp_path / "1-stacked")
    exported = exporter(stacked)
    assert any("linear_attn.out_proj" in name for name in exported)
    config = json.loads((models[1] / "config.json").read_text())
    other = write_checkpoint(tmp_path / "exported", exported, config=config)
    for name, pair in {"one": models, "two": [models[0], other]}.items():
        words = ["average", str(tmp_path / name), *map(str, pair), "--progress", "off"]
        assert cli.main(words) == 0
    one, two = (read_tensors(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
