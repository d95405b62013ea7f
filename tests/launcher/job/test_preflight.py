"""Checks before a submission, with the options that the worker will get."""

from pathlib import Path

import pytest

from merge_launch.job import preflight
from merge_launch.job.source import read_sources
from merge_launch.settings.groups import MergeOptions, WorkerOptions
from merge_worker.errors import InputError, OutputError
from merge_worker.output import space


def merge_of(*models: object, folder: Path):
    words = ["out", *map(str, models)]
    return read_sources(words, MergeOptions(), None, str(folder))[0]


def test_the_plan_has_the_workers_options(models, work: Path) -> None:
    options = WorkerOptions(
        dtype="float16", shard_size="1KB", memory="1GiB", threads=1, seed=5, strict=True
    )
    plan = preflight.plan_of(merge_of(*models, folder=work), options)
    given = plan.options
    assert (given.dtype, given.shard_bytes, given.memory_bytes) == ("float16", 1000, 1024**3)
    assert (given.threads, given.seed, given.strict) == (1, 5, True)
    assert given.relative_to == work


def test_missing_tensors_as_the_worker_would_treat_them(models, work: Path) -> None:
    from torch import zeros

    from support.checkpoint_factory import write_checkpoint

    partial = write_checkpoint(work / "partial", {"norm": zeros(3)}, config={})
    merge = merge_of(models[0], partial, folder=work)
    with pytest.raises(InputError):
        preflight.plan_of(merge, WorkerOptions())
    assert preflight.plan_of(merge, WorkerOptions(missing="copy"))


def test_models_elsewhere_are_named_once_for_each_kind(models, work: Path) -> None:
    merge = merge_of(models[0], "/gone/a", "/gone/b", "org/name", folder=work)
    notes = preflight.check(merge, WorkerOptions(), all_here=False)
    assert notes == [
        "not on this machine; not checked: /gone/a, /gone/b",
        "on the Hub; not checked: org/name",
    ]


def test_a_misspelt_folder_is_not_silently_a_name_on_the_hub(models, work: Path) -> None:
    (work / "models").mkdir()
    models[1].rename(work / "models" / "code")
    merge = merge_of(models[0], "models/cod", "models/other-things", folder=work)
    first, second = preflight.check(merge, WorkerOptions(), all_here=False)
    assert first == (
        "models/cod: no such folder, so it is read from the Hub (did you mean 'models/code'?)"
    )
    assert second == "on the Hub; not checked: models/cod, models/other-things"


def warnings_of(models, work: Path, **options) -> list[str]:
    merge = merge_of(*models, folder=work)
    return preflight.check(merge, WorkerOptions(**options), all_here=False)


def test_a_disk_or_a_quota_that_is_too_small(models, work: Path, monkeypatch) -> None:
    """Jobs check the disk only when they run."""
    spare, most = space.SPARE_BYTES, space.Limit(0, hard=1 << 20)
    monkeypatch.setattr(space, "SPARE_BYTES", 1 << 60)
    with pytest.raises(OutputError, match="are free there"):
        warnings_of(models, work)
    monkeypatch.setattr(space, "SPARE_BYTES", spare)
    monkeypatch.setattr(space, "quotas_of", lambda folder: (space.Quota("user anna", most),))
    with pytest.raises(OutputError, match="left of the quota of user anna there"):
        warnings_of(models, work)
    monkeypatch.setattr(
        space, "quotas_of", lambda folder: (space.Quota("user anna", space.Limit(soft=1)),)
    )
    (warning,) = warnings_of(models, work)
    assert warning.startswith(f"{work}/out: ") and "soft limit of user anna" in warning


def test_an_occupied_output_folder_is_an_error_before_the_submission(models, work: Path) -> None:
    merge = merge_of(*models, folder=work)
    out = work / "out"
    out.write_bytes(b"")
    with pytest.raises(OutputError, match="out: is a file"):
        preflight.check(merge, WorkerOptions(), all_here=True)
    out.unlink()
    out.mkdir()
    assert preflight.check(merge, WorkerOptions(), all_here=True) == []
    (out / ".merge-partial").mkdir()
    assert preflight.check(merge, WorkerOptions(), all_here=True) == []
    (out / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"not empty.*thesis\.tex"):
        preflight.check(merge, WorkerOptions(), all_here=True)
    (out / "merge_manifest.json").write_text("{}")  # the worker knows what it may replace
    assert preflight.check(merge, WorkerOptions(), all_here=True) == []


def test_an_output_inside_an_input_is_an_error(models, work: Path) -> None:
    words = [f"{models[0]}/out", *map(str, models)]
    merge = read_sources(words, MergeOptions(), None, str(work))[0]
    with pytest.raises(OutputError, match="is inside the input"):
        preflight.check(merge, WorkerOptions(), all_here=True)


def test_a_finished_or_remote_output_needs_no_disk_space(models, work: Path, monkeypatch) -> None:
    monkeypatch.setattr(space, "SPARE_BYTES", 1 << 60)
    (work / "out").mkdir()
    (work / "out" / "merge_manifest.json").write_text("{}")
    assert warnings_of(models, work) == []
    with pytest.raises(OutputError):
        warnings_of(models, work, overwrite=True)
    merge = read_sources(["/gone/out", *map(str, models)], MergeOptions(), None, str(work))[0]
    assert preflight.check(merge, WorkerOptions(), all_here=False) == []


def test_missing_models_of_a_local_job_are_an_error(models, work: Path) -> None:
    with pytest.raises(InputError):
        merge = merge_of(models[0], "/gone", folder=work)
        preflight.check(merge, WorkerOptions(), all_here=True)


def test_relative_paths_of_a_recipe_start_here(models, work: Path, monkeypatch) -> None:
    recipe = work / "r.yml"
    recipe.write_text(
        "merge_method: linear\nmodels: [{model: m1}, {model: ./m2}]\nparameters: {weight: 1}\n"
    )
    merge = read_sources([str(recipe)], MergeOptions(), None, str(work))[0]
    monkeypatch.chdir("/")
    assert preflight.check(merge, WorkerOptions(), all_here=False) == []
