"""State of OUT: empty, a merge of this program, or refused; inputs are never changed."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from merge_worker.errors import OutputError, Stopped
from merge_worker.output import space
from merge_worker.output.files import PARTIAL
from merge_worker.output.journal import COMMITTING
from merge_worker.output.target import State, inspect_output
from merge_worker.planning.plan import Plan
from support.recipes import (
    average,
    digest,
    manifest,
    one_tensor_models,
    plan_of,
    run,
    some_models,
    stream_into,
)

Capture = pytest.CaptureFixture[str]


def state(plan: Plan, out: Path, overwrite: bool = False, resume: bool = True) -> State:
    return inspect_output(plan, out, overwrite=overwrite, resume=resume).state


def refusal(plan: Plan, out: Path, overwrite: bool = False, resume: bool = True) -> str:
    with pytest.raises(OutputError) as caught:
        inspect_output(plan, out, overwrite=overwrite, resume=resume)
    return str(caught.value)


@pytest.fixture
def plan(models: list[Path]) -> Plan:
    return plan_of(models)


@pytest.fixture
def other(tmp_path: Path) -> list[Path]:
    """Write models of another merge."""
    return some_models(tmp_path / "other", 2)


@pytest.fixture
def half(tmp_path: Path, plan: Plan) -> Path:
    """Write a merge that was stopped."""
    with pytest.raises(Stopped):
        stream_into(tmp_path / "half", plan, stop_after=2)
    return tmp_path / "half"


def test_no_output_folder(tmp_path: Path, plan: Plan) -> None:
    assert state(plan, tmp_path / "out") is State.FRESH
    assert state(plan, tmp_path / "a" / "b" / "out") is State.FRESH
    (tmp_path / "out").mkdir()
    assert state(plan, tmp_path / "out") is State.FRESH
    assert list((tmp_path / "out").iterdir()) == [], "only looked at"


def test_this_merge_unfinished_and_finished(tmp_path: Path, plan: Plan, half: Path) -> None:
    assert state(plan, half) is State.RESUME
    assert state(plan, half, resume=False) is State.FRESH
    assert average(half, [model.path for model in plan.models]) == 0
    assert state(plan, half) is State.FINISHED
    target = inspect_output(plan, half, overwrite=True, resume=True)
    assert target.state is State.FRESH
    assert {"model.safetensors", "config.json", "merge_manifest.json"} <= set(target.replaces)


def test_a_finished_merge_that_was_changed_since(tmp_path: Path, plan: Plan, half: Path) -> None:
    assert average(half, [model.path for model in plan.models]) == 0
    for spoil in (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"short"),
    ):
        spoil(half / "model.safetensors")
        text = refusal(plan, half)
        assert "model.safetensors: missing or changed" in text and "--overwrite" in text
    assert average(half, [model.path for model in plan.models], "--overwrite") == 0
    assert state(plan, half) is State.FINISHED


def test_another_merge(tmp_path: Path, plan: Plan, half: Path, other: list[Path]) -> None:
    mine = plan_of(other)
    assert "unfinished merge of another recipe" in refusal(mine, half)
    assert "--no-resume" in refusal(mine, half)
    assert state(mine, half, resume=False) is State.FRESH
    assert state(mine, half, overwrite=True) is State.FRESH
    assert average(tmp_path / "done", [model.path for model in plan.models]) == 0
    assert "another finished merge" in refusal(mine, tmp_path / "done")
    assert "another finished merge" in refusal(mine, tmp_path / "done", resume=False)
    assert state(mine, tmp_path / "done", overwrite=True) is State.FRESH


def test_an_input_that_changed_is_another_merge(plan: Plan, half: Path) -> None:
    path = plan.models[0].path / "model.safetensors"
    os.utime(path, (1, 1))
    assert "changed inputs" in refusal(plan_of([model.path for model in plan.models]), half)


@pytest.mark.parametrize("name", ["notes.txt", ".git", "model.safetensors", "sub"])
def test_files_of_others_are_safe(tmp_path: Path, plan: Plan, name: str) -> None:
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    assert name in refusal(plan, out)
    assert name in refusal(plan, out, overwrite=True, resume=False)
    assert average(out, [model.path for model in plan.models], "--overwrite") == 4


def test_other_files_in_a_finished_merge_are_safe(
    tmp_path: Path, plan: Plan, other: list[Path]
) -> None:
    out = tmp_path / "out"
    assert average(out, [model.path for model in plan.models]) == 0
    (out / "notes.txt").write_text("mine")
    assert "notes.txt" in refusal(plan_of(other), out, overwrite=True)


def test_a_manifest_from_elsewhere_removes_nothing_outside(
    tmp_path: Path, models: list[Path], other: list[Path]
) -> None:
    out = tmp_path / "deep" / "out"
    assert average(out, models) == 0
    value = manifest(out)
    (tmp_path / "deep" / "precious").write_text("mine")
    for name in ("../precious", "..", "/etc/passwd", ".", "", "a/../../precious"):
        listed = [*value["outputs"], {"file": name, "bytes": 0}]
        (out / "merge_manifest.json").write_text(json.dumps({**value, "outputs": listed}))
        assert average(out, other, "--overwrite") == 3
    assert (tmp_path / "deep" / "precious").read_text() == "mine"
    assert all(model.is_dir() for model in models)


@pytest.mark.parametrize(
    ("replaces", "named"),
    [
        (["../precious"], []),
        (["/precious", 3], []),
        ([], ["../profile"]),
        ([], ["sub/../../profile"]),
    ],
)
def test_a_commit_leads_nowhere_outside(
    tmp_path: Path, plan: Plan, half: Path, replaces: list[object], named: list[str]
) -> None:
    """Notes of a commit that no merge wrote: OUT may be open to others, or a copy of theirs."""
    partial, precious = half / PARTIAL, half.parent / "precious"
    (precious / "deep").mkdir(parents=True)
    (half.parent / "profile").write_text("mine")
    (partial / COMMITTING).write_text(json.dumps({"replaces": replaces}))
    (partial / "files").mkdir()
    outputs = [{"file": name, "bytes": 0} for name in named]
    (partial / "files" / "merge_manifest.json").write_text(json.dumps({"outputs": outputs}))
    (partial / "profile").write_text("theirs")
    assert average(half, [model.path for model in plan.models]) == 0
    assert (precious / "deep").is_dir()
    assert (half.parent / "profile").read_text() == "mine"
    assert run("verify", half) == 0


def test_a_link_in_out_is_not_written_through(tmp_path: Path, plan: Plan, half: Path) -> None:
    partial, elsewhere = half / PARTIAL, half.parent / "elsewhere"
    elsewhere.mkdir()
    (half / "sub").symlink_to(elsewhere)
    (partial / COMMITTING).write_text(json.dumps({"replaces": []}))
    (partial / "files" / "sub").mkdir(parents=True)
    (partial / "files" / "sub" / "profile").write_text("theirs")
    outputs = [{"file": "sub/profile", "bytes": 6}]
    (partial / "files" / "merge_manifest.json").write_text(json.dumps({"outputs": outputs}))
    assert average(half, [model.path for model in plan.models]) == 4
    assert not list(elsewhere.iterdir())


def test_out_is_a_file_or_below_one(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "file").write_text("x")
    assert "is a file" in refusal(plan, tmp_path / "file")
    assert str(tmp_path / "file") in refusal(plan, tmp_path / "file" / "out")
    assert "name too long" in refusal(plan, tmp_path / ("n" * 300))


def test_a_link_to_nowhere(tmp_path: Path, models: list[Path]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    assert average(tmp_path / "link", models) == 4


def test_inputs_are_never_changed(tmp_path: Path, plan: Plan) -> None:
    first = plan.models[0].path
    before = digest(first)
    assert f"is the input {plan.labels[0]}" in refusal(plan, first, overwrite=True)
    assert "is inside the input" in refusal(plan, first / "deep" / "out")
    (tmp_path / "link").symlink_to(first)
    assert "is the input" in refusal(plan, tmp_path / "link")
    assert "is inside the input" in refusal(plan, tmp_path / "link" / "out")
    assert "is the input" in refusal(plan, first / ".." / first.name)
    assert "contains the input" in refusal(plan, first.parent)
    assert average(first, [model.path for model in plan.models], "--overwrite") == 4
    assert digest(first) == before


@pytest.mark.parametrize("how", ["link", "hard link", "folder", "staged"])
def test_nothing_is_written_through_a_link(
    tmp_path: Path, plan: Plan, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the unfinished merge that links to an input is refused."""
    models = [model.path for model in plan.models]
    before = [digest(model) for model in models]
    partial, weights = tmp_path / "out" / PARTIAL, models[0] / "model.safetensors"
    (partial / "files").mkdir(parents=True)
    place = partial / "model.safetensors.partial"
    if how == "link":
        place.symlink_to(weights)
    elif how == "hard link":
        place.hardlink_to(weights)
    elif how == "staged":
        (partial / "files" / "config.json").symlink_to(models[0] / "config.json")
    else:
        shutil.rmtree(partial)
        partial.symlink_to(models[0])
    for words in ((), ("--overwrite",), ("--no-resume",)):
        assert average(tmp_path / "out", models, *words) == 4
        assert "is a link, or has a second name" in capsys.readouterr().err
    assert [digest(model) for model in models] == before


def test_an_output_that_is_an_input_by_hard_links(tmp_path: Path, models: list[Path]) -> None:
    """A finished merge whose shard is an input under another name is replaced, not written to."""
    out = tmp_path / "out"
    assert average(out, models) == 0
    before = digest(models[0])
    (out / "model.safetensors").unlink()
    (out / "model.safetensors").hardlink_to(models[0] / "model.safetensors")
    assert average(out, models, "--weights", "3,2,1", "--overwrite") == 0
    assert digest(models[0]) == before
    assert run("verify", out) == 0


def test_an_input_that_is_a_link(tmp_path: Path, models: list[Path]) -> None:
    (tmp_path / "link").symlink_to(models[0])
    assert average(models[0] / "out", [tmp_path / "link", models[1]]) == 4
    assert average(models[0], [tmp_path / "link", models[1]], "--overwrite") == 4


def test_out_beside_models_that_are_files(tmp_path: Path, models: list[Path]) -> None:
    files = []
    for number, model in enumerate(models):
        files.append(tmp_path / f"{number}.safetensors")
        shutil.copy(model / "model.safetensors", files[-1])
    assert average(tmp_path / "out", files) == 0
    assert average(files[0], files) == 4
    assert "contains the input" in refusal(plan_of(files), tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{", "\0\0"])
def test_a_damaged_partial_folder(
    plan: Plan,
    half: Path,
    other: list[Path],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a power failure the names of the journals still identify the merge."""
    (half / PARTIAL / "key.json").write_text(text)
    assert "unfinished merge of another recipe" in refusal(plan_of(other), half)
    models = [model.path for model in plan.models]
    assert average(half, models, "--progress", "plain") == 0
    assert "continuing at" in capsys.readouterr().err
    assert average(tmp_path / "whole", models) == 0
    assert digest(half) == digest(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_commit_record(plan: Plan, half: Path, text: str) -> None:
    (half / PARTIAL / COMMITTING).write_text(text)
    assert average(half, [model.path for model in plan.models]) == 0


def test_space_is_checked_before_the_start(
    tmp_path: Path, plan: Plan, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "SPARE_BYTES", 1 << 60)
    assert "GiB are free there" in refusal(plan, tmp_path / "out")
    assert "GiB are free there" in refusal(plan, half)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 80 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small file system")
    if subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("this system does not let root mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_small_disk(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = one_tensor_models(tmp_path, 10_000_000)
    assert average(small_disk / "out", models) == 4
    assert "only 80.00 MiB are free there" in capsys.readouterr().err
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_half_way(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    models = one_tensor_models(tmp_path, 10_000_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(72 << 20))  # 8 MiB are left of the 20 that are needed
    monkeypatch.setattr(space, "SPARE_BYTES", -(1 << 30))  # as if it filled up later
    assert average(small_disk / "out", models) == 4
    text = capsys.readouterr().err
    assert "No space left on device" in text and "run the same command to resume" in text
    assert "Traceback" not in text
    assert [path.name for path in (small_disk / "out").iterdir()] == [PARTIAL]
    ballast.unlink()
    assert average(small_disk / "out", models, "--progress", "plain") == 0
    assert "continuing at" in capsys.readouterr().err
    assert average(tmp_path / "whole", models) == 0
    assert digest(small_disk / "out") == digest(tmp_path / "whole")


def test_a_read_only_folder(tmp_path: Path, small_disk: Path, models: list[Path]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert average(small_disk / "out", models) == 4
    (tmp_path / "proc").symlink_to("/proc")
    assert average(tmp_path / "proc" / "out", models) == 4
