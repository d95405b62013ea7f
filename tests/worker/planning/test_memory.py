"""`--memory` is a bound: what the plan promises is what the lanes take."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.engine import stream
from merge_worker.engine.buffers import Pool
from merge_worker.engine.lane import Lane
from merge_worker.engine.work import JointStep, Member
from merge_worker.planning.memory import DEFAULT_BYTES, budget, step_buffers
from merge_worker.planning.step import Step
from support.checkpoint_factory import write_checkpoint
from support.recipes import average, one_tensor_models, plan_of, run, step, stream_into

MIB = 1 << 20


steps = st.builds(
    step,
    st.integers(0, 1 << 24),
    st.sampled_from([1 << 10, 1 << 17, 1 << 22]),
    st.lists(st.sampled_from(["F32", "BF16", "F64"]), min_size=1, max_size=5).map(tuple),
    st.integers(1, 3),
    st.integers(0, 32),
)


@given(st.lists(steps, min_size=1, max_size=5), st.integers(MIB, 1 << 30), st.integers(1, 64))
def test_the_bound_holds_unless_a_block_forces_more(
    steps: list[Step], total: int, threads: int
) -> None:
    memory = budget(steps, total, threads)
    assert 1 <= memory.lanes <= 2 * max(threads, 1)
    for planned in steps:
        blocks = memory.piece_blocks(planned)
        assert blocks >= 1
        block = min(planned.grid.block, planned.grid.count)
        elements = min(blocks * block, planned.grid.count)
        taken = elements * step_buffers(planned).per_element + block * planned.scratch
        assert taken * memory.lanes <= memory.bound
    if memory.bound > total:
        assert memory.forced_by in {planned.name for planned in steps}
        assert memory.lanes == 1
    else:
        assert memory.forced_by is None


def test_more_lanes_than_threads_but_fewer_when_blocks_are_large() -> None:
    small = [step(1 << 20, 1 << 17, ("BF16", "BF16"))]
    assert budget(small, None, 4).lanes == 5
    assert budget(small, None, 4).bound <= DEFAULT_BYTES
    large = [step(1 << 22, 1 << 22, ("F32", "F32"))]  # 48 MiB a block
    assert budget(large, 100 * MIB, 4).lanes == 2
    assert budget(large, 10 * MIB, 4).lanes == 1
    assert budget(large, 10 * MIB, 4).forced_by == large[0].name


@pytest.mark.parametrize(("results", "lanes"), [(1, 4), (2, 4), (3, 6), (5, 8), (40, 8)])
def test_more_lanes_wait_where_each_has_several_results_to_write(results: int, lanes: int) -> None:
    own = step(1 << 24, 1 << 17, ("BF16", "BF16"))
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    joint = JointStep(**fields, members=(Member(0, 0, own),) * results)
    memory = budget([joint], None, 2)
    assert (memory.lanes, memory.processes, memory.computing) == (lanes, 2, 2)
    assert memory.bound <= DEFAULT_BYTES


def test_one_read_goes_in_pieces_of_a_mebibyte_and_several_reads_in_large_ones() -> None:
    once = step(1 << 24, 1 << 17, ("BF16", "BF16"))
    thrice = step(1 << 22, 1 << 17, ("BF16", "BF16"), reads=3)
    memory = budget([once, thrice], None, 2)
    assert memory.piece_blocks(once) == 4
    assert memory.piece_blocks(thrice) == 32, "all passes in memory"


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[Lane]:
    """Every lane that runs while the test lasts."""
    lanes: list[Lane] = []

    class Watched(Lane):
        def __init__(self, *words: Any, **named: Any) -> None:
            super().__init__(*words, **named)
            lanes.append(self)

    monkeypatch.setattr(stream, "Lane", Watched)
    return lanes


def taken_by(lane: Lane) -> int:
    pools = {id(pool): pool for pool in (lane.host, lane.on_device, lane.landing, lane.scratch)}
    return sum(buffer.numel() for pool in pools.values() for buffer in pool._slots.values())


@pytest.mark.parametrize("memory", ["2MiB", "64MiB"])
@pytest.mark.parametrize("method", ["linear", "centered"])
@pytest.mark.usefixtures("centered_method")
def test_lanes_take_no_more_than_the_bound(
    tmp_path: Path, lanes: list[Lane], memory: str, method: str
) -> None:
    models = one_tensor_models(tmp_path, 3_000_000, count=3)
    assert average(tmp_path / "out", models, "--method", method, "--memory", memory) == 0
    bytes_asked = int(memory.removesuffix("MiB")) * MIB
    bound = plan_of(models, method, memory_bytes=bytes_asked).memory.bound
    assert bound <= bytes_asked or memory == "2MiB"
    assert 0 < sum(taken_by(lane) for lane in lanes) <= bound


@pytest.mark.usefixtures("centered_method")
def test_tensors_of_other_proportions_do_not_add_up(tmp_path: Path, lanes: list[Lane]) -> None:
    # Wide then narrow, narrow then wide: each slot's largest request is of another tensor.
    for number, kinds in enumerate([("float32", "bfloat16"), ("bfloat16", "float32")]):
        tensors = {
            f"t{i}": torch.randn(1_500, 1_000).to(getattr(torch, kind))
            for i, kind in enumerate(kinds)
        }
        write_checkpoint(tmp_path / f"m{number}", tensors)
    models = [tmp_path / "m0", tmp_path / "m1"]
    words = ("--method", "centered", "--memory", "24MiB", "--threads", "1")
    assert average(tmp_path / "out", models, *words) == 0
    bound = plan_of(models, "centered", memory_bytes=24 * MIB, threads=1).memory.bound
    assert sum(taken_by(lane) for lane in lanes) <= bound


@pytest.mark.usefixtures("centered_method")
def test_staged_lanes_hold_the_bound_on_both_sides_and_keep_their_buffers(
    tmp_path: Path, lanes: list[Lane], monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[Pool] = []
    monkeypatch.setattr(Pool, "clear", cleared.append)
    models = one_tensor_models(tmp_path, 4_000_000, count=3)
    plan = plan_of(models, "centered", memory_bytes=12 * MIB, threads=1)
    stream_into(tmp_path / "out", plan, staged=True)
    most = plan.memory.bound // plan.memory.lanes
    for lane in lanes:
        assert 0 < lane.host.size_with({}) + lane.landing.size_with({}) <= most
        assert lane.on_device.size_with({}) + lane.scratch.size_with({}) <= most
    assert cleared == [], "pinning memory again for every piece would cost more than the merge"


@pytest.mark.usefixtures("centered_method")
def test_whole_tensors_force_more_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = one_tensor_models(tmp_path, 2_000_000)
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: centered\nparameters: {cut: tensor}\nmodels:\n"
        + "".join(f"- model: {model}\n" for model in models)
    )
    assert run("check", recipe, "--memory", "4MiB") == 0
    assert "(needed by big)" in capsys.readouterr().out


def test_reads_in_flight_are_lanes_that_read_whole_pieces() -> None:
    planned = [step(1 << 24, 1 << 17, ("BF16", "BF16"))]
    for reads, lanes, processes in ((1, 1, 1), (2, 2, 1), (16, 16, 2), (17, 16, 2)):
        memory = budget(planned, None, 2, reads_in_flight=reads)
        assert (memory.lanes, memory.processes) == (lanes, processes)
        assert memory.large_reads and memory.bound <= DEFAULT_BYTES
    assert budget(planned, 4 * MIB, 2, reads_in_flight=64).bound <= 4 * MIB
    assert not budget(planned, None, 2).large_reads
