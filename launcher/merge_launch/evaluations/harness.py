"""lm-evaluation-harness as an external command: its words, and the file of results it leaves.

The harness names that file by model and time, and only warns if it cannot write it: its exit code
says nothing. Each run has a new folder here, and a run without a file has failed.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_worker.messages import printable
from merge_worker.output.scores import Number

from ..errors import EvaluationError, UsageError
from ..process import find, foreground

URL = "https://github.com/EleutherAI/lm-evaluation-harness"
NAMES = ("lm-eval", "lm_eval")


@dataclass(frozen=True)
class Model:
    """A model as the harness loads it: a folder or a Hub name, with a revision or an adapter."""

    name: str
    path: str
    revision: str | None = None
    adapter: str | None = None

    def arguments(self) -> dict[str, str]:
        values = {"pretrained": self.path, "revision": self.revision, "peft": self.adapter}
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True)
class Harness:
    """The options of all runs of one command. `more` are words for the harness itself."""

    tasks: str
    kind: str = "hf"
    include_path: str | None = None
    limit: str | None = None
    shots: int | None = None
    model_args: str | None = None
    more: tuple[str, ...] = ()
    program: str | None = None

    def settings(self) -> dict[str, Any]:
        """Return what makes two runs the same measurement."""
        return {
            "tasks": sorted(self.tasks.split(",")),
            "model": self.kind,
            "limit": self.limit,
            "num_fewshot": self.shots,
            "model_args": self.model_args,
            "eval_args": list(self.more),
        }

    def argv(self, model: Model, folder: Path) -> list[str]:
        """Return the command that evaluates a model and writes results below a folder."""
        words = ["--model", self.kind, "--model_args", self._model_args(model)]
        words += ["--tasks", self.tasks, "--output_path", str(folder)]
        words += ["--include_path", self.include_path] if self.include_path else []
        words += ["--limit", self.limit] if self.limit else []
        words += ["--num_fewshot", str(self.shots)] if self.shots is not None else []
        return [self._program(), *words, *self.more]

    def _program(self) -> str:
        for name in [self.program] if self.program else NAMES:
            if shutil.which(name):
                return name
        raise UsageError(
            f"{self.program or NAMES[0]} is not on this machine's PATH\n"
            f"  pip install 'lm-eval[hf]' there, or name the program with --harness"
        )

    def _model_args(self, model: Model) -> str:
        """Return the arguments of a model: as JSON, since a path may hold commas."""
        given = [pair.partition("=") for pair in (self.model_args or "").split(",") if pair]
        values = {**model.arguments(), **{key: value for key, _, value in given}}
        if any(set(value) & set(",={") for value in values.values()):
            return json.dumps(values)
        return ",".join(f"{key}={value}" for key, value in values.items())

    def check(self) -> None:
        """Raise UsageError if the harness is missing or an option cannot be right."""
        self._program()
        if self.include_path and not Path(self.include_path).is_dir():
            raise UsageError(f"--include-path {printable(self.include_path)}: no such folder")
        pairs = [pair for pair in (self.model_args or "").split(",") if pair]
        for pair in pairs:
            if "=" not in pair:
                raise UsageError(f"--model-args {printable(pair)}: expected NAME=VALUE")

    def run(self, model: Model) -> dict[str, Any]:
        """Evaluate a model; returns the JSON of its results. Raises EvaluationError."""
        with tempfile.TemporaryDirectory(prefix="merge-launch-eval-") as place:
            argv = self.argv(model, Path(place))
            # The harness prints a table of its own; stdout is for ours.
            wrapper = [find("bash"), "-c", 'exec "$@" >&2', "bash"]
            code = foreground([*wrapper, find(argv[0]), *argv[1:]])
            files = sorted(Path(place).rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
            results = [path for path in files if path.name.startswith("results")]
            if code != 0 or not results:
                fact = f"ended with code {code}" if code else "ended, but wrote no results"
                raise EvaluationError(
                    f"{model.name}: {argv[0]} {fact}; its own words are above\n"
                    f"  it was called as: {shlex.join(argv)}"
                )
            return read_results(results[-1], model.name)


def read_results(path: Path, name: str) -> dict[str, Any]:
    """Return the results in a file of the harness. Raises EvaluationError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{name}: the results cannot be read: {error}") from None
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, dict) or not all(isinstance(r, dict) for r in results.values()):
        raise EvaluationError(f"{name}: the file of the harness has no results: {path.name}")
    return {**value, "results": results}


@dataclass(frozen=True)
class Metric:
    """One number of a task."""

    task: str
    name: str
    number: Number
    higher_is_better: bool | None


def metrics(value: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of groups and tasks; a group stands for those of its tasks that it has."""
    groups = value.get("groups") if isinstance(value.get("groups"), dict) else {}
    above: dict[str, set[str]] = {}
    for group, tasks in (value.get("group_subtasks") or {}).items():
        for task in tasks:
            above.setdefault(task, set()).update((groups or {}).get(group) or ())
    for task, numbers in value["results"].items():
        better = (value.get("higher_is_better") or {}).get(task) or {}
        for key, number in numbers.items():
            metric, comma, kind = key.partition(",")
            error_key = metric.endswith("_stderr")
            if not comma or error_key or key in above.get(task, ()) or not _is_number(number):
                continue
            error = numbers.get(f"{metric}_stderr,{kind}")  # may be the text "N/A"
            known = float(error) if _is_number(error) else None
            label = metric if kind == "none" else f"{metric} ({kind})"
            higher = better.get(metric)
            yield Metric(
                task,
                label,
                Number(float(number), known),
                higher if higher in (True, False) else None,
            )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(value))  # type: ignore[arg-type]


def dataset(value: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return what the results say of the data of a task, as `model-index` names it."""
    config = (value.get("configs") or {}).get(task) or {}
    shots = (value.get("n-shot") or {}).get(task)
    path = config.get("dataset_path")
    known = isinstance(path, str) and path not in ("json", "csv", "text", "parquet")
    facts = {
        "type": path if known else task,
        "config": config.get("dataset_name"),
        "split": config.get("test_split") or config.get("validation_split"),
        "args": {"num_few_shot": shots} if isinstance(shots, int) else None,
    }
    return {key: item for key, item in facts.items() if item is not None}


def version(value: Mapping[str, Any]) -> str:
    """Return the version of the harness that wrote results, or ""."""
    return str(value.get("lm_eval_version") or "")
