"""`merge-launch eval OUT [BACKEND]`: benchmarks by lm-evaluation-harness, here or as a job."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_worker.command_line.parser import Parser
from merge_worker.messages import printable
from merge_worker.output.evaluation import record

from .. import backends, table
from ..backends.base import Backend, LocalBackend, Service
from ..errors import UsageError
from ..evaluations import inputs, jobs, results
from ..evaluations.harness import Harness, Model, version
from ..job.source import absolute, current_folder
from ..settings.groups import JobOptions, WorkerOptions
from ..settings.options import option, options_of
from ..submission.prepare import Request, read_settings
from .decorators import Run, add_settings, given, say
from .jobs import report_submitted


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation; those that the harness has too are passed on to it."""

    tasks: str | None = option(None, "tasks and groups of the harness", "A,B")
    include_path: str | None = option(None, "a folder with tasks of your own", "DIR")
    parents: bool = option(False, "evaluate the inputs of the merge too, each once")
    card: bool = option(False, "write the scores into the model card")
    limit: str | None = option(None, "samples of each task", "N", r"[0-9.]+", "a number")
    num_fewshot: int | None = option(None, "examples in the prompt", "N")
    model: str = option("hf", "the library that runs the model", "hf|vllm", "hf|vllm", "hf or vllm")
    model_args: str | None = option(None, "arguments of that library", "dtype=bfloat16,…")
    eval_args: str | None = option(None, "more words for the harness", "'--batch_size 8'")
    harness: str | None = option(None, "the program; default: lm-eval", "PROGRAM")
    json: bool = option(False, "print the scores as JSON")


HERE = "here"


def places() -> dict[str, str]:
    """Return what may follow OUT, with help."""
    backend_helps = {name: backends.get(name).help for name in backends.names()}
    return {HERE: "evaluate in this terminal (the default)", **backend_helps}


def options(parser: Parser, place: str) -> Run:
    """Add the words and options of `eval OUT [PLACE]`."""
    parser.add_argument("path", metavar="OUT", help="the folder of a finished merge")
    if place == HERE:
        add_settings(parser, (EvalOptions,))
        return lambda arguments: evaluate_here(arguments.path, given(arguments))
    backend = backends.get(place)
    add_settings(parser, (EvalOptions, backend.resources, JobOptions), ("then", "engine"))
    return lambda arguments: launch(backend, arguments.path, given(arguments))


def evaluate_here(path: str, given: dict[str, Any]) -> int:
    """Evaluate a finished merge in this terminal."""
    (options,), _ = read_settings([EvalOptions], given, None)
    return evaluate(Path(path).expanduser(), options)


def launch(backend: Backend[Any], path: str, given: dict[str, Any]) -> int:
    """Submit an evaluation as a job, or run it here."""
    out = path
    (eval_options, options, resources), taken = read_settings(
        [EvalOptions, JobOptions, backend.resources], given, backend
    )
    if options.then is not None:
        raise UsageError("--then: an evaluation has no command after it")
    here = isinstance(backend, LocalBackend) and not backend.detached(resources)
    if here and not options.dry_run:
        return evaluate(Path(out).expanduser(), eval_options)
    folder = current_folder(os.environ)
    harness_of(eval_options)  # its faults are told before anything is submitted
    merge = jobs.evaluated(absolute(out, folder), folder)
    request = Request(backend, options, WorkerOptions(), resources, taken)
    job = jobs.job_of(request, merge, _words(request, merge.out, eval_options, folder))
    if options.dry_run:
        sys.stdout.write(request.render(job))
        return 0
    return report_submitted(jobs.submit_evaluation(request, job), options.follow)


def _words(request: Request, out: str, options: EvalOptions, folder: str) -> list[str]:
    """Return the command that the job runs: this program, in the environment of the job."""
    program = ["merge-launch"]
    if not isinstance(request.backend, Service):  # whose images have a Python of their own
        program = [request.options.python or sys.executable, "-m", "merge_launch"]
    words = [*program, "eval", out]
    for each in options_of(EvalOptions):
        value = getattr(options, each.name)
        if each.name == "include_path" and value:
            value = absolute(value, folder)
        if value is True:
            words.append(each.flag)
        elif value not in (None, False) and value != each.default:
            words.append(f"{each.flag}={value}")
    return words


def harness_of(options: EvalOptions) -> Harness:
    """Return the harness as the options describe it. UsageError without tasks."""
    tasks = ",".join(word for word in (options.tasks or "").split(",") if word)
    if not tasks:
        raise UsageError(
            "eval: no tasks given; name them with --tasks, as in --tasks arc_easy,hellaswag"
        )
    try:
        more = tuple(shlex.split(options.eval_args or ""))
    except ValueError as error:
        raise UsageError(f"--eval-args: {str(error).lower()}") from None
    place = options.include_path
    include = str(Path(place).expanduser().absolute()) if place else None
    return Harness(
        tasks,
        options.model,
        include,
        options.limit,
        options.num_fewshot,
        options.model_args,
        more,
        options.harness,
    )


def evaluate(out: Path, options: EvalOptions) -> int:
    """Evaluate a finished merge, and its inputs if asked for; record and print the scores."""
    harness = harness_of(options)
    value = inputs.manifest_of(out)
    harness.check()
    parents, base = inputs.parents_of(out, value) if options.parents else ([], None)
    merged = harness.run(Model(printable(out.resolve().name), str(out.resolve())))
    cache, others = inputs.Cache(harness), {}
    for model in parents:
        found = cache.read(model, version(merged))
        if found is None:
            found = harness.run(model)
            cache.write(model, found)
        else:
            say(f"{model.name}: evaluated before, its results are reused")
        others[model.name] = found
    scores = results.scores_of(merged, others)
    if not scores:
        raise UsageError(f"{harness.tasks}: these tasks gave no number; is a metric missing?")
    record(out, [results.evaluation_of(harness, merged, scores, options.card)])
    if options.json:
        table.show([score.json() for score in scores], (), True)
        return 0
    rows = results.rows_of(scores, base)
    columns = list(rows[0]) if parents else ["task", "metric", "merged"]
    table.show([{c: row.get(c, "") for c in columns} for row in rows], columns, False)
    if any(score.is_told() for score in scores):
        print(results.NOTE)
    return 0
