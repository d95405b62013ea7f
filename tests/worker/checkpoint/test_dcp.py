"""Checkpoints of torch.distributed.checkpoint: bit for bit what was saved, and nothing run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker import cli
from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.reader import Files
from merge_worker.engine.lane import Lane
from merge_worker.errors import InputError
from merge_worker.tensors.chunks import Chunk, is_tiled
from support.checkpoint_factory import read_tensors
from support.dcp_factory import CASES, tensors, write_dcp

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def save(folder: Path, state: dict[str, Any]) -> Path:
    from torch.distributed import checkpoint

    checkpoint.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def assert_same(folder: Path, saved: dict[str, Tensor]) -> None:
    opened = open_checkpoint(folder)
    lane = Lane(torch.device("cpu"), Files())
    assert opened.tensors.keys() == saved.keys()
    for name, source in opened.tensors.items():
        flat = saved[name].reshape(-1)
        assert (source.shape, source.dtype.torch_name) == (
            tuple(saved[name].shape),
            str(saved[name].dtype).removeprefix("torch."),
        )
        for start in (0, *range(1, source.count, 7)):
            for stop in {source.count, min(start + 1, source.count), min(start + 9, source.count)}:
                got = lane.read(source, start, stop, "in")
                assert torch.equal(got.view(torch.uint8), flat[start:stop].view(torch.uint8)), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sync", "async", "state"])
@pytest.mark.parametrize("case", CASES)
def test_what_ranks_saved(tmp_path: Path, case: str, mode: str) -> None:
    saved = write_dcp(tmp_path / "c", case, mode)
    assert_same(tmp_path / "c", saved)


def test_one_rank_and_a_merge(tmp_path: Path) -> None:
    saved = {name: tensor for name, tensor in tensors().items() if name != "fp8"}
    assert_same(save(tmp_path / "all", tensors()), tensors())
    optim = {"state.layers.0.w.exp_avg": torch.ones(2)}
    save(tmp_path / "step1" / "model_and_optim", {"model": saved, "optim": optim, "step": 1})
    assert open_checkpoint(tmp_path / "step1").notes == (
        f"{tmp_path / 'step1' / 'model_and_optim'}: 2 entries of the training's state left out: "
        "optim (1), step (1)",
    )
    changed = {n: t * 3 if t.is_floating_point() else t for n, t in saved.items()}
    save(tmp_path / "step2", {"app": {"model": {f"module.{n}": t for n, t in changed.items()}}})
    out, inputs = tmp_path / "out", [str(tmp_path / "step1"), str(tmp_path / "step2")]
    assert cli.main(["average", str(out), *inputs, "--progress", "off"]) == 0
    for name, tensor in read_tensors(out).items():
        mean = (saved[name].double() + changed[name].double()) / 2
        assert torch.equal(tensor, mean.to(tensor.dtype)), name
    assert cli.main(["verify", str(out)]) == 0


def test_blocks_fill_a_tensor_once() -> None:
    def tiled(*blocks: tuple[int, int, int, int]) -> bool:
        return is_tiled((4, 6), [Chunk(b[:2], b[2:], 0, 0, 0) for b in blocks])

    assert tiled((0, 0, 2, 6), (2, 0, 2, 4), (2, 4, 2, 2))
    # A pinwheel, which no straight cut divides.
    assert is_tiled(
        (3, 3),
        [
            Chunk(offsets, sizes, 0, 0, 0)
            for offsets, sizes in (
                *(((0, 0), (1, 2)), ((0, 2), (2, 1)), ((1, 0), (2, 1))),
                *(((2, 1), (1, 2)), ((1, 1), (1, 1))),
            )
        ],
    )
    assert not tiled((0, 0, 2, 6))  # a hole
    assert not tiled((0, 0, 2, 6), (1, 0, 2, 6))  # as many elements, but two rows twice or never
    assert not tiled((0, 0, 4, 6), (0, 0, 4, 6))


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


Change = Callable[[Any, Path], object]


def infos(metadata: Any) -> list[Any]:
    return list(metadata.storage_data.values())


def first(metadata: Any) -> Any:
    return next(iter(metadata.state_dict_metadata.values()))


def damage(folder: Path, **fields: Any) -> Change:
    def change(metadata: Any, _: Path) -> None:
        for info in infos(metadata):
            vars(info).update(fields)

    return change


HOSTILE: dict[str, tuple[Change, str]] = {
    "a call": (lambda m, f: setattr(m, "planner_data", Evil(f / "it ran")), "posix.mkdir"),
    "a path out": (damage(Path(), relative_path="../x"), "outside the checkpoint"),
    "an absolute path": (damage(Path(), relative_path="/etc/passwd"), "outside the checkpoint"),
    "a missing file": (damage(Path(), relative_path="__9_0.distcp"), "are missing"),
    "a negative offset": (damage(Path(), offset=-1), "impossible size or offset"),
    "an offset past the end": (damage(Path(), offset=1 << 40), "shorter than"),
    "an enormous offset": (damage(Path(), offset=1 << 80), "impossible size or offset"),
    "too few bytes": (damage(Path(), length=4), "it is damaged"),
    "compressed": (damage(Path(), transform_descriptors=["stream.zstd/1"]), "stream.zstd/1"),
    "no files": (lambda m, f: m.storage_data.clear(), "is in no"),
    "no tensors": (lambda m, f: m.state_dict_metadata.clear(), "it lists no tensors"),
    "a hole": (lambda m, f: first(m).chunks.clear(), "do not fill"),
    "a larger shape": (lambda m, f: setattr(first(m), "size", torch.Size([9, 9])), "do not fill"),
    "an enormous shape": (
        lambda m, f: setattr(first(m), "size", torch.Size([1 << 62, 1 << 62])),
        "is damaged",
    ),
    "a smaller shape": (lambda m, f: setattr(first(m), "size", torch.Size([2, 2])), "has a block"),
    "no metadata": (lambda m, f: (f / ".metadata").write_bytes(b""), "is damaged"),
    "another object": (
        lambda m, f: (f / ".metadata").write_bytes(pickle.dumps([1, 2])),
        "no such metadata",
    ),
    "half": (
        lambda m, f: (f / ".metadata").write_bytes(pickle.dumps(m)[:300]),
        "is damaged",
    ),
    "a short file": (lambda m, f: os.truncate(f / "__0_0.distcp", 100), "shorter than"),
    "other bytes": (
        lambda m, f: (f / "__0_0.distcp").write_bytes(bytes((f / "__0_0.distcp").stat().st_size)),
        "no block of",
    ),
    "a folder": (
        lambda m, f: ((f / "__0_0.distcp").unlink(), (f / "__0_0.distcp").mkdir()),
        "not a regular file",
    ),
    "a FIFO": (
        lambda m, f: ((f / "__0_0.distcp").unlink(), os.mkfifo(f / "__0_0.distcp")),
        "not a regular file",
    ),
    "a broken link": (
        lambda m, f: ((f / "__0_0.distcp").unlink(), (f / "__0_0.distcp").symlink_to("gone")),
        "are missing",
    ),
    "another dtype": (
        lambda m, f: setattr(first(m).properties, "dtype", torch.int32),
        "is not the [4, 3] of int32",
    ),
    "a block of another shape": (
        lambda m, f: (
            setattr(first(m), "size", torch.Size([3, 4])),
            setattr(first(m).chunks[0], "sizes", torch.Size([3, 4])),
        ),
        "is not the [3, 4] of float32",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_damaged_and_hostile(tmp_path: Path, kind: str) -> None:
    folder = save(tmp_path / "c", {"w": torch.ones(4, 3)})
    change, expected = HOSTILE[kind]
    metadata = pickle.loads((folder / ".metadata").read_bytes())  # by ourselves
    before = (folder / ".metadata").read_bytes()
    change(metadata, folder)
    if (folder / ".metadata").read_bytes() == before:
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError) as caught:
        source = open_checkpoint(folder).tensors["w"]
        Lane(torch.device("cpu"), Files()).read(source, 0, source.count, "in")
    text = str(caught.value)
    assert expected in text and str(folder) in text and len(text.splitlines()) <= 3
    assert not (folder / "it ran").exists()
