"""`merge-launch check`: plan a merge from headers and report every fault; write nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from merge_worker.command_line.parser import Parser
from merge_worker.errors import WorkerError
from merge_worker.messages import print_line, printable
from merge_worker.options import options_of as read_by

from ..errors import UsageError
from ..job import preflight
from ..job.source import add_missing_models, current_folder, known_methods, read_sources
from ..settings.groups import CheckOptions, MergeOptions, WorkerOptions
from ..settings.options import options_of
from ..submission.prepare import read_settings
from .decorators import Run, add_settings, add_source, as_typed, given, say

NOT_READ = tuple(
    option.name
    for option in options_of(WorkerOptions)
    if option.name not in {each.name for each in read_by("check")}
)
"""Options of jobs that change no plan: accepted, so that the words of a job can be checked."""


def options(parser: Parser, place: str) -> Run:
    """Add the words and options of `check`."""
    add_source(parser)
    add_settings(parser, (MergeOptions, WorkerOptions, CheckOptions), NOT_READ)
    return lambda arguments: check_command(arguments.source, given(arguments))


def check_command(source: list[str], given: dict[str, Any]) -> int:
    """Plan a merge from headers; report every fault; write nothing."""
    from merge_worker.commands.check import report_plan

    groups = [MergeOptions, WorkerOptions, CheckOptions]
    (merge_options, worker_options, check_options), _ = read_settings(groups, given, None)
    folder = current_folder(os.environ)
    try:
        methods = known_methods(worker_options.methods, os.environ)
        read = read_sources(source, merge_options, worker_options.dtype, folder, methods)
        merges = [preflight.with_runs_here(merge, worker_options) for merge in read]
    except WorkerError as error:
        raise add_missing_models(error, source, folder) from None
    if check_options.json and len(merges) > 1:
        raise UsageError("--json: the plan of one result; give one window and one schedule")
    for merge in merges:
        plan = preflight.plan_of(merge, worker_options)
        if check_options.json:  # else the text ends with the warnings
            for warning in plan.warnings:
                say(f"warning: {warning}")
        report = report_plan(plan, Path(merge.out), check_options.json)
        title = f"{printable(merge.out)}\n" if len(merges) > 1 else ""
        text = f"{title}{report.text}"
        print_line(text if check_options.json else as_typed(text), sys.stdout)
        if report.error is not None:
            raise report.error
    return 0
