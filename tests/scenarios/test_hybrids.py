"""Whole merges of small real models, one per kind of architecture, checked by transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker import cli
from support.checkpoint_factory import (
    ARCHITECTURES,
    load,
    read_tensors,
    save_fine_tunes,
    ulps_from_mean,
    write_checkpoint,
)
from support.slice_factory import fault, merge, recipe, source


def average(out: Path, models: list[Path]) -> None:
    # This process has already imported torch.
    assert cli.main(["average", str(out), *map(str, models), "--progress", "off"]) == 0


def check_average(out: Path, models: list[Path]) -> None:
    inputs = [read_tensors(path) for path in models]
    merged = read_tensors(out)
    assert merged.keys() == inputs[0].keys()
    for name, tensor in merged.items():
        peers = [tensors[name] for tensors in inputs]
        assert (tensor.dtype, tensor.shape) == (peers[0].dtype, peers[0].shape), name
        if tensor.is_floating_point():
            assert ulps_from_mean(tensor, peers) <= 0.5, name
        else:
            assert torch.equal(tensor, peers[0]), name


def check_loads(out: Path) -> Any:
    model, info = load(out)
    assert {kind: keys for kind, keys in info.items() if keys} == {}
    return model


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_average_of_three_fine_tunes(model_type: str, tmp_path: Path) -> None:
    models = save_fine_tunes(tmp_path, model_type)
    average(tmp_path / "out", models)
    check_average(tmp_path / "out", models)
    model = check_loads(tmp_path / "out")
    tokens = torch.arange(3, 19)[None]
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    assert torch.isfinite(model(input_ids=tokens, **more).logits).all()


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    models = save_fine_tunes(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in read_tensors(models[0])
    average(tmp_path / "out", models)
    check_average(tmp_path / "out", models)
    model = check_loads(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def as_hub_cache(folder: Path) -> Path:
    """Move the files of `model` behind links, as in the Hub's cache."""
    snapshot = folder.parent / "models--org--name" / "snapshots" / "abc"
    blobs = snapshot.parent.parent / "blobs"
    for path in (snapshot, blobs):
        path.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_file_layouts_do_not_matter(tmp_path: Path) -> None:
    single, sharded, linked = save_fine_tunes(tmp_path, "llama")
    tensors = dict(reversed(read_tensors(sharded).items()))
    config = json.loads((sharded / "config.json").read_text())
    resharded = write_checkpoint(tmp_path / "resharded", tensors, shards=5, config=config)
    models = [single, resharded, as_hub_cache(linked)]
    average(tmp_path / "out", models)
    check_average(tmp_path / "out", models)
    check_loads(tmp_path / "out")
    # The base decides the names but not the values: swapped, the values are equal.
    average(tmp_path / "turned", models[1:] + models[:1])
    check_average(tmp_path / "turned", models)


def unheard_of(seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return {
        "perceptron.0.gate": normal(7, 33).half(),
        "perceptron.0.gate.scale": normal(33),
        "τ/warp.weight": normal(5, 4, 3, 2).bfloat16(),
        "temperature": normal(()),
        "nothing": torch.zeros(0, 4),
        "steps": torch.arange(11),
        "mask": torch.arange(6) % 2 == 0,
    }


def test_an_unknown_architecture(tmp_path: Path) -> None:
    config = {"architectures": ["QuasarForTelepathy"], "model_type": "quasar"}
    models = [
        write_checkpoint(tmp_path / str(seed), unheard_of(seed), shards=1 + seed, config=config)
        for seed in range(3)
    ]
    average(tmp_path / "out", models)
    check_average(tmp_path / "out", models)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "quasar"


# Hybrids and mixtures with per-layer fields in the config, and the layers to take of two models.
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


def test_config_fields_that_cannot_follow_are_named(tmp_path: Path) -> None:
    assert "jamba" in ARCHITECTURES
    save_fine_tunes(tmp_path, "jamba", 1)
    text = recipe("passthrough", [source("jamba-0", 0, 3)], [source("jamba-0", 1, 4)])
    assert "config.json: attn_layer_period cannot follow the layers taken" in fault(tmp_path, text)
    save_fine_tunes(tmp_path, "zamba2", 1)
    text = recipe("passthrough", [source("zamba2-0", 0, 3)])
    assert "config.json: num_mem_blocks cannot follow" in fault(tmp_path, text)
