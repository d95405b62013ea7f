"""The work on one candidate: its model in a folder, and the score of that folder."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, OutputError, Stopped, UsageError, WorkerError
from ..messages import printable
from ..output.files import MANIFEST, PARTIAL, output_errors, path_inside, write_file
from ..output.lock import is_held
from ..output.manifest import read_manifest
from .candidates import MODEL, RECIPE, Candidate
from .children import Deadline, run, worker_argv
from .definition import Measure
from .results import DONE, FAILED, Result
from .scores import NoScore, Score, look, read_score

LARGE = 64 << 20
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack")
POLL_S = 0.5
LONGEST = 300
CANDIDATE_VARIABLE, FOLDER_VARIABLE = "MERGE_SEARCH_CANDIDATE", "MERGE_SEARCH_FOLDER"
PERPLEXITY = "perplexity"


class Failed(Exception):
    """A candidate without a score: its merge was refused, or its evaluation failed.

    `code` is the exit code of the worker for errors of this kind.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(printable(message)[:LONGEST])
        self.code = code


@dataclass(frozen=True)
class Workshop:
    """All that candidates have in common.

    `out` is the folder of the search, `folder` where relative paths of recipes start. `options` are
    words for the command that merges, `devices` those of them that hold for the perplexity too.
    """

    out: Path
    folder: Path
    options: Sequence[str]
    devices: Sequence[str]
    deadline: Deadline

    def place(self, candidate: Candidate) -> Path:
        return self.out / candidate.name

    def claim(self, candidate: Candidate) -> None:
        """Write the recipe of a candidate into its folder."""
        place = self.place(candidate)
        with output_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            if candidate.text is not None:
                write_file(place / RECIPE, candidate.text)

    def make(self, candidate: Candidate) -> float:
        """Make or finish the model of a candidate; returns the seconds that it took.

        Raises Failed if the merge is refused, OutputError, or Stopped.
        """
        model = self.place(candidate) / MODEL
        began = time.monotonic()
        if candidate.text is None:
            with output_errors(model):
                mirror(Path(candidate.source or ""), model)
        elif not (model / MANIFEST).is_file():
            self._merge(candidate, model)
        return time.monotonic() - began

    def make_together(self, candidates: Sequence[Candidate]) -> dict[str, float]:
        """Merge candidates in one pass over the inputs; return the seconds of each by its name.

        Where one of them is refused, none is merged here: `make` finds out which. Raises Stopped.
        """
        todo = [
            (candidate, self.place(candidate) / MODEL)
            for candidate in candidates
            if candidate.text is not None
        ]
        todo = [(each, model) for each, model in todo if not (model / MANIFEST).is_file()]
        if len(todo) < 2:
            return {}
        began = time.monotonic()
        pairs: list[str] = []
        for candidate, model in todo:
            self._wait_for(model)
            pairs += ["-a", str(self.place(candidate) / RECIPE), str(model)]
        words = [*pairs, f"--relative-to={self.folder}", "--progress=off"]
        output = self.place(todo[0][0]) / "merge"
        code = run(
            worker_argv("merge", *words, *self.options), self.folder, output, {}, self.deadline
        )
        if code == Stopped.exit_code:
            raise Stopped("stopped during a merge; run the same command to resume")
        each_s = (time.monotonic() - began) / len(todo)
        return {candidate.name: each_s for candidate, _ in todo} if code == 0 else {}

    def _wait_for(self, model: Path) -> None:
        # A merge whose worker was killed may live a moment longer.
        while any(map(is_held, (model / PARTIAL).glob("lock-*"))):
            self.deadline.check()
            time.sleep(POLL_S)

    def _merge(self, candidate: Candidate, model: Path) -> None:
        self._wait_for(model)
        recipe = self.place(candidate) / RECIPE
        words = [str(recipe), str(model), f"--relative-to={self.folder}", "--progress=off"]
        output = self.place(candidate) / "merge"
        argv = worker_argv("merge", *words, *self.options)
        code = run(argv, self.folder, output, {}, self.deadline)
        if code == 0:
            return
        text = _last_line(output).removeprefix("merge-worker: ")
        if code == Stopped.exit_code:
            raise Stopped("stopped during a merge; run the same command to resume")
        if code == OutputError.exit_code:
            raise OutputError(text)
        if code < 0:
            raise Failed(f"the merge was killed by signal {-code}; was memory short?", 1)
        raise Failed(f"merge: {text}", code)

    def score(self, candidate: Candidate, measure: Measure, name: str) -> tuple[Score, float]:
        """Score the model of a candidate; returns the score and the seconds that it took.

        The output goes to files called `name` in the candidate's folder. Raises Failed.
        """
        place = self.place(candidate)
        model, output = place / MODEL, place / name
        before, began = look(model), time.monotonic()
        if measure.command is None:
            data = str(self.folder / Path(measure.data or "").expanduser())
            words = [
                PERPLEXITY,
                str(model),
                "--data",
                data,
                "--json",
                "--progress=off",
                *self.devices,
            ]
            argv = worker_argv(*words)
        else:
            argv = ["bash", "-c", measure.command]
        variables = {
            CANDIDATE_VARIABLE: candidate.name,
            FOLDER_VARIABLE: str(self.folder),
            "PWD": str(model),
        }
        code = run(argv, model, output, variables, self.deadline)
        seconds = time.monotonic() - began
        what = "evaluate" if measure.command is not None else PERPLEXITY
        if code != 0:
            self._stop_if_signalled(code)
            ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            text = _last_line(output).removeprefix("merge-worker: ")
            raise Failed(f"{what} {ended}: {text or 'it printed nothing'}", UsageError.exit_code)
        printed = output.with_name(f"{name}.out").read_text(encoding="utf-8", errors="replace")
        try:
            if measure.command is None:
                # Not files: a folder may hold those of earlier evaluations.
                only = dataclasses.replace(measure, score=((PERPLEXITY, 1.0),))
                return read_score(only, printed, model, look(model)), seconds
            return read_score(measure, printed, model, before), seconds
        except NoScore as error:
            raise Failed(f"{what}: {error}", UsageError.exit_code) from None

    def result(self, candidate: Candidate, measure: Measure, name: str, evaluation: str) -> Result:
        """Make and score a candidate; a failure is a result too.

        `evaluation` is the digest of the measure.
        """
        merge_s = evaluate_s = 0.0
        score, message, code = None, "", 0
        try:
            merge_s = self.make(candidate)
            score, evaluate_s = self.score(candidate, measure, name)
        except Failed as error:
            message, code = str(error), error.code
        return Result(
            name=candidate.name,
            kind=candidate.kind,
            state=FAILED if score is None else DONE,
            score=None if score is None else score.value,
            stderr=None if score is None else score.stderr,
            parts={} if score is None else score.parts,
            values=candidate.values,
            message=message,
            code=code,
            trial=candidate.trial,
            evaluation=evaluation,
            ended=time.time(),
            merge_s=round(merge_s, 3),
            evaluate_s=round(evaluate_s, 3),
        )

    def _stop_if_signalled(self, code: int) -> None:
        """Raise Stopped if a program ended because the whole job is being stopped.

        Schedulers signal all processes of a job, in no order: ours may come a moment later.
        """
        if code in (Stopped.exit_code, -15, 128 + 15):
            time.sleep(2 * POLL_S)
            self.deadline.check()
            if code == Stopped.exit_code:
                raise Stopped("stopped during an evaluation; run the same command to resume")


def mirror(source: Path, target: Path) -> None:
    """Make a folder that shows a model: links to its weights, copies of its small files.

    Commands that write where they run leave the model itself as it is.
    """
    if not source.is_dir():
        raise Failed(f"{source}: no such folder", InputError.exit_code)
    for root, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = target / Path(root).relative_to(source)
        inside.mkdir(parents=True, exist_ok=True)
        for name in files:
            path, link = Path(root) / name, inside / name
            if link.exists() or link.is_symlink():
                continue
            if path.suffix in WEIGHTS or path.stat().st_size > LARGE:
                link.symlink_to(path.resolve())
            else:
                shutil.copy2(path, link)


def drop_weights(model: Path) -> None:
    """Remove the files of a merge; those that an evaluation wrote into its folder stay."""
    place = model.parent
    if (model / MANIFEST).is_file():
        # First: without it the folder is no finished merge.
        (model / MANIFEST).replace(place / MANIFEST)
    try:
        table = read_manifest(place) or {}
    except WorkerError:
        table = {}
    for entry in table.get("outputs", ()):
        path_inside(model, entry["file"]).unlink(missing_ok=True)
    for path in model.glob("*"):
        if path.suffix in WEIGHTS or path.name.endswith(".index.json"):
            path.unlink(missing_ok=True)
    shutil.rmtree(model / PARTIAL, ignore_errors=True)


def _last_line(output: Path) -> str:
    """Return the last line of a program's errors, else of its output, else nothing."""
    for ending in ("err", "out"):
        try:
            text = output.with_name(f"{output.name}.{ending}").read_text(errors="replace")
        except OSError:
            continue
        lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
        if lines:
            return lines[-1]
    return ""
