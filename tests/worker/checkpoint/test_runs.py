"""Checkpoints of one run, found by the numbers in their names: each rule on tiny files."""

import json
import struct
from pathlib import Path

import pytest

from merge_worker.checkpoint.hub import Hub
from merge_worker.checkpoint.runs import Picked, pick, why_incomplete
from merge_worker.checkpoint.steps import preferred, step_of
from merge_worker.errors import InputError
from merge_worker.recipe.schema import RunRequest

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + b"\0" * 8


def write(run: Path, *names: str, weights: bytes = WEIGHTS) -> Path:
    for name in names:
        (run / name).mkdir(parents=True)
        (run / name / "model.safetensors").write_bytes(weights)
    return run


def picked(
    run: Path | str, steps: tuple[int, ...] = (), skip: bool = False, **numbers: int
) -> Picked:
    named = {name.rstrip("_"): number for name, number in numbers.items()}
    return pick(RunRequest(str(run), named, steps, skip), Path(), Hub())


def names(run: Path | str, steps: tuple[int, ...] = (), skip: bool = False, **n: int) -> list[str]:
    return [Path(word).name for word in picked(run, steps, skip, **n).words]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 1000 to 5000 and 7000 to 10000."""
    return write(tmp_path / "run", *(f"step{n}000" for n in range(1, 11) if n != 6))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step840000-hf", 840000),
        ("step840000-unsharded", 840000),
        ("iter_0840000", 840000),
        ("checkpoint-500", 500),
        ("global_step500", 500),
        ("epoch=3-step=500", 500),
        ("epoch=3-step=500.ckpt", 500),
        ("step-500", 500),
        ("step_0500.safetensors", 500),
        ("500", 500),
        ("0000500", 500),
        ("ckpt7", 7),
        ("stage1-step1000-tokens3B", 1000),
        ("checkpoint-epoch2-step500", 500),
        ("epoch_2", 2),
        ("latest", None),
        ("checkpoint-last", None),
        ("step10k", None),
        ("footstep5", None),
        ("model-3b", None),
        ("last5-minus-sqrt", None),
    ],
)
def test_the_step_in_a_name(name: str, step: int | None) -> None:
    found = step_of(name)
    assert (found and found[1]) == step


def test_order_is_by_number_whatever_the_padding(tmp_path: Path) -> None:
    write(tmp_path, "step100", "step_0020", "checkpoint-3", "global_step1000")
    assert names(tmp_path) == ["checkpoint-3", "step_0020", "step100", "global_step1000"]


def test_what_is_no_checkpoint_is_not_read(run: Path) -> None:
    write(run, ".step99", "best", "checkpoint-last")
    (run / "latest").symlink_to("step10000")
    (run / "latest_checkpointed_iteration.txt").write_text("10000")
    (run / "step99999.log").write_text("")
    (run / "optimizer_step99999.pt").write_bytes(b"")
    assert names(run, last=2) == ["step9000", "step10000"]


def test_epochs_count_only_without_steps(tmp_path: Path) -> None:
    assert names(write(tmp_path / "a", "epoch_1", "epoch_2")) == ["epoch_1", "epoch_2"]
    assert names(write(tmp_path / "b", "epoch_9", "step500")) == ["step500"]


@pytest.mark.parametrize(
    ("numbers", "steps"),
    [
        ({"from_": 3000, "to": 5000}, [3000, 4000, 5000]),
        ({"every": 2000}, [2000, 4000, 8000, 10000]),
        ({"from_": 1000, "every": 3000}, [1000, 4000, 7000, 10000]),
        ({"to": 8000, "last": 2}, [7000, 8000]),
        ({"last": 3, "min": 3}, [8000, 9000, 10000]),
    ],
)
def test_ranges(run: Path, numbers: dict[str, int], steps: list[int]) -> None:
    assert names(run, **numbers) == [f"step{step}" for step in steps]


def test_a_list_of_steps(run: Path) -> None:
    assert names(run, (9000, 1000)) == ["step1000", "step9000"]
    with pytest.raises(InputError, match="no checkpoint of step 6000; the nearest is 5000"):
        picked(run, (1000, 6000))


def test_too_few_are_refused_and_fewer_than_the_last_are_told(run: Path) -> None:
    with pytest.raises(
        InputError, match=r"3 checkpoints \(step 8000 … 10000\) of .*the least is 5"
    ):
        picked(run, from_=8000, min=5)
    with pytest.raises(InputError, match="0 checkpoints of from 20000; the least is 1"):
        picked(run, from_=20000)
    assert picked(run, last=20).notes == (f"{run}: 9 checkpoints are all that there are",)


def test_gaps_are_told(run: Path) -> None:
    assert picked(run).summary == (
        "step 1000 … 10000, 9 of 9 checkpoints, 1000 to 2000 apart, 1 gap, after step 5000"
    )
    assert picked(run, every=1000).notes == (f"{run}: 1 gap, after step 5000",)
    assert picked(run, last=3).summary == "step 8000 … 10000, 3 of 9 checkpoints, 1000 apart"


def half_written(run: Path, name: str, kind: str) -> str:
    """Make a checkpoint that is not whole; return why."""
    folder = run / name
    folder.mkdir(parents=True)
    if kind == "no weights":
        (folder / "config.json").write_text("{}")
        return "no weights yet"
    if kind == "truncated":
        (folder / "model.safetensors").write_bytes(WEIGHTS[:-3])
        return "shorter than the"
    if kind == "shards":
        (folder / "model-00001-of-00002.safetensors").write_bytes(WEIGHTS)
        return "1 of 2 shards are missing"
    if kind == "index":
        index = {"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model-1.safetensors").write_bytes(WEIGHTS)
        return "1 of 2 shards in its index are missing"
    if kind == "our own":
        (folder / ".merge-partial").mkdir()
        (folder / ".merge-partial" / "model.safetensors.partial").write_bytes(WEIGHTS)
        return "no weights yet"
    (folder / "model_and_optim").mkdir()
    (folder / "model_and_optim" / "__0_0.distcp").write_bytes(b"")
    return "no .metadata, which is written last"


KINDS = ("no weights", "truncated", "shards", "index", "our own", "dcp")


@pytest.mark.parametrize("kind", KINDS)
def test_an_incomplete_newest_checkpoint_is_left_out_with_a_word(run: Path, kind: str) -> None:
    reason = half_written(run, "step11000", kind)
    found = picked(run, last=2)
    assert [Path(word).name for word in found.words] == ["step9000", "step10000"]
    (note,) = found.notes
    assert note.startswith(f"{run}: step11000 is left out: ") and reason in note


@pytest.mark.parametrize("kind", KINDS)
def test_an_older_incomplete_checkpoint_is_an_error(run: Path, kind: str) -> None:
    reason = half_written(run, "step6000", kind)
    with pytest.raises(InputError, match="step6000 is incomplete: ") as error:
        picked(run)
    assert reason in str(error.value) and "--skip-incomplete" in str(error.value)
    assert names(run, last=4) == ["step7000", "step8000", "step9000", "step10000"]
    assert names(run, skip=True, last=5)[0] == "step5000"


def test_an_incomplete_checkpoint_that_is_named_is_an_error(run: Path) -> None:
    half_written(run, "step11000", "truncated")
    with pytest.raises(InputError, match="step11000 is incomplete"):
        picked(run, (10000, 11000))


@pytest.mark.parametrize("name", ["step11000.tmp", "tmp-checkpoint-11000", "step11000-tmp"])
def test_a_name_that_says_that_it_is_being_written(run: Path, name: str) -> None:
    write(run, name)
    assert picked(run, last=1).notes == (f"{run}: {name} is left out: it is being written",)
    write(run, "step12000")
    assert picked(run, last=1).notes == ()


def test_a_finished_dcp_folder_is_complete(run: Path) -> None:
    half_written(run, "step11000", "dcp")
    (run / "step11000" / "model_and_optim" / ".metadata").write_bytes(b"")
    assert why_incomplete(run / "step11000") is None
    assert names(run, last=1) == ["step11000"]


def test_a_link_that_leads_nowhere_is_incomplete(run: Path) -> None:
    (run / "step11000").symlink_to(run / "gone")
    assert picked(run, last=1).notes == (
        f"{run}: step11000 is left out: a link that leads nowhere",
    )
    (run / "step12000").symlink_to("step9000")
    assert names(run, last=1) == ["step12000"]


def test_of_one_step_the_converted_form_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "step1", "step1-hf", "step1-unsharded", "step2", "step2-hf")
    assert names(tmp_path) == ["step1-hf", "step2-hf"]


def test_of_one_step_the_folder_that_transformers_loads_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "step1", "checkpoint-1")
    with pytest.raises(InputError, match="checkpoint-1, step1: checkpoints of one step"):
        preferred(["checkpoint-1", "step1"], tmp_path)
    (tmp_path / "step1" / "config.json").write_text("{}")
    assert names(tmp_path) == ["step1"]


def test_forms_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path, "step1", "step1-hf", "step2")
    with pytest.raises(InputError, match=r"not all steps have one form \(step#, step#-hf\)"):
        picked(tmp_path)
    assert names(f"{tmp_path}/step*-hf") == ["step1-hf"]
    assert names(f"{tmp_path}/step?") == ["step1", "step2"]


def test_checkpoints_in_a_folder_of_the_run(tmp_path: Path) -> None:
    write(tmp_path / "run" / "checkpoints", "step1", "step2")
    (tmp_path / "run" / "logs").mkdir()
    assert picked(tmp_path / "run").words == tuple(
        f"{tmp_path}/run/checkpoints/step{n}" for n in (1, 2)
    )
    write(tmp_path / "run" / "other", "step1")
    with pytest.raises(InputError, match=r"checkpoints in .*run/checkpoints/, .*run/other/"):
        picked(tmp_path / "run")


def test_single_files(tmp_path: Path) -> None:
    for step in (10, 200):
        (tmp_path / f"epoch=3-step={step}.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "epoch=3-step=300.safetensors").write_bytes(WEIGHTS[:-1])
    assert names(tmp_path) == ["epoch=3-step=10.safetensors", "epoch=3-step=200.safetensors"]


def test_relative_runs_stay_relative(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert picked("run/", last=1).words == ("run/step10000",)
    assert picked("run/step*", last=1).words == ("run/step10000",)
    monkeypatch.chdir(run)
    assert picked(".", last=1).words == ("./step10000",)
    assert picked("step*", last=1).words == ("step10000",)


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoints; their names hold a step"):
        picked(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        picked(tmp_path / "gone")


def test_a_run_of_200_steps_with_odd_names_gaps_and_a_half_written_last_one(tmp_path: Path) -> None:
    forms = ("step{}-hf", "iter_{:07d}", "checkpoint-{}", "global_step{}")
    steps = [5000 * n for n in range(1, 201) if n not in (150, 151, 171)]
    write(tmp_path, *(forms[n % 4].format(step) for n, step in enumerate(steps)))
    half_written(tmp_path, "step1005000-hf", "truncated")
    write(tmp_path, "latest", ".step5", "tmp-checkpoint-1010000")
    found = picked(tmp_path, from_=840000, to=880000, every=5000, last=8, min=5)
    expected = [840000, 845000, 850000, 860000, 865000, 870000, 875000, 880000]
    assert [step_of(Path(word).name)[1] for word in found.words] == expected
    assert found.notes == (f"{tmp_path}: 1 gap, after step 850000",)
    newest = picked(tmp_path, last=3)
    assert newest.summary == "step 990000 … 1000000, 3 of 198 checkpoints, 5000 apart"
    assert len(newest.notes) == 2  # the half-written one, and the one that is being written


def test_revisions_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = ["main", "stage1-step2000-tokens2B", "stage1-step1000-tokens1B", "stage2-step50"]
    monkeypatch.setattr(Hub, "revisions", lambda self, name: revisions)
    assert picked("org/name@stage1-*").words == (
        "org/name@stage1-step1000-tokens1B",
        "org/name@stage1-step2000-tokens2B",
    )
    with pytest.raises(InputError, match="no such revision with a step; there are main, "):
        picked("org/name@stage9-*")
