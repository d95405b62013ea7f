"""A request: the same jobs from words as from merges, and every fault before a submission."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from merge_launch import backends
from merge_launch.errors import UsageError
from merge_launch.job.source import Merge
from merge_launch.submission.prepare import Request, read_request
from merge_worker.errors import InputError


def request_of(backend: str, *words: object, **given: Any) -> tuple[Request, Merge]:
    request, merges = read_request(backends.get(backend), [str(word) for word in words], given)
    return request, merges[0]


def check(backend: str, *words: object, **given: Any) -> list[str]:
    request, merge = request_of(backend, *words, **given)
    return request.check(merge)


def test_words_and_flags(models, work: Path) -> None:
    request, merge = request_of("slurm", "out", *models, then="ls", dtype="float16", mem="7G")
    assert merge.out == str(work / "out")
    assert (request.options.then, request.worker.dtype, request.resources.mem) == (
        *("ls", "float16", "7G"),
    )
    assert request.check(merge) == []


@pytest.mark.parametrize(("backend", "count"), [("slurm", 2), ("local", 1)])
def test_what_follows_is_a_job_of_its_own_where_jobs_can_wait(
    models, backend: str, count: int
) -> None:
    request, merge = request_of(backend, "out", *models, then="ls")
    first, *later = request.jobs(merge)
    assert len([first, *later]) == count
    assert (first.then is None) == (count == 2)
    assert request.runs_in_foreground == (backend == "local")
    assert not request_of("local", "out", *models, detach=True)[0].runs_in_foreground


def test_several_merges_in_one_pass(models) -> None:
    request, merge = request_of("slurm", "out", *models, then="ls")
    job, _ = request.jobs(merge, dataclasses.replace(merge, out="/elsewhere/other"))
    assert [name for name, _ in job.recipes()] == ["recipe.yml", "recipe-2.yml"]
    assert "/elsewhere/other" in request.render(job)


def test_faults_of_job_and_plan_together(models) -> None:
    weights = models[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        check("slurm", "out", *models)
    with pytest.raises(UsageError, match=r"(?s)--array=1.*model\.safetensors"):
        check("slurm", "out", *models, directive=["--array=1"])


def test_mergekit_reads_the_models_itself(models) -> None:
    (models[1] / "model.safetensors").write_bytes(b"")
    assert check("slurm", "out", *models, engine="mergekit") == []
