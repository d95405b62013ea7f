"""`merge-worker check`: a plan as text and as JSON, from headers; nothing is written. No torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from ..command_line.parser import Parser
from ..dtypes import Kind
from ..errors import UsageError, WorkerError, input_errors
from ..messages import counted, printable
from ..output.files import finished
from ..output.side_files import by_treatment, side_file_bytes
from ..output.space import SPARE_BYTES, DiskSpace, disk_space
from ..output.target import refuse_occupied
from ..planning.inputs import with_missing_models
from ..planning.plan import Plan
from ..planning.read_speed import ReadSpeed, measure_read_speed
from ..structure.components import COMPONENTS, component_of
from ..structure.layers import depths
from ..units import duration, size
from .merge import read_recipe, recipe_plan
from .mixture_rows import mixture_rows
from .options import add_options, plan_options


def options(parser: Parser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml", help="the recipe")
    parser.add_out("report whether the merge fits on this disk, too", needed=False)
    add_options(parser, "check")


@input_errors("check")
def command(arguments: argparse.Namespace) -> str:
    """Return the plan as text or JSON. WorkerError with every fault in headers and on the disk."""
    try:
        plan = recipe_plan(arguments.recipe, arguments, arguments.out)
    except UsageError as error:
        text = read_recipe(Path(arguments.recipe)).text
        raise with_missing_models(error, text, plan_options(arguments, None).relative_to) from None
    report = report_plan(plan, arguments.out and Path(arguments.out), arguments.json)
    if report.error is not None:
        print(report.text)
        raise report.error
    return report.text


class PlanReport(NamedTuple):
    """A plan as text or JSON, and the error with which its merge would be refused."""

    text: str
    error: WorkerError | None


def report_plan(plan: Plan, out: Path | None, json_wanted: bool) -> PlanReport:
    """Report a plan, the speed of the storage with its inputs, and the disk of OUT."""
    disk, warnings, refusal = None, list[str](), None
    if out is not None:
        try:
            disk = disk_space(plan, out)
            refuse_occupied(plan, out)
            warnings = [] if finished(out) else disk.refuse(out)
        except OSError:  # the plan is valid all the same, and the merge reports this itself
            disk = None
        except WorkerError as error:
            refusal = error
    speed = measure_read_speed(plan)
    if json_wanted:
        facts = as_json(plan, speed, disk)
        facts["warnings"] += warnings
        return PlanReport(json.dumps(facts, indent=1), refusal)
    lines = [describe(plan, speed, disk), *(f"warning: {line}" for line in warnings)]
    return PlanReport("\n".join(lines), refusal)


def as_json(
    plan: Plan, speed: ReadSpeed | None = None, disk: DiskSpace | None = None
) -> dict[str, Any]:
    """Return the facts of a plan for programs, sizes in bytes. Stages are plans themselves."""
    merged = [step for step in plan.steps if step.task is not None]
    components = _parameters_by_component(plan)
    return {
        "method": plan.method.name,
        "models": list(plan.labels),
        "base_model": str(plan.recipe.base) if plan.recipe.base else None,
        "picked": [run.summary for run in plan.recipe.runs() if run.summary],
        "tensors": {
            "merged": len(merged),
            "copied": len(plan.steps) - len(merged),
            "missing": len(plan.matches.missing),
            "surplus": len(plan.matches.surplus),
        },
        "parameters": sum(components.values()),
        "parameters_by_component": components,
        "layers": depths(step.name for step in plan.steps),
        "bytes_in": plan.input_bytes,
        "bytes_out": plan.output_bytes,
        "shards": [shard.name for shard in plan.layout.shards],
        "files": dict(zip(("merged", "copied", "left_out"), by_treatment(plan), strict=True)),
        "dtypes": sorted({step.dtype.torch_name for step in plan.steps}),
        "memory": {
            "lanes": plan.memory.lanes,
            "bound_bytes": plan.memory.bound,
            "forced_by": plan.memory.forced_by,
        },
        "disk": _disk(plan, disk),
        "storage": _storage(plan, speed),
        "vocabulary": plan.tokenizer.summary or None,
        "mixture": plan.mixture and plan.mixture.as_json(),
        "warnings": list(plan.warnings),
        "key": plan.key,
        "stages": [
            {"name": stage.recipe.name, **as_json(stage)} for stage in (*plan.lazy, *plan.stages)
        ],
    }


def _parameters_by_component(plan: Plan) -> dict[str, int]:
    """Count the floating-point parameters of the result; components in the order of the table."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for step in plan.steps:
        if step.dtype.kind is Kind.FLOAT:
            counts[component_of(step.name)] += step.grid.count
    return {component: count for component, count in counts.items() if count}


def _transferred_bytes(plan: Plan) -> int:
    """Return the bytes read and written, tensors that do not stay in memory once per pass."""
    total = 0
    for stage in (*plan.stages, plan):
        for step in stage.steps:
            read_again = stage.memory.piece_blocks(step) < step.grid.blocks
            passes = step.reads if read_again else 1
            total += passes * step.bytes_read
        total += stage.output_bytes
    return total


def _disk(plan: Plan, disk: DiskSpace | None) -> dict[str, Any]:
    """Return the bytes needed, with a margin, and those available if OUT is known."""
    if disk is None:
        stored = sum(s.output_bytes + side_file_bytes(s) for s in (plan, *plan.stages))
        return {"needs_bytes": stored + SPARE_BYTES, "free_bytes": None, "quotas": []}
    quotas = [quota.as_json() for quota in disk.quotas]
    return {"needs_bytes": disk.needs, "free_bytes": disk.free, "quotas": quotas}


def _storage(plan: Plan, speed: ReadSpeed | None) -> dict[str, Any] | None:
    """Return the measured speed, and the seconds that reading and writing take at it."""
    if speed is None:
        return None
    return {
        "probed_bytes": speed.read,
        "bytes_per_s": round(speed.bytes_per_s),
        "cached": speed.cached,
        "estimated_s": round(_transferred_bytes(plan) / speed.bytes_per_s, 1),
    }


def describe(plan: Plan, speed: ReadSpeed | None = None, disk: DiskSpace | None = None) -> str:
    """Return the facts of a plan as aligned lines, followed by its warnings."""
    facts = as_json(plan, speed, disk)
    tensors = facts["tensors"]
    stacks = ", ".join(f"{printable(stack)}* {depth}" for stack, depth in facts["layers"].items())
    memory = max((stage.memory for stage in (plan, *plan.stages)), key=lambda memory: memory.bound)
    forced = f" (needed by {printable(memory.forced_by)})" if memory.forced_by else ""
    shards, dtypes = counted(len(facts["shards"]), "files"), ", ".join(facts["dtypes"])
    rows = [
        *_stages(plan),
        ("method", plan.method.name + (" (experimental)" if plan.method.experimental else "")),
        *(("picked", printable(line)) for line in facts["picked"]),
        *((_role(plan, i), printable(name)) for i, name in enumerate(plan.labels)),
        (
            "tensors",
            f"{tensors['merged']} merged, {tensors['copied']} copied, "
            f"{tensors['missing']} missing, {tensors['surplus']} surplus",
        ),
        *mixture_rows(plan),
        ("parameters", f"{facts['parameters']:,}"),
        *_shares(facts["parameters_by_component"]),
        ("layers", stacks or "none found in the names"),
        *([("vocabulary", plan.tokenizer.summary)] if plan.tokenizer.summary else []),
        ("reads", size(plan.input_bytes)),
        ("writes", f"{size(plan.output_bytes)} in {shards}, {dtypes}"),
        *_files(facts["files"]),
        (
            "memory",
            f"at most {size(memory.bound)} of buffers in {counted(memory.lanes, 'lanes')}{forced}",
        ),
        ("disk", _space(facts["disk"])),
        *_time(facts["storage"]),
    ]
    lines = (f"{name:<11}{value}".rstrip() for name, value in rows)
    return "\n".join([*lines, *(f"warning: {line}" for line in plan.warnings)])


def _stages(plan: Plan) -> list[tuple[str, str]]:
    rows = []
    for stage in (*plan.lazy, *plan.stages):
        models = ", ".join(map(printable, stage.labels))
        storage = f"reads {size(stage.input_bytes)}, keeps {size(stage.output_bytes)} meanwhile"
        if stage.folder is None:
            storage = "computed while streaming"
        name = printable(str(stage.recipe.name))
        rows.append(("stage", f"{name}: {stage.method.name} of {models}; {storage}"))
    return rows


def _role(plan: Plan, number: int) -> str:
    """Name the role of a model; without a base, the first provides tokenizer and config."""
    base = plan.recipe.base
    if base is not None and plan.labels[number] == str(base):
        return "base"
    return "model" if number else "first"


def _shares(components: dict[str, int]) -> list[tuple[str, str]]:
    """Return a row for each component, or none if there is only one."""
    if len(components) < 2:
        return []
    total, width = sum(components.values()), max(len(f"{n:,}") for n in components.values())
    return [
        ("", f"{count:>{width},}  {100 * count / total:5.1f} %  {component}")
        for component, count in components.items()
    ]


def _files(files: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a row with the counts of files, then one for each reason why some are not merged."""
    merged, copied, left_out = (files[key] for key in ("merged", "copied", "left_out"))
    counts = f"{len(merged)} merged, {len(copied)} copied, {len(left_out)} left out"
    groups: dict[str, list[str]] = {"copied": copied} if copied else {}
    for name, reason in left_out.items():
        groups.setdefault(f"left out ({reason})", []).append(name)
    rows = [("", f"{group}: {', '.join(map(printable, n))}") for group, n in groups.items()]
    return [("files", counts), *rows]


def _space(disk: dict[str, Any]) -> str:
    text = f"needs {size(disk['needs_bytes'])} with a margin"
    if disk["free_bytes"] is not None:
        text += f", {size(disk['free_bytes'])} free"
    for quota in disk["quotas"]:
        if quota["bytes"]["left"] is not None:
            text += f", {size(quota['bytes']['left'])} left of the quota of {quota['of']}"
    return text


def _time(storage: dict[str, Any] | None) -> list[tuple[str, str]]:
    if storage is None:
        return []
    seconds = duration(max(1.0, storage["estimated_s"]))
    probe = f"a probe of {size(storage['probed_bytes'])}"
    if storage["cached"]:
        probe += ", in memory already; cold storage takes longer"
    rate = size(storage["bytes_per_s"])
    return [("time", f"about {seconds} of reading and writing, at {rate}/s ({probe})")]
