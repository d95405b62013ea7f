"""Derived tensors stream like stored ones: same lanes, memory bound and result."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from merge_worker.output.store import PartialOutput
from merge_worker.planning.plan import Plan
from merge_worker.tensors.source import (
    BufferSize,
    DerivedTensor,
    Reader,
    buffer_size,
    bytes_read,
    stored_inputs,
)
from support.checkpoint_factory import write_checkpoint
from support.recipes import engine_for, plan_of, work_of


@dataclass(frozen=True)
class Doubled(DerivedTensor):
    """A derived tensor: twice its input."""

    def read_into(
        self, reader: Reader, start: int, stop: int, out: torch.Tensor, slot: str
    ) -> None:
        out.copy_(reader.read(self.inputs[0], start, stop, slot + "0")).mul_(2)

    def fingerprint(self) -> object:
        return 2

    def buffer_size(self) -> BufferSize:
        return buffer_size(self.inputs[0])


def two_models(folder: Path, first: torch.Tensor, second: torch.Tensor) -> Plan:
    tensors = {"a": first, "b": second}
    return plan_of([write_checkpoint(folder / name, {"w": w}) for name, w in tensors.items()])


def doubled(plan: Plan) -> Plan:
    """Return the plan with its first source doubled."""
    steps = []
    for step in plan.steps:
        first = step.sources[0]
        twice = Doubled(first.name, first.dtype, first.shape, (first,))
        steps.append(replace(step, sources=(twice, *step.sources[1:])))
    return replace(plan, steps=tuple(steps))


@pytest.mark.parametrize("staged", [False, True])
def test_a_derived_source_is_merged_like_a_stored_one(tmp_path: Path, staged: bool) -> None:
    first, second = torch.randn(300, 1000), torch.randn(300, 1000)
    plan = doubled(two_models(tmp_path, first, second))
    store = PartialOutput(tmp_path / "out", plan)
    store.open_or_resume()
    store.open()
    engine_for(plan, store, staged=staged).run(work_of(plan, store))
    store.close()
    shard = plan.layout.shards[0]
    raw = (store.folder / f"{shard.name}.partial").read_bytes()[len(shard.header) :]
    merged = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(300, 1000)
    expected = (first.double() * 2 + second.double()) / 2
    assert torch.equal(merged, expected.float())


def test_traffic_and_memory_count_the_inputs(tmp_path: Path) -> None:
    plan = doubled(two_models(tmp_path, torch.zeros(8), torch.zeros(8)))
    twice = plan.steps[0].sources[0]
    assert bytes_read(twice) == 32 and [info.name for info in stored_inputs(twice)] == ["w"]
    assert buffer_size(twice) == BufferSize(8)
    assert buffer_size(plan.steps[0].sources[1]) == BufferSize(4)
