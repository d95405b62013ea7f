"""Races between ranks: no state halfway through a change is taken for an error.

The other ranks act inside a call of the rank under test.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merge_worker.engine import run
from merge_worker.errors import OutputError, Stopped
from merge_worker.output import manifest, target
from merge_worker.output import store as store_module
from merge_worker.output.files import MANIFEST, PARTIAL
from merge_worker.output.journal import COMMITTING
from merge_worker.output.lock import Busy, Lock
from merge_worker.output.store import PartialOutput, discard_others, remove_partial
from merge_worker.output.target import State, inspect_output
from merge_worker.planning.plan import Plan
from support.recipes import average, one_tensor_models, plan_of, stream_into


@pytest.fixture
def big(tmp_path: Path) -> list[Path]:
    return one_tensor_models(tmp_path, 1_400_000)


@pytest.fixture
def plan(big: list[Path]) -> Plan:
    return plan_of(big, threads=1, memory_bytes=2 << 20)


@pytest.fixture
def half(tmp_path: Path, plan: Plan) -> Path:
    """Write a merge that was stopped."""
    with pytest.raises(Stopped):
        stream_into(tmp_path / "half", plan, stop_after=3)
    return tmp_path / "half"


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str, Callable[[], object]], None]:
    """Call `act` once, just before a function of a module is called."""

    def patch(module: Any, name: str, act: Callable[[], object]) -> None:
        real, left = getattr(module, name), [act]

        def late(*words: Any, **named: Any) -> Any:
            if left:
                left.pop()()
            return real(*words, **named)

        monkeypatch.setattr(module, name, late)

    return patch


@pytest.mark.parametrize("moment", ["read_key", "pending_commit", "read_manifest"])
def test_another_rank_finishes_during_inspection(
    moment: str, plan: Plan, big: list[Path], half: Path, before: Any
) -> None:
    before(target, moment, lambda: average(half, big))
    result = inspect_output(plan, half, overwrite=False, resume=True)
    assert result.state is State.FINISHED


def test_another_rank_renames_during_inspection(plan: Plan, half: Path, before: Any) -> None:
    """Shards have their final names before the manifest exists."""

    def renamed() -> None:
        (half / PARTIAL / COMMITTING).write_text('{"replaces": []}')
        shard = plan.layout.shards[0].name
        (half / PARTIAL / f"{shard}.partial").rename(half / shard)

    before(target, "read_manifest", renamed)
    assert inspect_output(plan, half, overwrite=False, resume=True).state is State.COMMIT


def test_foreign_files_are_refused_during_changes(plan: Plan, half: Path, before: Any) -> None:
    before(target, "read_manifest", (half / "thesis.txt").touch)
    with pytest.raises(
        OutputError, match=r"not empty, and not created by merge-worker: thesis\.txt"
    ):
        inspect_output(plan, half, overwrite=False, resume=True)


def test_a_folder_that_never_stops_changing(
    plan: Plan, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, count = manifest.read_manifest, iter(range(1000))

    def busy(out: Path) -> Any:
        (half / f"file-{next(count)}").touch()
        return real(out)

    monkeypatch.setattr(target, "read_manifest", busy)
    with pytest.raises(OutputError, match="another process is writing to this folder"):
        inspect_output(plan, half, overwrite=False, resume=True)


def test_two_ranks_discard_an_older_merge(half: Path, big: list[Path], before: Any) -> None:
    """The second does not take what the first has begun for the older merge."""
    key = PartialOutput(half, plan_of(big[::-1], threads=1)).key
    new = half / PARTIAL / "new"

    def first() -> None:
        discard_others(half, key)
        new.parent.mkdir()
        new.touch()

    before(store_module, "Lock", first)
    discard_others(half, key)
    assert new.exists()


@pytest.mark.parametrize("moment", ["_lock", "refuse_others", "inspect_output"])
def test_a_rank_that_starts_after_the_commit(
    moment: str,
    half: Path,
    big: list[Path],
    before: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A rank that inspected OUT before the commit leaves nothing there."""

    def others() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("RANK")
            assert average(half, big) == 0

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    before(run, moment, others)
    assert average(half, big, "--ranks", "auto") == 0
    printed = capsys.readouterr().out
    assert "this merge is already there" in printed or "another rank finishes" in printed
    assert not list(half.glob(".merge-partial*"))


def test_a_stale_commit_lock(
    half: Path, plan: Plan, big: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is raised, because no rank will finish."""
    lock = half / PARTIAL / "lock-finish"
    with Lock(lock, plan.key):
        text = lock.read_text()
    lock.write_text(text.replace('"started": ', '"started": 1'))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def full(*words: object, **named: object) -> None:
        raise OutputError("no space")

    monkeypatch.setattr(PartialOutput, "open", full)
    assert average(half, big, "--ranks", "auto") == 4


def test_a_manifest_removed_while_it_is_read(half: Path, big: list[Path], before: Any) -> None:
    assert average(half, big) == 0
    before(manifest, "read_json", (half / MANIFEST).unlink)
    assert manifest.read_manifest(half) is None


def test_two_ranks_remove_the_folder(half: Path, before: Any) -> None:
    before(store_module.os, "urandom", lambda: remove_partial(half))
    remove_partial(half)
    assert not list(half.glob(".merge-partial*"))


def test_shards_opened_while_another_rank_renames_them(plan: Plan, half: Path) -> None:
    """Empty shards are removed: were the other rank killed now, they would enter the result."""
    folder, shard = half / PARTIAL, plan.layout.shards[0].name
    (folder / COMMITTING).write_text('{"replaces": []}')
    (folder / f"{shard}.partial").rename(half / shard)
    late = PartialOutput(half, plan)
    with pytest.raises(OutputError, match="another rank finished meanwhile"):
        late.open()
    late.close()
    assert not list(folder.glob("*.partial"))


def test_the_committing_rank_dies_while_another_waits(
    half: Path, plan: Plan, big: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rank waiting for the lock commits instead."""
    real, left = run._lock, ["finish"]

    def lock(store: PartialOutput, name: str) -> Lock:
        if name in left:
            left.remove(name)
            raise Busy("another merge writes here")
        return real(store, name)

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert average(half, big, "--ranks", "auto:0s") == 75
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(run, "_lock", lock)
    assert average(half, big, "--ranks", "auto") == 0 and not left
    assert (half / MANIFEST).exists()
