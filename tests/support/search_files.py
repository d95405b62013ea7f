"""Searches over tiny models: files, a worker in a process of its own, and ways to kill it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from support.checkpoint_factory import write_checkpoint
from support.paths import SOURCES

RECIPE = """
recipe:
  merge_method: linear
  models: [{model: m1, parameters: {weight: 1}}, {model: m2, parameters: {weight: 1}}]
  parameters: {normalize: false}
out: runs
"""
SPACE = """
space: {models.1.parameters.weight: [0, 1]}
"""
# −(w − 0.3)² of the weight in the recipe; a parent has none, which counts as 1.
EVALUATE = """
import os, pathlib, re
path = pathlib.Path("mergekit_config.yml")
found = re.findall(r"weight: ([-.0-9e]+)", path.read_text()) if path.exists() else ["1"]
with open(os.environ["MERGE_SEARCH_FOLDER"] + "/evaluated", "a") as log:
    print(os.environ["MERGE_SEARCH_CANDIDATE"], file=log)
print(-((float(found[-1]) - 0.3) ** 2))
"""
# Notes each merge that a worker starts, then what the test adds.
DRIVER = """
import os, signal, sys, threading, time
from pathlib import Path
from merge_worker import cli
from merge_worker.search import loop, study, work

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

merge = work.Workshop._merge
def noted(self, candidate, model):
    with open("merged", "a") as log:
        print(candidate.name, file=log)
    before_merge(candidate)
    merge(self, candidate, model)
work.Workshop._merge = noted
def before_merge(candidate):
    pass
{patch}
cli.entry()
"""


class Done(NamedTuple):
    """A worker that has ended. `code` is negative if a signal ended it."""

    code: int
    out: str
    err: str


class Searches(NamedTuple):
    """A folder with the models m1 and m2, and the searches of one test."""

    folder: Path

    def write(self, rest: str = "", *, space: str = SPACE, evaluate: str | None = None) -> Path:
        """Write s.yml; without `evaluate`, the score is −(w − 0.3)² of the weight."""
        (self.folder / "evaluate.py").write_text(EVALUATE)
        command = evaluate or f"{sys.executable} -S $MERGE_SEARCH_FOLDER/evaluate.py"
        path = self.folder / "s.yml"
        path.write_text(f"{RECIPE}{space}evaluate: '{command}'\n{rest}\n")
        return path

    def start(self, *words: str, patch: str = "", file: str = "s.yml") -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", DRIVER.format(patch=patch), "search", file, *words]
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, patch: str = "", file: str = "s.yml") -> Done:
        """Run one worker to its end. `patch` is Python that runs before it."""
        child = self.start(*words, patch=patch, file=file)
        out, err = child.communicate(timeout=600)
        return Done(child.returncode, out, err)

    def merged(self) -> list[str]:
        """Return the names of the candidates whose merges were started, in order."""
        return self._lines("merged")

    def evaluated(self) -> list[str]:
        return self._lines("evaluated")

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().split() if path.exists() else []


def make_searches(folder: Path) -> Searches:
    """Write the models m1 and m2 into a folder."""
    for number in (1, 2):
        tensors = {"layers.0.weight": torch.full((4, 6), float(number)), "norm": torch.ones(3)}
        write_checkpoint(folder / f"m{number}", tensors, config={"model_type": "tiny"})
    return Searches(folder)
