"""A plan in words and as JSON: what would be merged, how large, with how much memory. No torch."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from ..dtypes import Kind
from ..errors import UsageError, WorkerError, input_errors
from ..messages import counted, printable
from ..output.files import finished
from ..output.space import SPARE_BYTES, DiskSpace, disk_space
from ..output.target import refuse_occupied
from ..planning.missing_models import with_missing_models
from ..planning.plan import Plan
from ..planning.read_speed import ReadSpeed, measure_read_speed
from ..structure.components import COMPONENTS, component_of
from ..structure.layers import depths
from ..tensors.source import bytes_read
from ..units import duration, size
from .merge import read_recipe, recipe_plan
from .options import add_options, plan_options


class Checked(NamedTuple):
    """What is printed of a plan, and why the merge would be refused all the same."""

    text: str
    fault: WorkerError | None


def checked(plan: Plan, out: Path | None, json_wanted: bool) -> Checked:
    """Look at the storage of the inputs and the disk of OUT, and tell everything."""
    disk, told, fault = None, list[str](), None
    if out is not None:
        try:
            disk = disk_space(plan, out)
            refuse_occupied(plan, out)
            told = [] if finished(out) else disk.refuse(out)
        except OSError:  # the plan is good all the same, and the merge itself has words for it
            disk = None
        except WorkerError as error:
            fault = error
    speed = measure_read_speed(plan)
    if json_wanted:
        facts = as_json(plan, speed, disk)
        facts["warnings"] += told
        return Checked(json.dumps(facts, indent=1), fault)
    return Checked("\n".join([describe(plan, speed, disk), *map(_warning, told)]), fault)


def _warning(line: str) -> str:
    return f"warning: {line}"


def as_json(
    plan: Plan, speed: ReadSpeed | None = None, disk: DiskSpace | None = None
) -> dict[str, Any]:
    """The plan's facts for programs; bytes are bytes. Stages are plans of their own."""
    merged = [step for step in plan.steps if step.task is not None]
    groups = _groups(plan)
    return {
        "method": plan.method.name,
        "models": list(plan.labels),
        "base_model": str(plan.recipe.base) if plan.recipe.base else None,
        "tensors": {
            "merged": len(merged),
            "copied": len(plan.steps) - len(merged),
            "missing": len(plan.matches.missing),
            "surplus": len(plan.matches.surplus),
        },
        "parameters": sum(groups.values()),
        "parameters_by_component": groups,
        "layers": depths(step.name for step in plan.steps),
        "bytes_in": plan.input_bytes,
        "bytes_out": plan.output_bytes,
        "shards": [shard.name for shard in plan.layout.shards],
        "dtypes": sorted({step.dtype.torch_name for step in plan.steps}),
        "memory": {
            "lanes": plan.memory.lanes,
            "bound_bytes": plan.memory.bound,
            "forced_by": plan.memory.forced_by,
        },
        "disk": _disk(plan, disk),
        "storage": _storage(plan, speed),
        "vocabulary": plan.tokenizer.summary or None,
        "warnings": list(plan.warnings),
        "key": plan.key,
        "stages": [
            {"name": stage.recipe.name, **as_json(stage)} for stage in (*plan.lazy, *plan.stages)
        ],
    }


def _groups(plan: Plan) -> dict[str, int]:
    """Floating parameters of the result by component, in their order."""
    found = dict.fromkeys(COMPONENTS, 0)
    for step in plan.steps:
        if step.dtype.kind is Kind.FLOAT:
            found[component_of(step.name)] += step.grid.count
    return {component: count for component, count in found.items() if count}


def _moved(plan: Plan) -> int:
    """Bytes through the storage: every pass that a tensor does not stay in memory for, and out."""
    total = 0
    for each in (*plan.stages, plan):
        for step in each.steps:
            again = each.memory.piece_blocks(step) < step.grid.blocks
            passes = step.reads if again else 1
            total += passes * sum(bytes_read(source) for source in step.sources)
        total += each.output_bytes
    return total


def _disk(plan: Plan, disk: DiskSpace | None) -> dict[str, Any]:
    """Bytes that the merge takes, with a margin; what there is of them, where OUT is known."""
    if disk is None:
        kept = sum(each.output_bytes for each in (plan, *plan.stages))
        return {"needs_bytes": kept + SPARE_BYTES, "free_bytes": None, "quotas": []}
    quotas = [quota.as_json() for quota in disk.quotas]
    return {"needs_bytes": disk.needs, "free_bytes": disk.free, "quotas": quotas}


def _storage(plan: Plan, speed: ReadSpeed | None) -> dict[str, Any] | None:
    """What the probe found, and the seconds that reading and writing take at that speed."""
    if speed is None:
        return None
    return {
        "probed_bytes": speed.read,
        "bytes_per_s": round(speed.bytes_per_s),
        "cached": speed.cached,
        "estimated_s": round(_moved(plan) / speed.bytes_per_s, 1),
    }


def describe(plan: Plan, speed: ReadSpeed | None = None, disk: DiskSpace | None = None) -> str:
    """The same for people, a few aligned lines."""
    facts = as_json(plan, speed, disk)
    tensors, models = facts["tensors"], plan.labels
    stacks = ", ".join(f"{printable(stack)}* {depth}" for stack, depth in facts["layers"].items())
    most = max((plan, *plan.stages), key=lambda each: each.memory.bound)
    forced = most.memory.forced_by
    rows = [
        *_stages(plan),
        ("method", plan.method.name + (" (experimental)" if plan.method.experimental else "")),
        *((_role(plan, i), printable(name)) for i, name in enumerate(models)),
        (
            "tensors",
            f"{tensors['merged']} merged, {tensors['copied']} copied, "
            f"{tensors['missing']} missing, {tensors['surplus']} surplus",
        ),
        ("parameters", f"{facts['parameters']:,}"),
        *_shares(facts["parameters_by_component"]),
        ("layers", stacks or "none found in the names"),
        *([("vocabulary", plan.tokenizer.summary)] if plan.tokenizer.summary else []),
        ("reads", size(plan.input_bytes)),
        ("writes", f"{size(plan.output_bytes)} in {counted(len(facts['shards']), 'files')}, "
                   f"{', '.join(facts['dtypes'])}"),
        ("memory", f"at most {size(most.memory.bound)} of buffers "
                   f"in {counted(most.memory.lanes, 'lanes')}"
                   + (f" (needed by {printable(forced)})" if forced else "")),
        ("disk", _room(facts["disk"])),
        *_time(facts["storage"]),
    ]  # fmt: skip
    text = "\n".join(f"{name:<11}{value}".rstrip() for name, value in rows)
    return "\n".join([text, *map(_warning, plan.warnings)])


def _stages(plan: Plan) -> list[tuple[str, str]]:
    return [
        ("stage", f"{printable(str(each.recipe.name))}: {each.method.name} of "
                  f"{', '.join(map(printable, each.labels))}; {_kept(each)}")
        for each in (*plan.lazy, *plan.stages)
    ]  # fmt: skip


def _kept(stage: Plan) -> str:
    if stage.folder is None:
        return "made on the way"
    return f"reads {size(stage.input_bytes)}, keeps {size(stage.output_bytes)} meanwhile"


def _role(plan: Plan, number: int) -> str:
    """Of a model: the base, or the first, whose other files are taken, or one more."""
    base = plan.recipe.base
    if base is not None and plan.labels[number] == str(base):
        return "base"
    return "model" if number else "first"


def _shares(groups: dict[str, int]) -> list[tuple[str, str]]:
    """Parameters of each component; nothing where there is one only."""
    total, width = sum(groups.values()), max((len(f"{n:,}") for n in groups.values()), default=0)
    if len(groups) < 2:
        return []
    return [
        ("", f"{count:>{width},}  {100 * count / total:5.1f} %  {component}")
        for component, count in groups.items()
    ]


def _room(disk: dict[str, Any]) -> str:
    told = f"needs {size(disk['needs_bytes'])} with a margin"
    if disk["free_bytes"] is not None:
        told += f", {size(disk['free_bytes'])} free"
    for quota in disk["quotas"]:
        if quota["bytes"]["left"] is not None:
            told += f", {size(quota['bytes']['left'])} left of the quota of {quota['of']}"
    return told


def _time(storage: dict[str, Any] | None) -> list[tuple[str, str]]:
    if storage is None:
        return []
    rate, seconds = storage["bytes_per_s"], storage["estimated_s"]
    how = ", in memory already; cold storage takes longer" if storage["cached"] else ""
    return [
        ("time", f"about {duration(max(1.0, seconds))} of reading and writing, at {size(rate)}/s "
                 f"(a probe of {size(storage['probed_bytes'])}{how})")
    ]  # fmt: skip


# MERGED `merge-worker check`: what a recipe would do, from headers; nothing is written.


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yml")
    parser.add_argument("out", metavar="OUT", nargs="?", help="whether it fits on that disk, too")
    add_options(parser, "check")


@input_errors("check")
def command(arguments: argparse.Namespace) -> str:
    """The plan in words or as JSON. WorkerError with every fault that headers and the disk show."""
    try:
        plan = recipe_plan(arguments.recipe, arguments, arguments.out)
    except UsageError as error:
        text = read_recipe(Path(arguments.recipe))
        raise with_missing_models(error, text, plan_options(arguments, None).relative_to) from None
    found = checked(plan, arguments.out and Path(arguments.out), arguments.json)
    if found.fault is not None:
        print(found.text)
        raise found.fault
    return found.text
