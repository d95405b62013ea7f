"""Paths in messages are those that were typed, and no file of ours is named as a place."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_worker.messages import relative_paths
from merge_worker.recipe.yaml_document import read_documents


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/w/m1: missing", "m1: missing"),
        ("name it as 'BASE+/w/run/a'", "name it as 'BASE+run/a'"),
        ("/w/../m1 and /w/.cache/m", "../m1 and .cache/m"),
        ("/v/w/m1, ~/w/m1, /w2/m1, /w", "/v/w/m1, ~/w/m1, /w2/m1, /w"),
        ("add --weka BUCKET:/w/m", "add --weka BUCKET:/w/m"),
    ],
)
def test_paths_below_a_folder_become_relative(text: str, shown: str) -> None:
    assert relative_paths(text, "/w") == shown == relative_paths(text, "/w/")
    assert relative_paths(text, "") == text


def test_a_merge_here(
    launch_process: Callable[..., object], models: list[Path], work: Path
) -> None:
    first, second = models[0].name, f"{models[1].name}/../copy"
    shutil.copytree(models[0], "copy")
    done = launch_process("local", "out", first, second)
    assert done.code == 0 and str(work) not in done.out + done.err
    assert f"warning: the result is {first} and {second}, bit for bit" in done.err
    end = r"out: 2 tensors merged, 0 copied; \d+ bytes read, \d+ bytes written in \d+\.\d s\n"
    assert re.fullmatch(end, done.out)


def test_a_fault_of_a_check(launch: Callable[..., object], models: list[Path]) -> None:
    done = launch("check", "out", models[0].name, "none")
    assert done.err == "merge-launch: none: no such folder; Hub models are written org/name\n"


def test_members_of_a_sweep_have_no_lines() -> None:
    text = "merge_method: linear\nparameters: {x: 1}\n"
    places = [read_documents(text, name)[0].place(("parameters", "x")) for name in ("r", "s: w1")]
    assert places == ["r:2: parameters.x", "s: w1: parameters.x"]
