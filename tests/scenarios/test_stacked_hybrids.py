"""Hybrid models with stacked layers: the result loads and runs."""

from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import ARCHITECTURES, load, read_tensors, save_fine_tunes
from support.slice_factory import fault, merge, recipe, source

# Hybrids and mixtures whose config speaks of single layers, and layers to take of two models.
STACKED: dict[str, tuple[int, int, int, int]] = {
    "llama": (0, 2, 0, 2),
    "olmo_hybrid": (0, 3, 1, 4),
    "jamba": (0, 4, 0, 4),
    "bamba": (0, 2, 1, 3),
    "granitemoehybrid": (0, 2, 1, 3),
    "nemotron_h": (0, 3, 1, 4),
    "qwen3_next": (0, 3, 1, 4),
    "lfm2": (0, 3, 1, 3),
    "falcon_h1": (0, 2, 1, 2),
}


@pytest.mark.parametrize("model_type", STACKED)
def test_a_stacked_hybrid_loads_and_runs(model_type: str, tmp_path: Path) -> None:
    paths = save_fine_tunes(tmp_path, model_type, 2)
    first, last, again, end = STACKED[model_type]
    text = recipe(
        "passthrough",
        [source(f"{model_type}-0", first, last)],
        [source(f"{model_type}-1", again, end)],
    )
    merge(tmp_path, text)
    result, (lower, upper) = read_tensors(tmp_path / "out"), map(read_tensors, paths)
    taken = 0
    for name, tensor in result.items():
        number = next((int(word) for word in name.split(".") if word.isdigit()), None)
        if number is None:
            continue
        taken += 1
        origin = lower if number < last else upper
        old = number if number < last else number - last + again
        assert torch.equal(tensor, origin[name.replace(f".{number}.", f".{old}.", 1)]), name
    assert taken
    model, info = load(tmp_path / "out")
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    tokens = torch.arange(3, 19)[None]
    assert torch.isfinite(model(input_ids=tokens).logits).all()
    last_norm = [n for n in result if "norm" in n and not any(w.isdigit() for w in n.split("."))]
    assert last_norm and all(torch.equal(result[n], upper[n]) for n in last_norm)


def test_what_cannot_follow_is_named(tmp_path: Path) -> None:
    assert "jamba" in ARCHITECTURES
    save_fine_tunes(tmp_path, "jamba", 1)
    text = recipe("passthrough", [source("jamba-0", 0, 3)], [source("jamba-0", 1, 4)])
    assert "config.json: attn_layer_period cannot follow the layers taken" in fault(tmp_path, text)
    save_fine_tunes(tmp_path, "zamba2", 1)
    text = recipe("passthrough", [source("zamba2-0", 0, 3)])
    assert "config.json: num_mem_blocks cannot follow" in fault(tmp_path, text)
