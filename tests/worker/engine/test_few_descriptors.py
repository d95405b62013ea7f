"""A merge under a small limit of open files (`ulimit -n`)."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.checkpoint_factory import write_checkpoint
from support.recipes import average, shards_of

SHARDS = 60


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    names = [f"layers.{i}.w" for i in range(SHARDS)]
    return [
        write_checkpoint(
            tmp_path / model, {n: torch.randn(16, 32).bfloat16() for n in names}, shards=SHARDS
        )
        for model in "abc"
    ]


def limited(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "merge_worker", *map(str, words), "--progress", "off"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("threads", [1, 4])
def test_more_input_files_than_may_be_open(
    tmp_path: Path, models: list[Path], threads: int
) -> None:
    done = limited("average", tmp_path / "few", *models, "--threads", threads)
    assert done.returncode == 0, done.stderr
    assert average(tmp_path / "many", models) == 0
    assert shards_of(tmp_path / "few") == shards_of(tmp_path / "many")


def test_more_output_files_than_may_be_open(tmp_path: Path, models: list[Path]) -> None:
    done = limited("average", tmp_path / "out", *models, "--shard-size", "2KB")
    assert done.returncode == 2
    assert "60 files of weights are written at a time, and the limit of open files is 64" in (
        done.stderr
    )
    assert "ulimit -n 140" in done.stderr
