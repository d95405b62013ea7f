"""`merge` and `verify`: resumable, silent, from threads, with the caller in charge of signals."""

import gc
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import merge_worker as mw
from merge_worker.engine.lane import Lane
from support.checkpoint_factory import write_checkpoint
from support.paths import SOURCES
from support.recipes import digest, one_tensor_models, plan_of, stream_into


def test_result(models: list[Path], tmp_path: Path) -> None:
    result = mw.merge(mw.average(models), tmp_path / "out")
    assert result.path == tmp_path / "out" and result.finished
    assert result.manifest["counts"]["merged"] == 6
    assert 0 < result.seconds == result.manifest["timings"]["total_s"]
    assert result.gib_per_s == result.manifest["gib_per_s"]
    assert any("probably unrelated" in warning for warning in result.warnings)
    again = mw.merge(mw.average(models), tmp_path / "out")
    assert again.manifest == result.manifest
    assert mw.verify(tmp_path / "out").manifest == result.manifest


def test_nothing_is_printed(
    models: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = mw.average(models)
    mw.merge(plan, tmp_path / "out")
    dict(mw.stream(plan))
    mw.compare(models[1:], base=models[0])
    mw.verify(tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_a_changed_result_is_not_verified(models: list[Path], tmp_path: Path) -> None:
    mw.merge(mw.average(models), tmp_path / "out")
    with (tmp_path / "out" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    with pytest.raises(mw.errors.InputError) as caught:
        mw.verify(tmp_path / "out")
    (fault,) = caught.value.faults
    assert fault.place.endswith("model.safetensors") and "--overwrite" in fault.hint


def test_another_merge_is_kept_or_replaced(models: list[Path], tmp_path: Path) -> None:
    mw.merge(mw.average(models), tmp_path / "out")
    other = mw.average(models[:2])
    with pytest.raises(mw.errors.OutputError):
        mw.merge(other, tmp_path / "out")
    assert mw.merge(other, tmp_path / "out", overwrite=True).manifest["key"] == other.key


def test_an_interrupted_merge_resumes(tmp_path: Path) -> None:
    models = one_tensor_models(tmp_path, 3_000_000)
    with pytest.raises(mw.errors.Stopped):
        stream_into(tmp_path / "out", plan_of(models), stop_after=1)
    result = mw.merge(mw.average(models), tmp_path / "out")
    mw.merge(mw.average(models), tmp_path / "whole")
    assert result.finished and digest(tmp_path / "out") == digest(tmp_path / "whole")


def test_keyboard_interrupt_leaves_a_resumable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = one_tensor_models(tmp_path, 3_000_000)
    real, waits = Lane.merge, [True]

    def merge(lane: Lane, *words: object) -> object:
        if waits and waits.pop():
            os.kill(os.getpid(), signal.SIGINT)  # the main thread waits for the lanes
        return real(lane, *words)  # type: ignore[arg-type]

    monkeypatch.setattr(Lane, "merge", merge)
    threads = set(threading.enumerate())
    # Ignored where the tests run in the background of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            mw.merge(mw.average(models, threads=1), tmp_path / "out")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads >= set(threading.enumerate())
    assert not (tmp_path / "out" / "config.json").exists()
    assert mw.merge(mw.average(models, threads=1), tmp_path / "out").finished


def test_signals_stay_the_callers(models: list[Path], tmp_path: Path) -> None:
    """A handler of the caller is called during the merge, which goes on."""
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    asked = iter([True])

    def progress(done: int, total: int) -> None:
        if next(asked, False):
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        assert mw.merge(mw.average(models), tmp_path / "out", progress=progress).finished
    finally:
        signal.signal(signal.SIGTERM, before)
    assert calls == [signal.SIGTERM]


def test_progress_ends_at_the_size_of_the_result(models: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    mw.merge(mw.average(models), tmp_path / "out", progress=lambda *bytes: seen.append(bytes))
    total = sum(
        torch.empty(shape, dtype=getattr(torch, dtype)).nbytes
        for dtype, shape, _ in mw.average(models).tensors.values()
    )
    assert seen[-1] == (total, total)


def test_an_error_of_the_callback_stops_the_merge(models: list[Path], tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def progress(done: int, total: int) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        mw.merge(mw.average(models), tmp_path / "out", progress=progress)
    assert mw.merge(mw.average(models), tmp_path / "out").finished


def test_several_at_once_from_threads(models: list[Path], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    plans = [mw.average(models, weights=[1, 1, n]) for n in (1, 2, 3, 4)]
    outs = [tmp_path / f"out{n}" for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(mw.merge, plans, outs))
    assert all(result.finished for result in results)
    for plan, out in zip(plans, outs, strict=True):
        mw.merge(plan, tmp_path / "alone", overwrite=True)
        assert digest(out) == digest(tmp_path / "alone")
    assert torch.get_num_threads() == threads


def test_torch_and_the_collector_are_left_as_they_were(models: list[Path], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gc.disable()
    try:
        mw.merge(mw.average(models), tmp_path / "out")
        assert torch.get_num_threads() == 2 and not gc.isenabled()
    finally:
        gc.enable()
        torch.set_num_threads(before)


def test_ranks_are_arguments(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan = mw.average(models)
    assert mw.merge(plan, tmp_path / "alone").finished
    with pytest.raises(mw.errors.Stopped, match="no process works on the others"):
        mw.merge(plan, tmp_path / "out", rank=0, world=2, patience_s=0)
    assert mw.merge(plan, tmp_path / "out", rank=1, world=2).finished
    assert digest(tmp_path / "out") == digest(tmp_path / "alone")
    with pytest.raises(mw.errors.UsageError, match="rank 2 of 2"):
        mw.merge(plan, tmp_path / "out", rank=2, world=2)


def test_nan_is_an_error_unless_it_is_allowed(tmp_path: Path) -> None:
    models = [write_checkpoint(tmp_path / n, {"x": torch.tensor([float("nan")])}) for n in "ab"]
    with pytest.raises(mw.errors.ResultError):
        mw.merge(mw.average(models), tmp_path / "out")
    assert mw.merge(mw.average(models), tmp_path / "out", allow_nonfinite=True).finished


@pytest.mark.slow
def test_a_process_with_several_processors_forks_only_from_its_only_thread(tmp_path: Path) -> None:
    """A script without threads merges like the command line, and ends as it would have."""
    models = one_tensor_models(tmp_path, 6_000_000, count=3)
    script = tmp_path / "script.py"
    script.write_text(
        "import atexit, sys, threading\n"
        "import merge_worker as mw\n"
        "from merge_worker.engine import processes\n"
        "real, forks = processes._fork, []\n"
        "processes._fork = lambda: forks.append(1) or real()\n"
        "atexit.register(print, 'bye')\n"
        f"plan = mw.average({[str(m) for m in models]!r}, threads=4)\n"
        "mw.merge(plan, 'alone')\n"
        "print(len(forks))\n"
        "wait = threading.Event()\n"
        "threading.Thread(target=wait.wait).start()\n"
        "mw.merge(plan, 'beside')\n"
        "print(len(forks))\n"
        "wait.set()\n"
    )
    forks, later, end = output_of(script).split()
    assert int(forks) > 1 and later == forks and end == "bye"
    assert digest(tmp_path / "alone") == digest(tmp_path / "beside")


@pytest.mark.slow
def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    models = one_tensor_models(tmp_path, 6_000_000, count=3)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, select\n"
        "import merge_worker as mw\n"
        "from merge_worker.engine import processes\n"
        "real, calls = select.select, []\n"
        "def interrupted(*words):\n"
        "    if not calls:\n"
        "        calls.append(1)\n"
        "        raise KeyboardInterrupt\n"
        "    return real(*words)\n"
        "processes.select.select = interrupted\n"
        f"plan = mw.average({[str(m) for m in models]!r}, threads=4)\n"
        "try:\n"
        "    mw.merge(plan, 'out')\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', os.path.exists('out/config.json'))\n"
        "try:\n"
        "    os.waitpid(-1, 0)\n"
        "except ChildProcessError:\n"
        "    print('no process is left')\n"
        "print(mw.merge(plan, 'out').finished)\n"
    )
    assert output_of(script).splitlines() == ["interrupted False", "no process is left", "True"]
    mw.merge(mw.average(models, threads=1), tmp_path / "whole")
    assert digest(tmp_path / "out") == digest(tmp_path / "whole")


def output_of(script: Path) -> str:
    """Run a script in its folder, where numpy starts threads; return what it prints."""
    env = {**os.environ, "PYTHONPATH": SOURCES, "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, script], cwd=script.parent, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
