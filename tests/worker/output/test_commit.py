"""The commit of a merge: all or nothing, whichever rename it was stopped at."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from merge_worker.output import commit
from merge_worker.output.checksums import checksum
from merge_worker.output.files import PARTIAL
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.recipes import (
    average,
    digest,
    manifest,
    plan_of,
    run,
    some_models,
    some_tensors,
    stream_into,
)


class Killed(BaseException):
    """An exception in place of the end of the process."""


def kill_at(count: int) -> Callable[[pytest.MonkeyPatch], list[str]]:
    """Let `count` renames and removals succeed, then raise Killed."""

    def install(patch: pytest.MonkeyPatch) -> list[str]:
        done: list[str] = []
        for name in ("replace", "rename", "unlink", "rmdir"):
            real = getattr(os, name)

            def wrapped(*words: Any, _real: Any = real, _name: str = name, **named: Any) -> Any:
                if len(done) >= count:
                    raise Killed
                done.append(_name)
                return _real(*words, **named)

            patch.setattr(os, name, wrapped)
        return done

    return install


@pytest.fixture
def sharded(tmp_path: Path) -> list[Path]:
    models = []
    for seed in range(2):
        models.append(write_checkpoint(tmp_path / f"m{seed}", some_tensors(seed), config={"a": 1}))
        (models[-1] / "tokenizer.json").write_text("{}")
        (models[-1] / "extra").mkdir()
        (models[-1] / "extra" / "template.jinja").write_text("x")
        head = {"linear.weight": torch.full((2, 3), float(seed))}
        save_file(head, models[-1] / "extra" / "model.safetensors")
    return models


SHARDS = ("--shard-size", "4KB", "--threads", "1")


def test_files_after_the_commit(tmp_path: Path, sharded: list[Path]) -> None:
    out = tmp_path / "out"
    assert average(out, sharded, *SHARDS) == 0
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    count = len([name for name in names if name.startswith("model-")])
    assert count > 1
    assert names == {
        *(f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)),
        *("model.safetensors.index.json", "config.json", "tokenizer.json", "README.md"),
        *("extra/template.jinja", "mergekit_config.yml", "merge_manifest.json"),
        "extra/model.safetensors",
    }
    assert set(read_tensors(out)) == set(some_tensors(0))
    listed = manifest(out)["outputs"]
    assert {entry["file"] for entry in listed} == names - {"merge_manifest.json"}
    assert all((out / entry["file"]).stat().st_size == entry["bytes"] for entry in listed)
    order = [entry["file"] for entry in listed]
    assert order[-2:] == ["model.safetensors.index.json", "config.json"]
    assert order[0].endswith(".safetensors")


def test_checksums_are_those_of_the_files(tmp_path: Path, sharded: list[Path]) -> None:
    import hashlib

    assert average(tmp_path / "out", sharded, *SHARDS, "--sha256") == 0
    shards = [e for e in manifest(tmp_path / "out")["outputs"] if "sum128" in e]
    assert len(shards) > 1
    for entry in shards:
        raw = (tmp_path / "out" / entry["file"]).read_bytes()
        assert entry["sum128"] == str(checksum(memoryview(raw), 0))
        assert entry["sha256"] == hashlib.sha256(raw).hexdigest()


def bury(out: Path) -> None:
    """Rewrite the locks of this living process as those of a dead one."""
    for path in (out / PARTIAL).glob("lock-*"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "started": 1}))


def no_model_yet(out: Path) -> bool:
    """Assert that nothing looks like a whole model without the manifest."""
    whole = (out / "config.json").exists() and (out / "model.safetensors.index.json").exists()
    shards = len(list(out.glob("model-*.safetensors"))) if out.exists() else 0
    return not whole or shards > 1


def test_stopped_at_any_rename(
    tmp_path: Path, sharded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert average(tmp_path / "whole", sharded, *SHARDS) == 0
    stops = 0
    while True:
        out = tmp_path / f"out{stops}"
        with monkeypatch.context() as patch:
            kill_at(stops)(patch)
            try:
                code: int | None = average(out, sharded, *SHARDS)
            except Killed:  # in the way of a lock's end
                code = None
        if code == 0:
            break
        bury(out)
        if (out / "merge_manifest.json").exists():
            assert digest(out).items() >= digest(tmp_path / "whole").items()
        else:
            assert no_model_yet(out)
        assert average(out, sharded, *SHARDS) == 0, f"stopped at {stops}"
        assert (out / "merge_manifest.json").exists()
        assert {n: c for n, c in digest(out).items() if not n.startswith(PARTIAL)} == digest(
            tmp_path / "whole"
        )
        assert average(out, sharded, *SHARDS) == 0
        stops += 1
    assert stops > 15


def test_replacing_another_merge_stopped_at_any_rename(
    tmp_path: Path, sharded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new files never have names that a loader reads at the same time."""
    old = some_models(tmp_path / "old", 2, config={"old": True})
    assert average(tmp_path / "whole", sharded, *SHARDS) == 0
    whole = digest(tmp_path / "whole")
    for stops in range(0, 60, 5):
        out = tmp_path / f"out{stops}"
        assert average(out, old) == 0
        before = digest(out)
        with monkeypatch.context() as patch:
            kill_at(stops)(patch)
            with contextlib.suppress(Killed):
                average(out, sharded, *SHARDS, "--overwrite")
        bury(out)
        now = {n: c for n, c in digest(out).items() if not n.startswith(PARTIAL)}
        if (out / "merge_manifest.json").exists():
            assert now in (before, whole)
        elif any(name.startswith("model-") for name in now):
            assert "model.safetensors" not in now
            assert now.get("config.json") != before["config.json"]
        assert average(out, sharded, *SHARDS, "--overwrite") == 0
        assert {n: c for n, c in digest(out).items() if not n.startswith(PARTIAL)} == whole
        assert "old" not in json.loads((out / "config.json").read_text())


def test_nothing_of_a_replaced_merge_stays(tmp_path: Path, sharded: list[Path]) -> None:
    for name in ("extra/old.py", "extra/deep/old.json", "gone/old.json"):
        (sharded[0] / name).parent.mkdir(exist_ok=True)
        (sharded[0] / name).write_text("old")
    out = tmp_path / "out"
    assert average(out, sharded) == 0
    assert (out / "extra" / "deep" / "old.json").is_file()
    assert average(out, sharded[::-1], "--overwrite") == 0
    listed = {entry["file"] for entry in manifest(out)["outputs"]} | {"merge_manifest.json"}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == listed and "extra/model.safetensors" in found


@pytest.mark.parametrize("turn", [1, -1])
def test_a_folder_where_a_file_goes(tmp_path: Path, sharded: list[Path], turn: int) -> None:
    """A name is a folder of the replaced merge and a file of the new one, and the other way."""
    (sharded[0] / "notes.py").mkdir()
    (sharded[0] / "notes.py" / "deep.py").write_text("old")
    (sharded[1] / "notes.py").write_text("new")
    out = tmp_path / "out"
    assert average(out, sharded[::turn]) == 0
    assert average(out, sharded[::-turn], "--overwrite") == 0
    assert average(tmp_path / "whole", sharded[::-turn]) == 0
    assert digest(out) == digest(tmp_path / "whole") and not list(out.glob(".*"))


def test_files_of_others_in_folders_of_a_merge(
    tmp_path: Path, sharded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders are replaced as a whole, so they must hold nothing else."""
    out = tmp_path / "out"
    assert average(out, sharded) == 0
    (out / "extra" / "thesis.txt").write_text("mine")
    assert average(out, sharded[::-1], "--overwrite") == 4
    assert "not created by merge-worker: extra/thesis.txt" in capsys.readouterr().err
    assert (out / "extra" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("old", [False, True])
def test_a_file_that_is_gone_before_its_final_name(
    tmp_path: Path,
    sharded: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: bool,
) -> None:
    """A commit that was stopped does not finish with a file of the replaced merge, or without."""
    assert average(tmp_path / "whole", sharded) == 0
    out = tmp_path / "out"
    overwrite = ("--overwrite",) if old else ()
    if old:
        assert average(out, sharded[::-1]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(commit, "commit", lambda *words: None)
        assert average(out, sharded, *overwrite) == 0
    (out / PARTIAL / "model.safetensors.partial").unlink()
    before = digest(out)
    for _ in range(2):
        assert average(out, sharded, *overwrite) == 4
        assert "'model.safetensors': removed or replaced before" in capsys.readouterr().err
        assert digest(out) == before
    assert average(out, sharded, *overwrite, "--no-resume") == 0
    assert digest(out) == digest(tmp_path / "whole")


@pytest.mark.slow
def test_out_is_deleted_and_begun_again_at_any_rename(
    tmp_path: Path, sharded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge that hung meanwhile neither moves files of the other one nor finishes it."""
    half, plan = tmp_path / "half", plan_of(sharded, shard_bytes=4000)
    stream_into(half, plan)
    (half / PARTIAL / "files").mkdir()
    for path in (half / PARTIAL).glob("*.partial"):
        path.write_bytes(bytes(path.stat().st_size))  # of which nothing is right
    begun = digest(half)
    for stop in range(100):
        out, calls = tmp_path / f"out{stop}", 0

        def begin_again(out: Path = out, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                shutil.rmtree(out)
                shutil.copytree(half, out)

        with monkeypatch.context() as patch:
            for name in ("replace", "rename"):
                real = getattr(os, name)

                def wrapped(
                    *words: Any, _real: Any = real, _act: Any = begin_again, **named: Any
                ) -> Any:
                    _act()
                    return _real(*words, **named)

                patch.setattr(os, name, wrapped)
            code = average(out, sharded, *SHARDS)
        if calls < stop:
            assert code == 0
            break
        if (out / "merge_manifest.json").exists():
            assert run("verify", out) == 0
        elif stop:
            assert code in (0, 4)  # 0 if it was finished before it was deleted
            assert {n: c for n, c in digest(out).items() if n in begun} == begun, stop
    assert stop > 15


def test_a_full_disk_during_the_commit(
    tmp_path: Path,
    sharded: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "x")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(commit, "copy_side_files", full)
        assert average(out, sharded, *SHARDS) == 4
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [PARTIAL]
    assert average(out, sharded, *SHARDS) == 0


def test_only_the_commit_was_missing(
    tmp_path: Path, sharded: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(sharded)
    stream_into(tmp_path / "out", plan)
    assert average(tmp_path / "out", sharded, "--progress", "plain") == 0
    assert "continuing at 100 %" in capsys.readouterr().err
