"""Merges on an accelerator equal those on the CPU; run by `scripts/test -m gpu` if torch sees one.

Runs whole commands, so that pinned buffers, copies, streams and device memory all take part.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_worker import methods
from merge_worker.engine.device import select_devices
from merge_worker.method import BaseRole
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.method_driver import models_of, values_of
from support.recipes import run, shards_of

DEVICE = str(select_devices("auto")[0])
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no accelerator here"),
]
MATRIX = {"iso_c", "tsvm"}
"""Their singular vectors are found by other kernels there, and are checked with less rigour."""

SHAPES = {
    "embed.weight": (2100, 1300),  # more than a block of an accelerator
    "experts.weight": (3, 64, 96),
    "conv.weight": (64, 1, 4),
    "norm.weight": (257,),
    "odd.weight": (33, 47),
    "scale": (),
}


def write_models(folder: Path, dtype: torch.dtype, count: int = 4) -> list[Path]:
    """Write a base and its fine-tunes."""
    chance = torch.Generator().manual_seed(0)
    first = {name: 0.02 * torch.randn(shape, generator=chance) for name, shape in SHAPES.items()}
    models = []
    for number in range(count):
        own = {
            name: (values + 0.004 * torch.randn(values.shape, generator=chance)).to(dtype)
            for name, values in first.items()
        }
        models.append(write_checkpoint(folder / f"m{number}", own))
    return models


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    dtype = getattr(torch, request.param)
    return write_models(tmp_path_factory.mktemp("accelerator"), dtype)


def recipe(path: Path, name: str, models: list[Path]) -> Path:
    """Write a recipe of the method, with as many models as it takes."""
    method = methods.get(name)
    count = models_of(method)
    values = values_of(method, count)
    lines = [f"merge_method: {name}"]
    if method.base is not BaseRole.IGNORED:
        lines.append(f"base_model: {models[0]}")
    shared = {key: v for key, v in values.items() if not isinstance(v, list)}
    if shared:
        words = ", ".join(f"{key.removesuffix('_')}: {value}" for key, value in shared.items())
        lines.append(f"parameters: {{{words}}}")
    lines.append("models:")
    for number, model in enumerate(models[1 : count + 1]):
        own = {key: v[number] for key, v in values.items() if isinstance(v, list)}
        lines.append(f"- model: {model}")
        if own:
            words = ", ".join(f"{key}: {value}" for key, value in own.items())
            lines.append(f"  parameters: {{{words}}}")
    path.write_text("\n".join(lines) + "\n")
    return path


def merged(tmp_path: Path, name: str, recipe_file: Path, *options: object) -> Path:
    out = tmp_path / name
    assert run("merge", recipe_file, out, "--progress", "off", *options) == 0
    return out


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[tuple[str, float]]:
    """Return the largest difference of each tensor, relative to its largest value."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype and values.shape == other[name].shape
        far = (values.double() - other[name].double()).abs().max()
        yield name, float(far / values.double().abs().max())


@pytest.mark.parametrize("name", methods.names())
def test_every_method_matches_the_cpu(tmp_path: Path, models: list[Path], name: str) -> None:
    """Masks, thresholds and votes are equal; sums differ in the order of addition."""
    recipe_file = recipe(tmp_path / "r.yml", name, models)
    there = read_tensors(merged(tmp_path, "there", recipe_file, "--device", DEVICE))
    here = read_tensors(merged(tmp_path, "here", recipe_file, "--device", "cpu"))
    narrow = next(iter(here.values())).dtype == torch.bfloat16
    allowed = 2.0**-7 if narrow else 2.0**-10 if name in MATRIX else 2.0**-21
    for tensor, far in farthest(here, there):
        assert far <= allowed, f"{tensor}: {far:.2g}"


@pytest.mark.parametrize("name", ["linear", "ties", "dare_ties", "della", "karcher", "sce"])
def test_the_same_bits_for_every_block_size(tmp_path: Path, models: list[Path], name: str) -> None:
    recipe_file = recipe(tmp_path / "r.yml", name, models)
    cuts = [("--threads", 1), ("--threads", 8), ("--threads", 3, "--memory", "150MiB")]
    outs = [
        merged(tmp_path, f"out{n}", recipe_file, "--device", DEVICE, *cut)
        for n, cut in enumerate(cuts)
    ]
    assert len({tuple(shards_of(out).items()) for out in outs}) == 1


def test_buffers_are_not_read_before_they_are_full(tmp_path: Path) -> None:
    """Run many lanes and more pieces than buffers: a pending copy would show as other values."""
    dtype, inputs = torch.bfloat16, []
    for seed in range(3):
        chance = torch.Generator().manual_seed(seed)
        tensors = {
            f"layers.{layer}": torch.randn(3000, 2000, generator=chance).to(dtype)
            for layer in range(8)
        }
        inputs.append(write_checkpoint(tmp_path / f"m{seed}", tensors))
    words = ("--progress", "off", "--device", DEVICE, "--threads", 12)
    for turn in range(3):
        out = tmp_path / f"out{turn}"
        assert run("average", out, *inputs, *words) == 0
        result, read = read_tensors(out), [read_tensors(path) for path in inputs]
        for name, values in result.items():
            mean = sum(one[name].double() for one in read) / 3
            assert values.equal(mean.to(dtype)), name
    # A command without ranks starts several processes, each with some of the devices.
    words = ("average", tmp_path / "command", *inputs, *words)
    argv = [sys.executable, "-m", "merge_worker", *map(str, words)]
    assert subprocess.run(argv, cwd=Path(__file__).parents[2], check=False).returncode == 0
    assert shards_of(tmp_path / "command") == shards_of(tmp_path / "out0")


def test_a_device_with_little_memory_left(
    tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pieces are halved until they fit; the error is one line if not even a block fits."""
    if not DEVICE.startswith("cuda"):
        pytest.skip("only CUDA's allocator can be told a limit")
    recipe_file = recipe(tmp_path / "r.yml", "ties", models)
    whole = merged(tmp_path, "whole", recipe_file, "--device", DEVICE)
    total = torch.cuda.get_device_properties(0).total_memory
    codes = []
    try:
        for allowed in range(50, 8000, 150):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(allowed * 2**20 / total)
            words = ("--device", DEVICE, "--threads", 1, "--progress", "off")
            codes.append(run("merge", recipe_file, tmp_path / "out", *words))
            if codes[-1] == 0:
                break
            assert "no memory left for one block" in capsys.readouterr().err
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert codes[0] == 2 and codes[-1] == 0 and set(codes) == {0, 2}
    assert shards_of(tmp_path / "out") == shards_of(whole)


def test_nan_is_detected(
    tmp_path: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = read_tensors(models[0])
    tensors["odd.weight"][3, 4] = float("nan")
    bad = write_checkpoint(tmp_path / "bad", tensors)
    assert run("average", tmp_path / "out", models[1], bad, "--device", DEVICE) == 5
    errors = capsys.readouterr().err
    assert re.search(r"'odd.weight': 1 values? of the result .* NaN or Inf", errors), errors


def test_several_recipes_in_one_pass(tmp_path: Path, models: list[Path]) -> None:
    recipe_files = [
        recipe(tmp_path / f"{n}.yml", n, models) for n in ("ties", "linear", "model_stock")
    ]
    words = [w for path in recipe_files for w in ("-a", path, tmp_path / f"together-{path.stem}")]
    assert run("merge", *words, "--progress", "off", "--device", DEVICE) == 0
    for path in recipe_files:
        alone = merged(tmp_path, f"alone-{path.stem}", path, "--device", DEVICE)
        assert shards_of(tmp_path / f"together-{path.stem}") == shards_of(alone)


def test_an_adapter_out_of_a_fine_tune(tmp_path: Path, models: list[Path]) -> None:
    errors = []
    for device in ("cpu", DEVICE):
        out = tmp_path / device.replace(":", "-")
        words = ("extract-lora", models[0], models[1], out, "--rank", 16, "--device", device)
        assert run(*words) == 0
        errors.append(read_tensors(out))
    assert errors[0].keys() == errors[1].keys()
    # The factors may be rotated; their product may not change.
    for name in (n for n in errors[0] if n.endswith("lora_A.weight")):
        other = name.replace("lora_A", "lora_B")
        here, there = (one[other].double() @ one[name].double() for one in errors)
        assert float((here - there).norm() / here.norm()) < 0.2, name
