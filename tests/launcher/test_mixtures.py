"""Mixtures of experts by every backend: recipes travel as others do, files of prompts do not."""

import json
import sys
from pathlib import Path

import pytest

from merge_launch import backends
from support.mixtures import recipe, write_llama
from support.recipes import shards_of


@pytest.fixture
def moe(work: Path) -> Path:
    for seed, name in enumerate(("base", "a", "b")):
        write_llama(work / name, seed)
    (work / "a.txt").write_text("ab\nba\n")
    experts = [
        {"source_model": "a", "prompts_file": "a.txt"},
        {"source_model": "b", "positive_prompts": ["cd"]},
    ]
    return recipe(work, "base", experts, gate_mode="cheap_embed")


@pytest.mark.slow
@pytest.mark.parametrize("backend", backends.names())
def test_the_job_of_each_backend_builds(
    backend: str, moe: Path, job_argv, bare_bash, work: Path, tmp_path: Path, launch
) -> None:
    argv = job_argv(backend, str(moe), "out", "--progress", "off")
    done = bare_bash(*argv, cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads((work / "out" / "config.json").read_text())["model_type"] == "mixtral"
    assert launch("local", str(moe), "here", "--python", sys.executable).code == 0
    assert shards_of(work / "out") == shards_of(work / "here")


def test_check_says_what_is_built(moe: Path, launch) -> None:
    done = launch("check", str(moe))
    assert done.code == 0
    assert "target     mixtral (MixtralForCausalLM): 2 experts, 2 for each token" in done.out
    assert "needs tokenizers" in done.out


def test_a_missing_file_of_prompts_stops_a_submission(moe: Path, launch, work: Path) -> None:
    (work / "a.txt").unlink()
    done = launch("local", str(moe), "out")
    assert done.code == 3 and "experts[0].prompts_file" in done.err
    assert not (work / "out").exists()


def test_no_direct_mixtures(moe: Path, launch) -> None:
    done = launch("local", "out", "a", "b", "--method", "moe")
    assert done.code == 2 and "a mixture is written as a recipe with 'experts'" in done.err
