"""Averages as checkpoints that a training goes on from: written as DCP, loaded by other meshes."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch

from merge_worker import cli
from support.checkpoint_factory import read_tensors
from support.dcp_ranks import CHECKPOINTS, loaded, run_ranks, tensors

pytestmark = pytest.mark.slow
STEPS = [f"run/step{number}" for number in range(CHECKPOINTS)]


@pytest.fixture(scope="module", params=["4", "2x2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    (folder / "run").mkdir()
    run_ranks("save", folder / "run", request.param)
    return folder


def average(folder: Path, out: str, *words: str) -> Path:
    given = [*STEPS, "--relative-to", str(folder), "--progress", "off", *words]
    assert cli.main(["average", str(folder / out), *given]) == 0
    return folder / out


def exact() -> dict[str, torch.Tensor]:
    inputs = [tensors(step) for step in range(CHECKPOINTS)]
    return {
        name: (sum(each[name].double() for each in inputs) / CHECKPOINTS).to(tensor.dtype)
        for name, tensor in inputs[0].items()
    }


def test_an_average_is_loaded_into_meshes_of_1_2_and_4(run: Path) -> None:
    out = average(run, "out", "--format", "dcp")
    assert cli.main(["verify", str(out)]) == 0
    first, result = (pickle.loads((p / ".metadata").read_bytes()) for p in (run / STEPS[0], out))
    assert result.planner_data == first.planner_data
    for name, entry in first.state_dict_metadata.items():
        own = result.state_dict_metadata[name]
        key = lambda chunk: (tuple(chunk.offsets), tuple(chunk.sizes))  # noqa: E731
        assert sorted(map(key, own.chunks)) == sorted(map(key, entry.chunks)), name
        assert (own.size, own.properties.dtype) == (entry.size, entry.properties.dtype)
    expected = exact()
    for mesh in ("1", "2", "4", "2x2"):
        found = loaded(out, mesh)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), (mesh, name)


def test_dcp_and_safetensors_hold_the_same(run: Path) -> None:
    out = average(run, "plain")
    back = ["convert", str(average(run, "again", "--format", "dcp")), str(run / "back")]
    assert cli.main([*back, "--progress", "off"]) == 0
    one, other = read_tensors(out), read_tensors(run / "back")
    assert one.keys() == other.keys()
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())
    shutil.rmtree(run / "back")
