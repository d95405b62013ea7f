"""The engine: the same bytes however it is cut, passes in order, errors and stops from any lane."""

import dataclasses
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_worker.errors import InputError, OutputError, ResultError, Stopped, UsageError
from merge_worker.method import Block
from merge_worker.output.store import PartialOutput
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import (
    average,
    engine_for,
    finish_into,
    one_tensor_models,
    plan_of,
    shards_of,
    some_models,
    stream_into,
    work_of,
)

METHODS = ["linear", "centered"]
pytestmark = pytest.mark.usefixtures("centered_method")


@pytest.fixture
def big(tmp_path: Path) -> list[Path]:
    """Two models with a tensor of 24 blocks and some small ones."""
    return one_tensor_models(tmp_path, 3_100_000)


def reference(tmp_path: Path, models: list[Path], method: str) -> dict[str, int]:
    out = tmp_path / f"reference-{method}"
    assert average(out, models, "--method", method, "--threads", 1, "--memory", "1GiB") == 0
    return shards_of(out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        ("--threads", 1, "--memory", "1500KiB"),  # a block at a time
        ("--threads", 2, "--memory", "20MiB"),
        ("--threads", 4),
        ("--threads", 4, "--memory", "9MiB"),
        ("--threads", 16, "--memory", "100MiB"),
    ],
)
def test_threads_and_memory_change_no_bit(
    tmp_path: Path, big: list[Path], method: str, options: tuple[object, ...]
) -> None:
    assert average(tmp_path / "out", big, "--method", method, *options) == 0
    assert shards_of(tmp_path / "out") == reference(tmp_path, big, method)


@pytest.mark.parametrize("method", METHODS)
def test_staging_changes_no_bit(tmp_path: Path, big: list[Path], method: str) -> None:
    plan = plan_of(big, method, memory_bytes=20 << 20, threads=2)
    stream_into(tmp_path / "out", plan, staged=True)
    finish_into(tmp_path / "out", plan)
    assert shards_of(tmp_path / "out") == reference(tmp_path, big, method)


def test_the_grid_matters_to_no_element_wise_sum(tmp_path: Path, big: list[Path]) -> None:
    plan = plan_of(big, block=1 << 14)
    stream_into(tmp_path / "out", plan)
    finish_into(tmp_path / "out", plan)
    assert shards_of(tmp_path / "out") == reference(tmp_path, big, "linear")


def test_passes_see_the_whole_tensor_in_order(tmp_path: Path, big: list[Path]) -> None:
    assert average(tmp_path / "out", big, "--method", "centered", "--memory", "2MiB") == 0
    merged = read_tensors(tmp_path / "out")
    inputs = [read_tensors(model) for model in big]
    for name, values in merged.items():
        mean = torch.stack([one[name].double() for one in inputs]).mean(0)
        mean = mean - mean.mean()
        expected = mean / mean.abs().max()
        assert (values.double() - expected).abs().max() < 0.005, name
        assert values.abs().max() == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_resumed_with_holes_anywhere(tmp_path: Path, big: list[Path], method: str) -> None:
    """Partial work of several passes: all of the tensor is looked at, the rest is written."""
    expected = reference(tmp_path, big, method)
    chance = random.Random(method)
    out = tmp_path / "out"
    for turn in range(4):
        threads, memory = chance.choice([(1, 2), (2, 20), (4, 9)])
        plan = plan_of(big, method, memory_bytes=memory << 20, threads=threads)
        if turn < 3:
            with pytest.raises(Stopped, match="enough at"):
                stream_into(out, plan, stop_after=chance.randrange(1, 5))
            journals = list((out / ".merge-partial").glob("journal-*"))
            lines = journals[-1].read_bytes().splitlines(keepends=True)
            journals[-1].write_bytes(b"".join(chance.sample(lines, len(lines) // 2)))
        else:
            stream_into(out, plan)
    finish_into(out, plan)
    assert shards_of(out) == expected


def test_what_is_done_is_not_done_again(tmp_path: Path, big: list[Path]) -> None:
    plan = plan_of(big)
    stream_into(tmp_path / "out", plan)
    again = stream_into(tmp_path / "out", plan)
    assert again.progress.bytes_in == again.progress.bytes_out == 0


def test_empty_scalar_and_copied_tensors(tmp_path: Path) -> None:
    models = some_models(tmp_path)
    assert average(tmp_path / "out", models) == 0
    merged, first = read_tensors(tmp_path / "out"), read_tensors(models[0])
    assert {n: t.shape for n, t in merged.items()} == {n: t.shape for n, t in first.items()}
    assert torch.equal(merged["position_ids"], first["position_ids"])
    assert torch.equal(merged["mask"], first["mask"])


def test_a_checkpoint_of_nothing_but_empty_tensors(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"z": torch.zeros(0, 3), "y": torch.zeros(2, 0)})
    assert average(tmp_path / "out", [tmp_path / "m"]) == 0
    assert read_tensors(tmp_path / "out")["z"].shape == (0, 3)


def test_stop_before_the_first_piece(tmp_path: Path, big: list[Path]) -> None:
    plan = plan_of(big)
    store = PartialOutput(tmp_path / "out", plan)
    store.open_or_resume()
    store.open()
    engine = engine_for(plan, store)
    engine.stop.set("stopped by SIGTERM")
    with pytest.raises(Stopped, match="stopped by SIGTERM at 0 %; finished work is kept"):
        engine.run(work_of(plan, store))
    store.close()


@pytest.mark.parametrize("place", ["read", "collect", "next_pass", "merge", "write"])
def test_an_error_in_any_lane_ends_all_of_them(
    tmp_path: Path, big: list[Path], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge_worker.checkpoint.reader import Files
    from support import two_pass_method

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    targets: dict[str, tuple[Any, str]] = {
        "read": (Files, "read"),
        "collect": (two_pass_method.Mean, "collect"),
        "next_pass": (two_pass_method.Mean, "next_pass"),
        "merge": (two_pass_method.Scaled, "merge"),
        "write": (PartialOutput, "write"),
    }
    monkeypatch.setattr(*targets[place], fail)
    threads = threading.active_count()
    plan = plan_of(big, "centered", memory_bytes=9 << 20, threads=4)
    with pytest.raises(RuntimeError, match="broken"):
        stream_into(tmp_path / "out", plan)
    assert threading.active_count() == threads


def test_an_input_that_shrinks_meanwhile(tmp_path: Path, big: list[Path]) -> None:
    plan = plan_of(big)
    path = big[1] / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 100)
    with pytest.raises(InputError, match="was it replaced"):
        stream_into(tmp_path / "out", plan)


def test_the_disk_is_full(tmp_path: Path, big: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset > 1_000_000:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    expected = reference(tmp_path, big, "linear")
    plan = plan_of(big, threads=4)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            stream_into(tmp_path / "out", plan)
    assert "run the same command to resume" in str(caught.value)
    stream_into(tmp_path / "out", plan)
    finish_into(tmp_path / "out", plan)
    assert shards_of(tmp_path / "out") == expected


def test_short_writes_are_continued(
    tmp_path: Path, big: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:99_999], at))
    assert average(tmp_path / "out", big) == 0
    monkeypatch.undo()
    from support import two_pass_method

    before = two_pass_method.register()
    assert shards_of(tmp_path / "out") == reference(tmp_path, big, "linear")
    two_pass_method.restore(before)


def test_nan_names_the_tensor_and_the_file_it_is_from(tmp_path: Path) -> None:
    tensors = {"fine": torch.ones(5), "bad\x1b": torch.tensor([1.0, float("nan"), float("inf")])}
    good = {"fine": torch.ones(5), "bad\x1b": torch.ones(3)}
    write_checkpoint(tmp_path / "good", good)
    write_checkpoint(tmp_path / "bad", tensors)
    with pytest.raises(ResultError) as caught:
        stream_into(tmp_path / "out", plan_of([tmp_path / "good", tmp_path / "bad"]))
    text = str(caught.value)
    assert "2 values of the result are NaN or Inf" in text
    assert f"{tmp_path / 'bad' / 'model.safetensors'} has 2 NaN or Inf there" in text
    assert str(tmp_path / "good") not in text
    assert "bad\\x1b" in text and "\x1b" not in text


def test_blocks_carry_no_more_than_their_fields() -> None:
    assert [f.name for f in dataclasses.fields(Block)] == ["tensors", "start", "scratch"]


@pytest.mark.parametrize("method", METHODS)
def test_a_device_without_memory_gets_half_as_much_at_a_time(
    tmp_path: Path, big: list[Path], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge_worker.engine.lane import Lane

    load, refused = Lane.load, 0

    def small(self: Lane, step: Any, piece: Any) -> Any:
        nonlocal refused
        if piece.blocks > 2:
            refused += 1
            raise torch.cuda.OutOfMemoryError("device out of memory")
        return load(self, step, piece)

    expected = reference(tmp_path, big, method)
    monkeypatch.setattr(Lane, "load", small)
    plan = plan_of(big, method)
    stream_into(tmp_path / "out", plan, staged=True)
    finish_into(tmp_path / "out", plan)
    assert refused and shards_of(tmp_path / "out") == expected


def test_a_device_without_memory_for_one_block(
    tmp_path: Path, big: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge_worker.engine.lane import Lane

    def none(*_: object) -> Any:
        raise torch.cuda.OutOfMemoryError("device out of memory")

    monkeypatch.setattr(Lane, "load", none)
    with pytest.raises(UsageError, match="no memory left for one block"):
        stream_into(tmp_path / "out", plan_of(big), staged=True)


def test_inputs_larger_than_memory_are_forgotten_behind(
    tmp_path: Path, big: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from merge_worker.checkpoint.reader import Files
    from merge_worker.engine import one_pass

    dropped: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Files, "done_with", lambda self, *words: dropped.append(words))
    average(tmp_path / "kept", big)
    assert not dropped
    monkeypatch.setattr(one_pass, "_memory_bytes", lambda: 1000)
    average(tmp_path / "out", big)
    plan = plan_of(big)
    ranges = [(s.file, s.offset, s.nbytes) for step in plan.steps for s in step.sources]
    assert sorted(dropped) == sorted(ranges)
