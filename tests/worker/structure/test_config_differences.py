"""Config fields that change what weights mean."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.structure.config_differences import config_differences
from support.checkpoint_factory import write_checkpoint

LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 4,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "vocab_size": 90,
}


def notes(tmp_path: Path, *configs: dict[str, Any] | None) -> list[str]:
    labels = [f"m{n}" for n in range(len(configs))]
    tmp_path = Path(tempfile.mkdtemp(dir=tmp_path))
    for label, config in zip(labels, configs, strict=True):
        write_checkpoint(tmp_path / label, {"w": torch.zeros(2)}, config=config)
    return config_differences([open_checkpoint(tmp_path / label) for label in labels], labels)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 1e6}, "rope_theta 1000000.0 against 10000.0"),
        ({"num_attention_heads": 8}, "num_attention_heads 8 against 4"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 against 1e-05"),
        ({"model_type": "mistral"}, "model_type mistral against llama"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling {'rope_type': 'linear', 'factor': 2.0} against None",
        ),
    ],
)
def test_a_difference_is_named_with_both_values(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    expected = f"m1: config differs from m0, whose config the result has: {expected}"
    assert notes(tmp_path, LLAMA, {**LLAMA, **changes}, LLAMA) == [expected]


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 128, "vocab_size": 96, "transformers_version": "4.0.0"},
        {"head_dim": 8},  # the other has the same by default
        {"rope_scaling": None},
        {"rope_scaling": {"rope_type": "default"}},
        {"sliding_window": 4096, "use_sliding_window": False},
    ],
)
def test_fields_that_change_nothing(changes: dict[str, Any], tmp_path: Path) -> None:
    assert notes(tmp_path, LLAMA, {**LLAMA, **changes}) == []


def test_forms_of_the_same_config(tmp_path: Path) -> None:
    """The form of transformers 5, and a text model inside a vision-language model."""
    new = {k: v for k, v in LLAMA.items() if k != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000}
    assert notes(tmp_path, LLAMA, new) == []
    inside = {k: v for k, v in LLAMA.items() if k != "model_type"}
    other = {"text_config": {**inside, "rope_theta": 5e5}, "vision_config": {"hidden_act": "silu"}}
    assert notes(tmp_path, LLAMA, other) == [
        "m1: config differs from m0, whose config the result has: rope_theta 500000.0 against "
        "10000.0"
    ]


def test_many_differences_are_counted(tmp_path: Path) -> None:
    first = {**LLAMA, "norm_eps": 1, "hidden_act": "silu", "clip_qkv": 1, "head_dim": 4}
    (line,) = notes(tmp_path, first, {key: f"{value}x" for key, value in first.items()})
    assert line.endswith(", 4 more fields") and line.count(" against ") == 4


def test_no_config_in_the_first(tmp_path: Path) -> None:
    assert notes(tmp_path, None, LLAMA, LLAMA) == [
        "m0: no config.json, so the result has none; m1 has one, to copy into OUT or to list first"
    ]
    assert notes(tmp_path, LLAMA, None) == []
