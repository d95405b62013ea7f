"""TODO"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from merge_worker.errors import WorkerError

from ..job.source import add_missing_models, current_folder, read_source
from ..profiles import layers
from ..settings.groups import CheckOptions, MergeOptions, WorkerOptions
from ..submission.prepare import option_layers
from .wiring import say


def check(source: list[str], given: dict[str, Any]) -> int:
    from merge_worker.commands import check as plan_report

    from ..job import preflight

    groups = [MergeOptions, WorkerOptions, CheckOptions]
    found: list[Any] = layers.resolve(groups, option_layers(given, None))
    merge_options, worker_options, printing = found
    folder = current_folder(os.environ)
    try:
        merge = read_source(source, merge_options, worker_options.dtype, folder)
    except WorkerError as error:
        raise add_missing_models(error, source, folder) from None
    plan = preflight.plan_of(merge, worker_options)
    for warning in plan.warnings if printing.json else ():  # else they end the text
        say(f"warning: {warning}")
    told = plan_report.checked(plan, Path(merge.out), printing.json)
    print(told.text)
    if told.fault is not None:
        raise told.fault
    return 0
