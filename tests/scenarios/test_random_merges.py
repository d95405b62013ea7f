"""Random recipes over random models against float64; `--random-merges 10000` for many."""

import shutil
from pathlib import Path

import pytest

from support.random_merges import RandomMerge

EACH = 5
"""Merges of one test."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    count = metafunc.config.getoption("--random-merges")
    metafunc.parametrize("first", range(0, count, EACH))


def test_no_result_is_beyond_its_rounding(
    first: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(first, first + EACH):
        merge = RandomMerge(seed, tmp_path / "merge")
        faults = merge.faults(lambda: "".join(capsys.readouterr()))
        assert not faults, f"seed {seed}\n{merge.text}\n{faults}"
        shutil.rmtree(merge.folder)
