"""Every command of the worker runs from the file that `merge-launch payload -o` writes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from merge_launch import cli
from merge_worker.commands import COMMANDS
from support.checkpoint_factory import read_tensors, write_checkpoint
from support.tokenizer_factory import CONFIG, llama

RECIPE = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
ROWS = 12


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "merge-worker.pyz"
    assert cli.run(["payload", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a, b and a recipe that merges them."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b"):
        write_checkpoint(folder / name, llama(ROWS, name), config=CONFIG)
    (folder / "r.yml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def worker(archive: Path, place: Path) -> Callable[..., str]:
    """The zip in a process of its own that finds no other worker."""

    def run(*words: str) -> str:
        argv = [sys.executable, "-I", str(archive), *words]
        env = {"PATH": os.environ["PATH"], "HOME": str(place)}
        done = subprocess.run(argv, capture_output=True, text=True, cwd=place, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help(command: str, worker) -> None:
    text = worker(command, "--help")
    assert text.startswith(f"usage: merge-worker {command} ")


def test_a_line_on_each_command(worker) -> None:
    text = worker("--help")
    for command in COMMANDS:
        assert command.name in text and " ".join(command.help.split()[:3]) in text


def test_merges_and_what_is_asked_of_them(worker, place: Path) -> None:
    assert "a" in worker("check", "r.yml")
    worker("merge", "r.yml", "merged", "--device", "cpu")
    worker("average", "averaged", "a", "b", "--device", "cpu")
    merged, averaged = (read_tensors(place / name) for name in ("merged", "averaged"))
    assert merged.keys() == averaged.keys()
    assert all(bool((merged[name] == averaged[name]).all()) for name in merged)
    assert "matches the manifest" in worker("verify", "merged")
    assert worker("report", "merged")


def test_compare_draws_its_page(worker, place: Path) -> None:
    worker("compare", "a", "b", "--plot", "x.html")
    assert (place / "x.html").read_text().startswith("<!doctype html>")


def test_methods_are_explained(worker) -> None:
    assert "slerp" in worker("methods")
    assert "model soup" in worker("methods", "linear")


@pytest.mark.slow
def test_adapters(worker, place: Path) -> None:
    worker("extract-lora", "a", "b", "lora", "--rank", "2")
    worker("merge-adapters", "loras", "lora", "lora")
    assert (place / "loras" / "adapter_model.safetensors").is_file()
