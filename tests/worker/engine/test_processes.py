"""Several processes for one run: the same bytes, every error once, and nobody is left behind."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from merge_worker.engine import processes
from merge_worker.engine.processes import batches, can_fork
from merge_worker.engine.work import Work
from merge_worker.planning.memory import MOST_PROCESSES, budget
from merge_worker.planning.step import Piece
from support.checkpoint_factory import write_checkpoint
from support.forked_process import Fork, Forks
from support.recipes import manifest, run, shards_of, step

LAYERS = 40
OPTIONS = ("--threads", 3, "--progress", "off")  # three processes


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("crew")
    models = []
    for seed in range(3):
        chance = torch.Generator().manual_seed(seed)
        shapes = {"embed": (900, 400), "norm": (400,)}
        shapes |= {f"layers.{i}": (300, 400) for i in range(LAYERS)}
        tensors = {
            name: torch.randn(shape, generator=chance).to(torch.bfloat16)
            for name, shape in shapes.items()
        }
        models.append(write_checkpoint(folder / f"m{seed}", tensors, shards=3))
    return models


@pytest.fixture(scope="module")
def recipe(inputs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "r.yml"
    listed = "".join(f"- model: {model}\n" for model in inputs[1:])
    head = f"merge_method: ties\nbase_model: {inputs[0]}\nparameters: {{weight: 1, density: 0.5}}"
    path.write_text(f"{head}\nmodels:\n{listed}")
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run("merge", recipe, out, "--threads", 1, "--progress", "off") == 0
    return shards_of(out)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]
    return []


def gone(pids: list[int]) -> bool:
    """Whether they have ended, if only their parent has not asked how."""
    alive = []
    for pid in pids:
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            alive.append(state != "Z")
    return not any(alive)


def until(condition: Callable[[], object], awaited: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, awaited
        time.sleep(0.005)


def at_work(fork: Fork, out: Path) -> list[int]:
    """The processes of a run, once there is something in its journal."""
    partial = out / ".merge-partial"
    until(lambda: any(p.stat().st_size for p in partial.glob("journal-*")), "the first piece")
    return children(fork.pid)


def slow(forks: Forks, *words: object, seconds: int = 2) -> Fork:
    """A run in which some writes take seconds, so that there is time to disturb it."""
    writing = "merge_worker.output.store PartialOutput.write"
    env = {"SIGNAL_IN": f"{writing} {signal.SIGCONT.value} {seconds}"}
    return forks.start(*words, env=env)


def test_the_same_bytes_and_all_is_counted(
    tmp_path: Path, forks: Forks, recipe: Path, whole: dict[str, int]
) -> None:
    ended = forks.start("merge", recipe, tmp_path / "out", "--threads", 3).wait()
    assert ended.code == 0, ended.err
    assert shards_of(tmp_path / "out") == whole
    written = manifest(tmp_path / "out")
    assert written["counts"]["merged"] == LAYERS + 2
    # All of the inputs and of the result, whoever moved them.
    moved = written["gib_per_s"] * written["timings"]["stream_s"]
    assert moved == pytest.approx(4 * (LAYERS * 120_400 + 360_400) * 2 / 2**30, rel=0.1)


def test_there_are_several(tmp_path: Path, forks: Forks, recipe: Path) -> None:
    fork = slow(forks, "merge", recipe, tmp_path / "out", *OPTIONS)
    pids = at_work(fork, tmp_path / "out")
    fork.kill(signal.SIGTERM)
    assert len(pids) == 3
    assert fork.wait().code == 75


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_all_of_them_within_5_s(
    tmp_path: Path, forks: Forks, recipe: Path, whole: dict[str, int], kind: signal.Signals
) -> None:
    fork = slow(forks, "merge", recipe, tmp_path / "out", *OPTIONS)
    pids = at_work(fork, tmp_path / "out")
    signalled = time.monotonic()
    fork.kill(kind)
    ended = fork.wait()
    assert ended.code == 75 and time.monotonic() - signalled < 10  # and a busy machine
    assert f"stopped by {kind.name}" in ended.err and "finished work is kept" in ended.err
    assert pids
    until(lambda: gone(pids), "its processes to end")
    assert forks.start("merge", recipe, tmp_path / "out", *OPTIONS).wait().code == 0
    assert shards_of(tmp_path / "out") == whole


def test_a_parent_that_is_killed_leaves_nobody_behind(
    tmp_path: Path, forks: Forks, recipe: Path, whole: dict[str, int]
) -> None:
    fork = slow(forks, "merge", recipe, tmp_path / "out", *OPTIONS, seconds=60)
    pids = at_work(fork, tmp_path / "out")
    fork.kill(signal.SIGKILL)
    fork.wait()
    until(lambda: gone(pids), "orphans to end", 20)
    assert forks.start("merge", recipe, tmp_path / "out", *OPTIONS).wait().code == 0
    assert shards_of(tmp_path / "out") == whole


def test_one_that_is_killed_ends_the_run_resumable(
    tmp_path: Path, forks: Forks, recipe: Path, whole: dict[str, int]
) -> None:
    fork = slow(forks, "merge", recipe, tmp_path / "out", *OPTIONS)
    pids = at_work(fork, tmp_path / "out")
    os.kill(pids[-1], signal.SIGKILL)
    ended = fork.wait()
    assert ended.code == 75
    assert "a worker process was ended by signal 9, as the kernel does" in ended.err
    assert gone(pids)
    assert forks.start("merge", recipe, tmp_path / "out", *OPTIONS).wait().code == 0
    assert shards_of(tmp_path / "out") == whole


def test_an_error_is_told_once_with_its_code(tmp_path: Path, forks: Forks) -> None:
    models = []
    for seed in range(2):
        tensors = {f"layers.{i}": torch.full((300, 400), float(seed)) for i in range(12)}
        if seed:
            tensors["layers.7"][3, 3] = float("nan")
        models.append(write_checkpoint(tmp_path / f"m{seed}", tensors))
    ended = forks.start("average", tmp_path / "out", *models, *OPTIONS).wait()
    assert ended.code == 5
    assert ended.err.count("'layers.7': 1 value of the result is NaN or Inf") == 1
    assert "Traceback" not in ended.err


def test_copies_that_differ_are_told_once(tmp_path: Path, forks: Forks) -> None:
    models = []
    for seed in range(2):
        tensors = {f"layers.{i}": torch.full((30, 40), float(seed)) for i in range(12)}
        tensors |= {f"layers.{i}.position": torch.arange(5) + seed for i in range(3)}
        models.append(write_checkpoint(tmp_path / f"m{seed}", tensors))
    ended = forks.start("average", tmp_path / "out", *models, *OPTIONS).wait()
    assert ended.code == 0
    assert ended.err.count("3 copied tensors differ between the models") == 1


def test_the_deadline(tmp_path: Path, forks: Forks, recipe: Path) -> None:
    fork = slow(forks, "merge", recipe, tmp_path / "out", *OPTIONS, "--deadline", "1s")
    ended = fork.wait()
    assert ended.code == 75 and "stopped at the deadline" in ended.err


def test_progress_for_programs_is_that_of_all(tmp_path: Path, forks: Forks, recipe: Path) -> None:
    words = ("--threads", 3, "--progress", "json")
    ended = forks.start("merge", recipe, tmp_path / "out", *words).wait()
    assert ended.code == 0
    for line in ended.err.splitlines():
        if line.startswith("{"):
            json.loads(line)


def test_a_process_with_threads_of_libraries_does_not_fork(tmp_path: Path) -> None:
    for number in range(threading.active_count()):
        (tmp_path / str(number)).touch()
    assert can_fork(tmp_path)
    (tmp_path / "of a library").touch()
    assert not can_fork(tmp_path)
    assert not can_fork(tmp_path / "no Linux")


works = st.lists(
    st.tuples(st.integers(1, 1 << 22), st.floats(0.1, 1.0), st.integers(1, 3)), max_size=60
)


@given(works, st.integers(1, 200))
def test_batches_hold_all_of_the_work_once(drawn: list[tuple[int, float, int]], most: int) -> None:
    work = []
    for number, (count, share, reads) in enumerate(drawn):
        planned = step(count, 1 << 10, ("BF16", "BF16"), reads)
        work.append(Work(number, planned, (Piece(0, max(1, int(share * planned.grid.blocks))),)))
    divided = batches(work, most)
    assert all(divided)
    done: dict[int, list[Piece]] = {}
    for item in (item for batch in divided for item in batch):
        done.setdefault(item.number, []).extend(item.todo)
    for item in work:
        parts = sorted(done.pop(item.number), key=lambda piece: piece.first)
        covered = [n for piece in parts for n in range(piece.first, piece.first + piece.blocks)]
        assert covered == list(range(item.todo[0].blocks))
        # What is looked at first is looked at once.
        assert len(parts) == 1 or item.step.reads == 1
    assert not done
    assert len(divided) < 1 << 15  # what the pipe holds


def test_one_large_tensor_is_shared_where_it_is_read_once() -> None:
    large = Work(0, step(1 << 26, 1 << 17, ("BF16", "BF16")), (Piece(0, 512),))
    assert len(batches([large], 64)) == 64
    assert budget([large.step], None, 8).processes == 8


def test_few_threads_or_one_large_tensor_need_no_processes() -> None:
    even = [step(1 << 20, 1 << 17, ("BF16", "BF16"), reads=3) for _ in range(40)]
    assert budget(even, None, 1).processes == 1
    assert budget(even, None, 2).processes == 2
    assert budget(even, None, 8).processes == 8
    assert budget(even, None, 4, accelerated=True).processes == 1
    assert budget(even, None, 8, accelerated=True).processes == 2
    assert budget(even, None, 500).processes == MOST_PROCESSES
    assert budget([*even, step(1 << 28, 1 << 17, ("BF16",), 2)], None, 8).processes == 1
    # Little memory is better spent on lanes of one process.
    assert budget(even, 2 << 20, 16).processes == 1
    for threads in (4, 7, 16, 64):
        memory = budget(even, None, threads)
        assert memory.lanes % memory.processes == 0
        assert memory.per_process.lanes * memory.processes == memory.lanes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is one process")
def test_most_batches_fit_into_the_pipe() -> None:
    assert MOST_PROCESSES * processes.BATCHES_EACH * 2 * 2 <= 1 << 16
