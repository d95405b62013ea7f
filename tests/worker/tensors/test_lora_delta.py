"""Rows of an adapted tensor: the same bits for every run, and accurate against float64."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_worker.dtypes import from_torch_name
from merge_worker.tensors import lora_delta
from merge_worker.tensors.lora_delta import LoraTensor
from merge_worker.tensors.source import StoredTensor, TensorSource


@dataclass
class Memory:
    """A reader of tensors in memory; each slot is one reused buffer, as in a lane."""

    tensors: dict[str, Tensor]
    slots: dict[str, Tensor] = field(default_factory=dict)

    def read(self, source: TensorSource, start: int, stop: int, slot: str) -> Tensor:
        values = self.tensors[source.name].reshape(-1)[start:stop]
        buffer = self.slots.get(slot)
        if buffer is None or buffer.numel() < values.numel() or buffer.dtype != values.dtype:
            self.slots[slot] = values.clone()
        else:
            buffer[: values.numel()].copy_(values)
        return self.slots[slot][: values.numel()]


def info(name: str, tensor: Tensor) -> StoredTensor:
    dtype = from_torch_name(str(tensor.dtype))
    return StoredTensor(name, dtype, tuple(tensor.shape), "file", 0, tensor.nbytes)


def case(kind: str) -> tuple[LoraTensor, Memory, Tensor]:
    """Return an adapted tensor of 3 experts, or of a matrix, and its exact value in float64."""
    torch.manual_seed(0)
    rows, columns, rank = 53, 37, 5
    experts = 3 if kind == "experts" else 1
    transposed = kind in ("transposed", "transposed_dora")
    a, b = torch.randn(experts * rank, columns), torch.randn(rows, rank * experts)
    base = torch.randn(experts, rows, columns)
    deltas = [
        b[:, e::experts].double() @ a[e * rank : (e + 1) * rank].double() for e in range(experts)
    ]
    if transposed:
        base, deltas = base.mT.contiguous(), [delta.mT for delta in deltas]
    expected = base.double() + 0.5 * torch.stack(deltas)
    tensors = {"w": base, "a": a, "b": b}
    if kind.endswith("dora"):
        dim = 1 if transposed else 2
        norms = expected.norm(dim=dim, keepdim=True)
        tensors["m"] = torch.rand(norms.shape).view(-1) + 0.5
        expected = expected / norms * tensors["m"].double().view(norms.shape)
    parts = tuple(info(name, tensor) for name, tensor in tensors.items())
    sheet = (base.shape[1], base.shape[2])
    how: dict[str, Any] = {
        "sheet": sheet,
        "scale": 0.5,
        "experts": experts,
        "transposed": transposed,
    }
    adapted = LoraTensor("w", from_torch_name("float32"), tuple(base.shape), parts, **how)
    return adapted, Memory(tensors), expected


@pytest.mark.parametrize("kind", ["plain", "transposed", "dora", "transposed_dora", "experts"])
@pytest.mark.parametrize("chunk", [1, 200, 1 << 17])
def test_every_run_has_the_bits_of_the_whole(
    kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_delta, "CHUNK", chunk)
    adapted, memory, expected = case(kind)
    whole = torch.empty(adapted.count)
    adapted.read_into(memory, 0, adapted.count, whole, "s.")
    assert torch.allclose(whole.double(), expected.reshape(-1), rtol=1e-5, atol=1e-5)
    choose = random.Random(0)
    for _ in range(60):
        start = choose.randrange(adapted.count)
        stop = choose.randint(start + 1, adapted.count)
        part = torch.empty(stop - start)
        adapted.read_into(memory, start, stop, part, "s.")
        assert part.equal(whole[start:stop]), (start, stop)
