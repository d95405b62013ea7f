"""Measurements on an accelerator equal those on the CPU; needs `-m gpu`."""

from pathlib import Path

import pytest
import torch

from merge_worker.engine.device import select_devices
from support.language_models import make
from support.measured_models import measured

DEVICE = select_devices("auto")[0]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cpu", reason="torch sees no accelerator here"),
]


@pytest.mark.parametrize("kind", ["fisher", "activation", "gram-diagonal"])
@pytest.mark.parametrize("name", ["LlamaForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM"])
def test_the_same_as_on_the_cpu(tmp_path: Path, kind: str, name: str) -> None:
    model_type = name.removesuffix("ForCausalLM").removesuffix("LMHeadModel").lower()
    folder = make(tmp_path / "model", name, model_type)
    want = measured(folder, tmp_path / "cpu.safetensors", kind)
    got = measured(folder, tmp_path / "gpu.safetensors", kind, device=DEVICE)
    assert set(got) == set(want)
    for key, values in want.items():
        scale = float(values.abs().max())
        torch.testing.assert_close(got[key], values, rtol=1e-3, atol=scale * 1e-4)
