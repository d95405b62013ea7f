"""Checkpoints that torch.distributed.checkpoint writes, with one process for each rank (gloo).

Run as a program it is one of the ranks: `python dcp_factory.py FOLDER CASE RANK WORLD`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

CASES = {
    # name: world, shape of the mesh, placements by tensor
    "rows": (2, (2,), "0"),
    "columns": (2, (2,), "1"),
    "replicas": (2, (2,), "R"),
    "one": (1, (1,), "0"),
    "rows of four": (4, (4,), "0"),
    "blocks": (4, (2, 2), "01"),
    "rows and replicas": (4, (2, 2), "R0"),
    "blocks of eight": (8, (4, 2), "01"),
    "rows cut twice": (4, (2, 2), "00"),
}


def tensors() -> dict[str, Tensor]:
    """Return the tensors that every case saves, of many shapes and dtypes."""
    random = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    return {
        "layers.0.w": normal(12, 8),
        "layers.0.uneven": normal(7, 5),
        "layers.1.w": normal(16, 6).bfloat16(),
        "layers.1.half": normal(9, 10).half(),
        "experts.w": normal(4, 6, 10).bfloat16(),
        "experts.deep": normal(3, 4, 5, 6),
        "norm.weight": normal(13),
        "short": normal(1, 3),  # some ranks have none of it
        "fp8": normal(8, 8).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(3.25),
        "empty": normal(0, 4),
        "counts": torch.arange(11),
    }


def write_dcp(folder: Path, case: str = "rows", mode: str = "sync") -> dict[str, Tensor]:
    """Save `tensors()` by the ranks of a case; return them. `mode` is sync, async or safetensors.

    With `state` in the mode the state of a training is saved too, each part under its key.
    """
    world = CASES[case][0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, str(folder), case, mode]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(world)]
    codes = [rank.wait(timeout=120) for rank in ranks]
    assert codes == [0] * world, codes
    return tensors()


def _placed(tensor: Tensor, mesh: object, placements: str) -> Tensor:
    from torch.distributed.tensor import Placement, Replicate, Shard, distribute_tensor

    if not tensor.shape or tensor.dtype == torch.int64:
        return tensor
    axes: list[Placement] = []
    for letter in placements:
        cut = letter != "R" and int(letter) < tensor.dim()
        axes.append(Shard(int(letter)) if cut else Replicate())
    return distribute_tensor(tensor, mesh, axes, src_data_rank=None)  # type: ignore[arg-type,no-any-return]


def _save(folder: Path, case: str, mode: str, rank: int) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh

    world, shape, placements = CASES[case]
    store = folder.with_name(f"{folder.name}.store")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", shape)
    state: dict[str, object] = {n: _placed(t, mesh, placements) for n, t in tensors().items()}
    if "state" in mode:
        moments = {f"state.{n}.exp_avg": t for n, t in state.items() if n.endswith(".w")}
        optim = {**moments, "param_groups.layers.0.w.lr": 0.1}
        state = {"model": state, "optim": optim, "step": 7, "rng": {"cpu": torch.zeros(3)}}
    if "safetensors" in mode:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

        state.pop("empty")
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(state, storage_writer=writer)
    elif "async" in mode:
        dcp.async_save(state, checkpoint_id=folder).result()
    else:
        dcp.save(state, checkpoint_id=folder)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        store.unlink(missing_ok=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _save(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
