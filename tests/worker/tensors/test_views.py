"""Views of tensors: any run of any view equals the result of torch's operations."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merge_worker.checkpoint.folder import open_checkpoint
from merge_worker.checkpoint.reader import Files
from merge_worker.engine.lane import Lane
from merge_worker.tensors.source import StoredTensor, TensorSource, buffer_size
from merge_worker.tensors.views import (
    concat,
    interleave,
    reshape,
    slice_axis,
    stack,
    strided,
    transpose,
)
from support.checkpoint_factory import write_checkpoint

A = torch.arange(4 * 6 * 10, dtype=torch.float32).view(4, 6, 10)
B = A + 1000
Case = tuple[Callable[[TensorSource, TensorSource], TensorSource], torch.Tensor]

CASES: dict[str, Case] = {
    "rows": (lambda a, b: slice_axis(a, 0, 1, 3, "x"), A[1:3]),
    "middle": (lambda a, b: slice_axis(a, 1, 2, 5, "x"), A[:, 2:5]),
    "columns": (lambda a, b: slice_axis(a, 2, 3, 10, "x"), A[:, :, 3:]),
    "every other column": (lambda a, b: strided(a, 2, 2, 1, "x"), A[:, :, 1::2]),
    "every third row": (lambda a, b: strided(a, 1, 3, 2, "x"), A[:, 2::3]),
    "joined rows": (lambda a, b: concat([a, b], 0, "x"), torch.cat([A, B])),
    "joined columns": (lambda a, b: concat([a, b, a], 2, "x"), torch.cat([A, B, A], 2)),
    "joined unequal": (
        lambda a, b: concat([slice_axis(a, 1, 0, 5, "x"), slice_axis(b, 1, 5, 6, "x")], 1, "x"),
        torch.cat([A[:, :5], B[:, 5:]], 1),
    ),
    "stacked": (lambda a, b: stack([a, b], "x"), torch.stack([A, B])),
    "interleaved": (
        lambda a, b: interleave([a, b], 2, "x"),
        torch.stack([A, B], 3).reshape(4, 6, 20),
    ),
    "transposed": (lambda a, b: transpose(a, "x"), A.transpose(1, 2)),
    "back again": (lambda a, b: transpose(transpose(a, "x"), "x"), A),
    "stack of transposed columns": (
        lambda a, b: stack([transpose(strided(s, 2, 2, 0, "x"), "x") for s in (a, b)], "x"),
        torch.stack([A[:, :, ::2], B[:, :, ::2]]).transpose(2, 3),
    ),
    "columns of what is joined": (
        lambda a, b: slice_axis(concat([a, b], 2, "x"), 2, 5, 15, "x"),
        torch.cat([A, B], 2)[:, :, 5:15],
    ),
    "another shape": (
        lambda a, b: reshape(transpose(a, "x"), (40, 6), "x"),
        A.transpose(1, 2).reshape(40, 6),
    ),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[TensorSource, TensorSource]:
    folder = write_checkpoint(tmp_path_factory.mktemp("views") / "m", {"a": A, "b": B})
    tensors = open_checkpoint(folder).tensors
    return tensors["a"], tensors["b"]


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=40)
@given(data=st.data())
def test_any_run(case: str, stored: tuple[TensorSource, TensorSource], data: st.DataObject) -> None:
    make, expected = CASES[case]
    view = make(*stored)
    assert (view.shape, view.name) == (tuple(expected.shape), "x")
    start = data.draw(st.integers(0, view.count))
    stop = data.draw(st.integers(start, view.count))
    lane = Lane(torch.device("cpu"), Files())
    got = lane.read(view, start, stop, "in0")
    assert torch.equal(got, expected.reshape(-1)[start:stop])
    # A lane allocates exactly the announced memory, or the memory bound would not hold.
    announced = buffer_size(view)
    assert lane.host.size_with({}) <= announced.per_element * (stop - start) + announced.fixed
    lane.files.close()


def test_a_run_of_a_stored_tensor_is_a_stored_tensor(
    stored: tuple[TensorSource, TensorSource],
) -> None:
    assert isinstance(slice_axis(stored[0], 0, 1, 2, "x"), StoredTensor)


def test_views_of_views_are_views(stored: tuple[TensorSource, TensorSource]) -> None:
    pairs = [concat([s, s], 0, "x") for s in stored]
    assert stack(pairs, "x").inputs == (stored[0], stored[0], stored[1], stored[1])  # type: ignore[union-attr]


def test_mixed_dtypes_are_promoted(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3).bfloat16(), "b": torch.randn(3).half()}
    stored = open_checkpoint(write_checkpoint(tmp_path / "m", tensors)).tensors
    lane = Lane(torch.device("cpu"), Files())
    got = lane.read(concat([stored["a"], stored["b"]], 0, "x"), 0, 6, "in0")
    assert torch.equal(got, torch.cat([tensors["a"].float(), tensors["b"].float()]))


def test_shapes_that_do_not_fit_are_named(stored: tuple[TensorSource, TensorSource]) -> None:
    short = slice_axis(stored[1], 1, 0, 5, "b")
    with pytest.raises(ValueError, match=r"a is \[4, 6, 10\], but b is \[4, 5, 10\]"):
        stack([stored[0], short], "x")
    with pytest.raises(ValueError, match="no two axes"):
        transpose(reshape(stored[0], (240,), "v"), "x")
