"""A lane's buffers are reused and counted; what it merges is checked for NaN and Inf exactly."""

from pathlib import Path

import pytest
import torch

from merge_worker.checkpoint.reader import Files
from merge_worker.engine.buffers import Pool
from merge_worker.engine.lane import Lane, nonfinite
from merge_worker.engine.work import JointStep, join_steps, share
from merge_worker.method import Block, MergePass
from merge_worker.planning.plan import Plan
from merge_worker.planning.shards import PAGE
from merge_worker.planning.step import Piece
from merge_worker.system.ranks import Rank
from merge_worker.tensors.host import host_view
from support.checkpoint_factory import write_checkpoint
from support.recipes import one_tensor_models, plan_of

CPU = torch.device("cpu")


def joint(plan: Plan, name: str = "x") -> JointStep:
    """The work on one tensor of a plan."""
    work = join_steps([share(plan.steps, Rank(), {})])
    (step,) = (item.step for item in work if item.step.name == name)
    assert isinstance(step, JointStep)
    return step


class Copy(MergePass):
    """The first source."""

    def merge(self, block: Block, out: torch.Tensor) -> None:
        out.copy_(block.tensors[0])


def test_buffers_grow_and_are_reused() -> None:
    pool = Pool(CPU)
    first = pool.take("a", 10, "float32")
    assert first.dtype is torch.float32 and first.shape == (10,)
    assert pool.take("a", 5, "bfloat16").data_ptr() == first.data_ptr()
    assert pool.take("a", 20, "float32").numel() == 20
    assert pool.take("b", 3, "float64").data_ptr() != pool.take("a", 3, "float64").data_ptr()
    assert pool.size_with({}) == 80 + 24
    assert pool.size_with({"a": 100, "c": 1}) == 100 + 24 + 1
    pool.clear()
    assert pool.size_with({}) == 0


def test_aligned_buffers_begin_at_a_page_or_as_far_beyond_one_as_asked() -> None:
    pool = Pool(CPU, aligned=PAGE)
    assert pool.take("out", 9, "bfloat16").data_ptr() % PAGE == 0
    assert pool.take("out", 10_000, "bfloat16", shift=24).data_ptr() % PAGE == 24
    assert len(pool.memory("out", 20_000, 24)) == 20_000
    assert pool.size_with({}) == 20_024 + PAGE - 1


def test_host_views_are_the_memory_itself() -> None:
    buffer = torch.zeros(5, dtype=torch.uint8)
    view = host_view(buffer)
    view[1:3] = b"\x07\x08"
    assert buffer.tolist() == [0, 7, 8, 0, 0]
    assert len(host_view(torch.zeros(0, dtype=torch.uint8))) == 0


@pytest.fixture
def big(tmp_path: Path) -> JointStep:
    models = one_tensor_models(tmp_path, 600_000)
    return joint(plan_of(models), "big")


@pytest.mark.parametrize("staged", [False, True])
def test_load_reads_the_piece_of_every_source(big: JointStep, staged: bool) -> None:
    lane = Lane(CPU, Files(), staged)
    loaded = lane.load(big, Piece(1, 2))
    for info, values in zip(big.sources, loaded.sources, strict=True):
        raw = Path(info.file).read_bytes()
        first, last = (info.offset + n * 2 * big.grid.block for n in (1, 3))
        assert bytes(values.view(torch.uint8).tolist()) == raw[first:last]
    assert (lane.on_device is lane.host) == (not staged)


def test_staging_changes_nothing(big: JointStep) -> None:
    results = []
    for staged in (False, True):
        lane = Lane(CPU, Files(), staged)
        piece = Piece(2, big.grid.blocks - 2)  # the last block is short
        part = Piece(3, big.grid.blocks - 3)
        for loaded in (lane.load(big, piece), None)[: 1 if staged else 2]:
            ((merged, bad),) = lane.merge(big, part, loaded, [Copy()])
            assert bad == 0
            results.append(bytes(merged))
    assert len(set(results)) == 1
    raw = Path(big.sources[0].file).read_bytes()
    first = big.sources[0].offset + 3 * 2 * big.grid.block
    assert results[0] == raw[first : big.sources[0].offset + big.grid.count * 2]


def test_copies_are_read_to_where_direct_writes_take_them_from(big: JointStep) -> None:
    """At the offset from a page that they have in the file, or the page cache takes them."""
    own, piece = big.members[0].step, Piece(1, 1)
    values, data = Lane(CPU, Files()).read_to_copy(own, piece)
    assert values.data_ptr() % PAGE == own.file_offset(piece) % PAGE
    first = own.sources[0].offset + 2 * own.grid.block
    assert bytes(data) == Path(own.sources[0].file).read_bytes()[first : first + len(data)]


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ([1.0, float("nan"), 2.0], 1),
        ([float("inf"), 1.0, float("-inf")], 2),
        ([float("inf"), float("nan"), float("nan")], 3),
        ([3e38, 3e38, 3e38], 0),  # the sum overflows, the values do not
        ([-3e38, 3e38, 0.0], 0),
    ],
)
def test_counts_what_is_not_finite(tmp_path: Path, values: list[float], bad: int) -> None:
    write_checkpoint(tmp_path / "m", {"x": torch.tensor(values)})
    step = joint(plan_of([tmp_path / "m"]))
    lane = Lane(CPU, Files())
    ((_, counted),) = lane.merge(step, Piece(0, 1), None, [Copy()])
    assert counted == bad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_large_finite_values_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    largest = torch.full((1000,), torch.finfo(dtype).max, dtype=dtype)
    write_checkpoint(tmp_path / "m", {"x": largest})
    step = joint(plan_of([tmp_path / "m"]))
    lane = Lane(CPU, Files())
    ((_, counted),) = lane.merge(step, Piece(0, 1), None, [Copy()])
    assert counted == 0


def test_rows_where_rows_count(tmp_path: Path, centered_method: None) -> None:
    recipe = "merge_method: centered\nparameters: {cut: row}\nmodels:\n- model: m\n"
    write_checkpoint(tmp_path / "m", {"x": torch.arange(24.0).reshape(4, 3, 2)})
    from merge_worker.planning.options import PlanOptions
    from merge_worker.planning.plan import make_plan
    from merge_worker.recipe import parse

    step = joint(make_plan(parse(recipe), PlanOptions(relative_to=tmp_path, block=12)))
    lane = Lane(CPU, Files())
    for loaded in (lane.load(step, Piece(0, 2)), None):
        blocks = lane.blocks(step, Piece(0, 2), loaded)
        seen = [(b.start, b.tensors[0].shape, b.tensors[0][0, 0].item()) for b in blocks]
        assert seen == [(0, (2, 6), 0.0), (12, (2, 6), 12.0)]


def test_make_room_keeps_what_fits_and_lets_go_of_what_does_not(big: JointStep) -> None:
    lane = Lane(CPU, Files())
    piece = Piece(0, 1)
    lane.load(big, piece)
    size = lane.host.size_with({})
    lane.make_room(big, piece, 1 << 30)
    assert lane.host.size_with({}) == size
    lane.make_room(big, piece, size - 1)
    assert lane.host.size_with({}) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_nan_and_inf_are_counted_exactly(dtype: torch.dtype) -> None:
    largest = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    assert nonfinite(largest) == 0  # though the sum overflows
    assert nonfinite(torch.empty(0, dtype=dtype)) == 0
    for values in ([float("nan")], [float("inf"), float("-inf")], [float("inf"), 1.0, 2.0]):
        bad = sum(not torch.tensor(value).isfinite() for value in values)
        assert nonfinite(torch.tensor([1.0, *values], dtype=dtype)) == bad
