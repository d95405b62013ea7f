"""Ranks of a training that save and load with torch.distributed.checkpoint: processes with gloo.

Run as a program it is one of the ranks: `python dcp_ranks.py save|load FOLDER MESH RANK`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from math import prod
from pathlib import Path

import torch
from torch import Tensor

CHECKPOINTS = 4
SHAPES = {
    "layers.0.w": (24, 40),
    "layers.0.uneven": (7, 9),
    "experts.w": (4, 6, 10),
    "norm.weight": (13,),
    "scalar": (),
}


def tensors(step: int) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: close to those of all others."""
    random = torch.Generator().manual_seed(1)
    first = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    random.manual_seed(100 + step)
    moved = {n: t + 0.1 * torch.randn(t.shape, generator=random) for n, t in first.items()}
    return {n: t.bfloat16() if n.startswith("layers") else t for n, t in moved.items()}


def run_ranks(what: str, folder: Path, mesh: str) -> None:
    """Save CHECKPOINTS below a folder, or load the one in it into a mesh such as `2x2`."""
    world = prod(map(int, mesh.split("x")))
    command = [sys.executable, __file__, what, str(folder), mesh]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(world)]
    codes = [rank.wait(timeout=240) for rank in ranks]
    assert codes == [0] * world, codes


def loaded(folder: Path, mesh: str) -> dict[str, Tensor]:
    """Return what the ranks of a mesh have together after loading."""
    run_ranks("load", folder, mesh)
    result: dict[str, Tensor] = torch.load(folder.with_name(f"{folder.name}-{mesh}.pt"))
    return result


def _state(step: int, mesh: object, axes: int, empty: bool) -> dict[str, object]:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    state: dict[str, object] = {}
    for name, tensor in tensors(step).items():
        tensor = torch.full_like(tensor, 9.0) if empty else tensor
        cut = [Shard(n) if n < tensor.dim() else Replicate() for n in range(axes)]
        state[name] = distribute_tensor(tensor, mesh, cut) if tensor.shape else tensor  # type: ignore[arg-type]
    return {"model": state}


def _rank(what: str, folder: Path, shape: tuple[int, ...], rank: int) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh

    name = "x".join(map(str, shape))
    store = folder.with_name(f"{folder.name}.{what}.{name}.store")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=prod(shape)
    )
    mesh = init_device_mesh("cpu", shape)
    if what == "save":
        for step in range(CHECKPOINTS):
            dcp.save(_state(step, mesh, len(shape), False), checkpoint_id=folder / f"step{step}")
    else:
        state = _state(0, mesh, len(shape), True)
        dcp.load(state, checkpoint_id=folder)
        whole = {
            name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            for name, tensor in state["model"].items()  # type: ignore[attr-defined]
        }
        if rank == 0:
            torch.save(whole, folder.with_name(f"{folder.name}-{name}.pt"))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    extents = tuple(map(int, sys.argv[3].split("x")))
    _rank(sys.argv[1], Path(sys.argv[2]), extents, int(sys.argv[4]))
