"""`merge_state_dicts`: the bits of a merge of files, from tensors in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import merge_worker as mw


@pytest.fixture
def states(models: list[Path]) -> dict[str, dict[str, Tensor]]:
    return {model.name: load_file(model / "model.safetensors") for model in models}


def of_files(method: str, models: list[Path], based: bool, **own: Any) -> dict[str, Tensor]:
    merged = models[1:] if based else models
    entries = [
        {"model": model, "parameters": {name: values[n] for name, values in own.items()}}
        for n, model in enumerate(merged)
    ]
    recipe = {"merge_method": method, "models": entries}
    return dict(mw.stream(mw.plan(recipe | ({"base_model": models[0]} if based else {}))))


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_linear(states: dict[str, dict[str, Tensor]], models: list[Path]) -> None:
    merged = mw.merge_state_dicts(states, weight=[2, 1, 1])
    assert equal(merged, of_files("linear", models, False, weight=[2, 1, 1]))
    in_order = mw.merge_state_dicts(list(states.values()), weight=[2, 1, 1])
    by_name = mw.merge_state_dicts(states, weight={"m2": 1, "m1": 1, "m0": 2})
    assert equal(merged, in_order) and equal(merged, by_name)


def test_a_base_by_name_or_of_its_own(
    states: dict[str, dict[str, Tensor]], models: list[Path]
) -> None:
    expected = of_files("ties", models, True, weight=[0.5, 1.0], density=[0.4, 0.4])
    chosen: dict[str, Any] = {"weight": [0.5, 1.0], "density": 0.4}
    assert equal(mw.merge_state_dicts(states, "ties", "m0", **chosen), expected)
    base = states.pop("m0")
    assert equal(mw.merge_state_dicts(states, "ties", base, **chosen), expected)


def test_statistics_and_large_tensors() -> None:
    generator = torch.Generator().manual_seed(1)
    states = [{"w": torch.randn(1500, 1000, generator=generator)} for _ in range(3)]
    merged = mw.merge_state_dicts(states[:2], "slerp", "model 1", t=0.5)["w"]
    a, b = (state["w"].double() for state in states[:2])
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    expected = torch.sin(angle / 2) / torch.sin(angle) * (a + b)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6)


def test_views_dtypes_and_lambda() -> None:
    base = {"w": torch.zeros(4, 6)}
    tuned = {"w": torch.arange(24.0).view(6, 4).T}
    merged = mw.merge_state_dicts(
        {"a": tuned}, "task_arithmetic", base, dtype="bfloat16", weight=1.0, lambda_=0.5
    )
    assert torch.equal(merged["w"], (tuned["w"] / 2).bfloat16())


def test_faults(states: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(mw.errors.UsageError, match="weight has 2 values for 3 models"):
        mw.merge_state_dicts(states, weight=[1, 1])
    with pytest.raises(mw.errors.UsageError, match="linear takes no 'wieght'"):
        mw.merge_state_dicts(states, wieght=[1, 1, 1])
    with pytest.raises(mw.errors.UsageError, match="base 'x' is not one of the models"):
        mw.merge_state_dicts(states, "ties", "x")
    with pytest.raises(mw.errors.UsageError, match="unknown method 'tie'"):
        mw.merge_state_dicts(states, "tie")
    del states["m1"]["norm.weight"]
    with pytest.raises(mw.errors.WorkerError, match=r"norm\.weight"):
        mw.merge_state_dicts(states)
