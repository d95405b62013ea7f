"""Gates that need no model code: by hand, and from the seed alone."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.errors import UsageError
from merge_worker.experts.gates import alike
from merge_worker.experts.request import directions
from merge_worker.planning.gates import GatePlan, GateRow
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.mixtures import (
    HIDDEN,
    LAYERS,
    TOKENS,
    build,
    llama_tensors,
    recipe,
    write_llama,
)

GATE = "model.layers.{}.block_sparse_moe.gate.weight"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(tmp_path / name, seed)
    return tmp_path


def embed(folder: Path, rows: dict[str, list[float]], bos: bool = False) -> None:
    """Write a base whose embedding has these rows, and zeros elsewhere."""
    import json
    import shutil

    config = json.loads((folder / "base" / "config.json").read_text())
    tensors = llama_tensors(0)
    matrix = torch.zeros(len(TOKENS), HIDDEN)
    for token, row in rows.items():
        matrix[TOKENS.index(token), : len(row)] = torch.tensor(row)
    tensors["model.embed_tokens.weight"] = matrix.to(torch.bfloat16)
    shutil.rmtree(folder / "base")
    write_checkpoint(folder / "base", tensors, config=config)
    shutil.copy(folder / "a" / "tokenizer.json", folder / "base")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>" if bos else None}
    (folder / "base" / "tokenizer_config.json").write_text(json.dumps(settings))


def gates(folder: Path, prompts: Any, out: str = "out", **keys: Any) -> torch.Tensor:
    """Build a mixture in float32 and return its gates: [layers, experts, HIDDEN]."""
    experts = [
        {"source_model": name, "positive_prompts": positive, "negative_prompts": negative}
        for name, (positive, negative) in zip(("a", "b"), prompts, strict=True)
    ]
    path = recipe(folder, "base", experts, gate_mode="cheap_embed", dtype="float32", **keys)
    assert build(path, folder / out) == 0
    result = read_tensors(folder / out)
    return torch.stack([result[GATE.format(layer)] for layer in range(LAYERS)])


def test_sums_of_embeddings_have_length_one(models: Path) -> None:
    embed(models, {"c": [1.0, 0.0], "d": [0.0, 2.0]})
    found = gates(models, [(["cd" + "c", "c"], []), (["d"], [])])
    # Three of c and one of d: (3, 2), and (0, 2).
    expected = torch.zeros(LAYERS, 2, HIDDEN)
    expected[:, 0, :2] = torch.tensor([3.0, 2.0]) / math.sqrt(13)
    expected[:, 1, 1] = 1.0
    assert torch.allclose(found, expected, atol=1e-7)


def test_negative_prompts_are_taken_off(models: Path) -> None:
    embed(models, {"c": [1.0, 0.0], "d": [0.0, 2.0]})
    found = gates(models, [(["cc"], ["d"]), (["d"], [])])
    assert torch.allclose(found[0, 0, :2], torch.tensor([1.0, -1.0]) / math.sqrt(2), atol=1e-7)


def test_the_beginning_counts_once(models: Path) -> None:
    embed(models, {"<s>": [0.0, 0.0, 1.0], "c": [1.0], "d": [0.0, 1.0]}, bos=True)
    found = gates(models, [(["<s>c"], []), (["d"], [])])
    half = 1 / math.sqrt(2)
    assert torch.allclose(found[0, 0, :3], torch.tensor([half, 0.0, half]), atol=1e-7)
    assert torch.allclose(found[0, 1, :3], torch.tensor([0.0, half, half]), atol=1e-7)


def test_centred_gates_of_two_experts_are_opposite(models: Path) -> None:
    embed(models, {"c": [1.0, 0.0], "d": [0.0, 1.0]})
    found = gates(models, [(["c"], []), (["d"], [])], gate_center=True)
    assert torch.allclose(found[:, 0], -found[:, 1], atol=1e-6)
    assert torch.allclose(found[0, 0, :2], torch.tensor([1.0, -1.0]) / math.sqrt(2), atol=1e-6)


def test_longer_prompts_of_others_change_nothing(models: Path) -> None:
    short = gates(models, [(["ab"], []), (["c"], [])], "short")
    long = gates(models, [(["ab"], []), (["c", "dddd efgh"], [])], "long")
    assert torch.equal(short[:, 0], long[:, 0]) and not torch.equal(short[:, 1], long[:, 1])


def test_prompts_that_cancel_are_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = [
        {"source_model": "a", "positive_prompts": ["ab"], "negative_prompts": ["ba"]},
        {"source_model": "b", "positive_prompts": ["c"]},
    ]
    path = recipe(models, "base", experts, gate_mode="cheap_embed")
    before = sorted(models.iterdir())
    assert build(path, models / "out") == 2
    assert "the prompts of expert a give no direction" in capsys.readouterr().err
    assert sorted(models.iterdir()) == before


def test_the_seed_changes_the_routers_alone(models: Path) -> None:
    results = []
    for seed in (0, 0, 1):
        out = models / f"out{len(results)}"
        assert build(recipe(models, "base", ["a", "b"]), out, "--seed", seed) == 0
        results.append(read_tensors(out))
    first, again, other = results
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == ("gate.weight" not in name)
    # Each layer has numbers of its own.
    assert not torch.equal(first[GATE.format(0)], first[GATE.format(1)])


@pytest.mark.parametrize(("mode", "spread"), [("random", 1.0), ("uniform_random", 0.0)])
def test_random_gates_have_their_distribution(tmp_path: Path, mode: str, spread: float) -> None:
    write_llama(tmp_path / "base", hidden=512, rows=12)
    path = recipe(tmp_path, "base", ["base"] * 16, gate_mode=mode, dtype="float32")
    assert build(path, tmp_path / "out") == 0
    result = read_tensors(tmp_path / "out")
    values = torch.cat([result[GATE.format(layer)] for layer in range(LAYERS)]).double()
    count = values.numel()
    bound = 512**-0.5
    deviation = spread or bound / math.sqrt(3)
    assert abs(float(values.mean())) < 4 * deviation / math.sqrt(count)
    assert float(values.std()) == pytest.approx(deviation, rel=0.03)
    if mode == "uniform_random":
        assert float(values.abs().max()) <= bound
    else:
        assert 0.63 < float((values.abs() < 1).double().mean()) < 0.73  # 68 % within one
    rows = torch.nn.functional.normalize(values, dim=1)
    assert float((rows @ rows.T - torch.eye(len(rows))).abs().max()) < 0.3


def test_a_standard_deviation(models: Path) -> None:
    found = {}
    for std in (1.0, 0.5):
        path = recipe(models, "base", ["a", "b"], gate_std=std, dtype="float32")
        assert build(path, models / f"out{std}") == 0
        found[std] = read_tensors(models / f"out{std}")[GATE.format(0)]
    assert torch.equal(found[0.5], found[1.0] * 0.5)


def plan_of(mode: str = "mlp_input", center: bool = False, shared: bool = False) -> GatePlan:
    rows = tuple(GateRow(name) for name in ("a", "b", "c"))
    return GatePlan(mode, rows, ("r.0",), 2, 1.0, center, False, shared, 0)


def test_directions_centre_over_the_experts_without_the_shared_one() -> None:
    vectors = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [0.0, 5.0]]])
    found = directions(vectors, plan_of(center=True, shared=True))
    assert torch.equal(found, torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]]))


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_vectors_without_a_direction(bad: float) -> None:
    vectors = torch.tensor([[[1.0, 0.0], [bad, 0.0], [0.0, 1.0]]])
    with pytest.raises(UsageError, match="expert b give no direction"):
        directions(vectors, plan_of())


def test_gates_that_are_alike_are_told() -> None:
    values = torch.tensor([[[1.0, 0.0], [1.0, 1e-3], [0.0, 1.0]]])
    (warning,) = alike(values, plan_of())
    assert "1 pair of experts" in warning and "(a and b)" in warning
    assert alike(values, plan_of("zeros")) == []


@pytest.mark.parametrize("prompts", [["e"], []])
def test_the_gate_of_a_shared_expert(
    models: Path, prompts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    embed(models, {"c": [1.0, 0.0], "d": [0.0, 1.0], "e": [0.0, 0.0, 2.0]})
    experts = [
        {"source_model": "a", "positive_prompts": ["c"]},
        {"source_model": "b", "positive_prompts": ["d"]},
    ]
    shared = [{"source_model": "base", "positive_prompts": prompts}]
    keys = {"gate_mode": "cheap_embed", "dtype": "float32", "shared_experts": shared}
    assert build(recipe(models, "base", experts, **keys), models / "out") == 0
    result = read_tensors(models / "out")
    gate = result["model.layers.1.mlp.shared_expert_gate.weight"]
    expected = torch.zeros(1, HIDDEN)
    expected[0, 2] = float(bool(prompts))
    assert torch.equal(gate, expected)
    assert result["model.layers.1.mlp.gate.weight"].shape == (2, HIDDEN)
    told = "its gate is zeros, which is a weight of 1/2" in capsys.readouterr().err
    assert told == (not prompts)


def test_prompts_of_messages_take_the_chat_template(models: Path) -> None:
    embed(models, {"c": [1.0], "d": [0.0, 1.0], "e": [0.0, 0.0, 1.0]})
    (models / "base" / "chat_template.jinja").write_text(
        "{% for message in messages %}e{{ message['content'] }}{% endfor %}"
    )
    (models / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "c"}]}\n')
    experts = [
        {"source_model": "a", "prompts_file": "a.jsonl"},
        {"source_model": "b", "positive_prompts": ["d"]},
    ]
    path = recipe(models, "base", experts, gate_mode="cheap_embed", dtype="float32")
    assert build(path, models / "out") == 0
    gate = read_tensors(models / "out")[GATE.format(0)][0, :3]
    half = 1 / math.sqrt(2)
    assert torch.allclose(gate, torch.tensor([half, 0.0, half]), atol=1e-6)
