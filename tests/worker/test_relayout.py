"""Layouts on made-up tensors: every rule both ways, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import read_tensors, write_checkpoint
from pieces import (
    COUNT,
    MIDDLE,
    H,
    Tensors,
    assert_mean,
    average,
    beginning,
    experts,
    fused,
    numbered,
    projections,
    stacked,
)
from torch import Tensor

from worker import cli


def in_turns(one: Tensor, two: Tensor) -> Tensor:
    return torch.stack([one, two], -1).flatten(-2)


def gpt_oss(apart: Tensors) -> Tensors:
    place = "model.layers.0.mlp"
    gate, up, down = (stacked(apart, place, w) for w in ("gate", "up", "down"))
    biases = [stacked(apart, place, w, "bias") for w in ("gate", "up", "down")]
    return {
        f"{place}.experts.gate_up_proj": in_turns(gate.mT, up.mT),
        f"{place}.experts.down_proj": down.mT.contiguous(),
        f"{place}.experts.gate_up_proj_bias": in_turns(biases[0], biases[1]),
        f"{place}.experts.down_proj_bias": biases[2],
    }


def llama4(apart: Tensors) -> Tensors:
    place = "model.layers.0.feed_forward"
    gate, up, down = (stacked(apart, place, w) for w in ("gate", "up", "down"))
    return {
        f"{place}.experts.gate_up_proj": torch.cat([gate.mT, up.mT], -1),
        f"{place}.experts.down_proj": down.mT.contiguous(),
        f"{place}.shared_expert.up_proj.weight": apart[f"{place}.shared_expert.up_proj.weight"],
    }


def shared(seed: int) -> Tensors:
    place = "model.layers.0.feed_forward"
    one = {f"{place}.shared_expert.up_proj.weight": numbered(MIDDLE, H, seed=seed + 50)}
    return experts(place, seed) | one


def language(seed: int) -> Tensors:
    return {f"model.layers.{n}.norm.weight": numbered(H, seed=seed + n) for n in range(3)}


PAIRS: dict[str, tuple[Callable[[int], Tensors], Callable[[Tensors], Tensors]]] = {
    "gpt-oss": (lambda seed: experts("model.layers.0.mlp", seed, bias=True), gpt_oss),
    "Llama 4": (shared, llama4),
    "projections": (projections, fused),
    "backbone": (language, beginning("model.", "backbone.")),
    "language model": (language, beginning("model.", "model.language_model.")),
    "old language model": (language, beginning("model.", "language_model.model.")),
    "bare": (language, beginning("model.", "")),
    "compiled": (language, beginning("", "_orig_mod.")),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("case", PAIRS)
def test_both_ways(case: str, turned: bool, tmp_path: Path) -> None:
    make, change = PAIRS[case]
    one, two = make(0), make(1000)
    first, second = (change(one), two) if turned else (one, change(two))
    assert average(tmp_path, first, second) == 0
    assert_mean(tmp_path, first, change(two) if turned else two)


def test_what_is_done_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert average(tmp_path, projections(0), fused(projections(9))) == 0
    told = capsys.readouterr().err
    assert f"{tmp_path / 'b'} is in another layout than {tmp_path / 'a'}" in told
    assert "8 tensors regrouped" in told


def test_layers_that_the_first_has_not(tmp_path: Path) -> None:
    # The second model is deeper: its last layer goes on top, in the layout of the first.
    first, deep = projections(0), projections(5)
    first = {n.replace("layers.1", "layers.0"): tensor for n, tensor in first.items()}
    both = deep | {n.replace("layers.1", "layers.0"): t for n, t in projections(7).items()}
    write_checkpoint(tmp_path / "a", first)
    names = {"layers.0": fused(projections(7)), "layers.1": fused(deep)}
    second = {n.replace("layers.1", layer): t for layer, ts in names.items() for n, t in ts.items()}
    write_checkpoint(tmp_path / "b", second)
    (tmp_path / "r.yml").write_text(
        "merge_method: passthrough\nslices:\n"
        f"- sources: [{{model: {tmp_path / 'a'}, layer_range: [0, 1]}}]\n"
        f"- sources: [{{model: {tmp_path / 'b'}, layer_range: [1, 2]}}]\n"
    )
    command = ["merge", str(tmp_path / "r.yml"), str(tmp_path / "out"), "--progress", "off"]
    assert cli.main(command) == 0
    merged = read_tensors(tmp_path / "out")
    assert merged.keys() == both.keys()
    assert all(torch.equal(merged[name], deep[name]) for name in deep)


def test_two_forms_of_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = projections(1) | fused(projections(1))
    assert average(tmp_path, projections(0), second) == 3
    told = capsys.readouterr().err
    assert f"{tmp_path / 'b'}: there are both" in told
    assert "self_attn.q_proj.bias and model.layers.1.self_attn.qkv_proj.bias, two forms" in told


def test_a_part_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = projections(1)
    del second["model.layers.1.self_attn.k_proj.weight"]
    assert average(tmp_path, fused(projections(0)), second) == 3
    told = capsys.readouterr().err
    assert "model.layers.1.self_attn.k_proj.weight is not" in told
    assert "has model.layers.1.self_attn.qkv_proj.weight" in told


def test_an_expert_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = experts("model.layers.0.mlp")
    first = {
        "model.layers.0.mlp.experts.gate_up_proj": numbered(COUNT, 2 * MIDDLE, H, seed=1),
        "model.layers.0.mlp.experts.down_proj": numbered(COUNT, H, MIDDLE, seed=2),
    }
    del second["model.layers.0.mlp.experts.1.up_proj.weight"]
    assert average(tmp_path, first, second) == 3
    assert "experts.1.up_proj.weight is not" in capsys.readouterr().err


def test_parts_of_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = fused(projections(1))
    second["model.layers.1.self_attn.qkv_proj.weight"] = numbered(11, H, seed=1)
    assert average(tmp_path, projections(0), second) == 3
    assert "parts would be 8 + 2 + 2" in capsys.readouterr().err
