"""Where the routers of a model lie in its files. Nothing is changed here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checkpoint.folder import Checkpoint
from ..conversion.in_memory import in_memory
from ..errors import InputError
from ..messages import printable
from ..tensors.source import StoredTensor
from .mixture import Router


class Patch(NamedTuple):
    """Bytes to write into a file of the model folder."""

    file: str
    offset: int
    data: bytes


def stored_routers(model: Checkpoint, routers: Sequence[Router]) -> dict[str, StoredTensor]:
    """Return the tensor on disk of each router by its name in memory. Raises InputError.

    The values in the files have to be those in memory, or the mapping of names is wrong.
    """
    found = in_memory(model.tensors, model.config)
    places = {}
    for router in routers:
        holders = found.holders.get(router.name, ())
        names = [router.name, *([holders[0][0]] if len(holders) == 1 == len(holders[0]) else [])]
        sources = [model.tensors[name] for name in names if name in model.tensors]
        source = next((s for s in sources if isinstance(s, StoredTensor)), None)
        if source is None or source.shape != tuple(router.parameter.shape):
            raise InputError(f"{model.path}: router '{printable(router.name)}' not in its files")
        if not source.file.endswith(".safetensors"):
            raise InputError(
                f"{source.file}: only files of safetensors can be changed in place\n"
                f"  convert the model first: merge-worker average OUT MODEL"
            )
        stored = read_values(source)
        here = router.parameter.detach().cpu()
        if not torch.equal(stored.to(here.dtype), here):
            raise InputError(
                f"{source.file}: '{printable(source.name)}' is not the router that transformers "
                f"loads as '{printable(router.name)}'"
            )
        places[router.name] = source
    return places


def read_values(source: StoredTensor) -> Tensor:
    """Return a stored tensor in its dtype."""
    with Path(source.file).open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), source.nbytes, source.offset)
    dtype = getattr(torch, source.dtype.torch_name)
    return torch.frombuffer(bytearray(data), dtype=dtype).view(source.shape)


def patches(
    folder: Path, places: Mapping[str, StoredTensor], values: Mapping[str, Tensor]
) -> list[Patch]:
    """Return the bytes of new values, in the dtype that each router has on disk."""
    made = []
    for name, source in places.items():
        rounded = values[name].cpu().to(getattr(torch, source.dtype.torch_name)).contiguous()
        data = rounded.view(-1).view(torch.uint8).numpy().tobytes()
        made.append(Patch(Path(source.file).relative_to(folder).as_posix(), source.offset, data))
    return made
