"""RegMean as a merge: matrices solved from texts into a scratch file, which it then reads."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import methods
from ..checkpoint.fp8 import dequantized
from ..checkpoint.header import read_shard
from ..errors import UsageError
from ..inference.model import Model, ModelOptions, open_model
from ..messages import counted, first_names
from ..method import Granularity, working_dtype
from ..output.files import write_file
from ..planning.inputs import open_reference
from ..planning.plan import Plan
from ..planning.step import CPU_BLOCK, Step, block_grid
from ..system.progress import Progress
from ..system.signals import StopFlag, stop_on_signal
from .layout import DiskLayout
from .measure import TICK
from .regmean import Part, RegMean, solved_names
from .samples import Run, read_windows
from .scratch import Result, Scratch

NOTES = "notes.json"
SOLVED = "solved.safetensors"


def folder_of(plan: Plan) -> Path:
    """Return the folder of what is solved for a plan, until the merge is finished."""
    return plan.options.stages_folder / f"regmean-{plan.key[:16]}"


def solve(plan: Plan, device: torch.device, progress: str, say: Callable[[str], None]) -> Plan:
    """Run the models on their texts, and return the plan with the solved matrices as sources.

    All else is merged as planned, by the mean. Raises Stopped at a signal; called again, it goes on
    after the last finished layer.
    """
    folder = folder_of(plan)
    scratch = Scratch(folder, plan.key)
    if "all" not in scratch.done:
        with contextlib.ExitStack() as stack:
            _solve(plan, device, scratch, progress, stack, say)
        scratch.finished("all")
        for file in folder.glob("states-*"):
            file.unlink()
    shard = read_shard(folder / SOLVED)
    solved = {tensor.name: tensor for tensor in shard.tensors}
    written = set(json.loads((folder / NOTES).read_text(encoding="utf-8"))["solved"])
    steps = [
        _taken(step, solved[step.name]) if step.name in written and step.task else step
        for step in plan.steps
    ]
    return replace(plan, steps=tuple(steps))


def notes_of(plan: Plan) -> list[str]:
    """Return what the manifest says of the solution."""
    if not plan.texts:
        return []
    try:
        facts = json.loads((folder_of(plan) / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(note) for note in facts.get("notes", ())]


def remove(plan: Plan) -> None:
    """Remove the files of a finished merge."""
    folder = folder_of(plan)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other files are in it
        folder.parent.rmdir()


def _solve(
    plan: Plan,
    device: torch.device,
    scratch: Scratch,
    progress: str,
    stack: contextlib.ExitStack,
    say: Callable[[str], None],
) -> None:
    values = _values(plan)
    weights = _weights(plan, values)
    options = plan.options

    def opened(word: str) -> tuple[Model, Any]:
        disk, files, label = open_reference(word, options.relative_to, options.hub)
        disk = dequantized(disk)
        settings = ModelOptions("float32", device, False, options.hub)
        return stack.enter_context(open_model(disk, files, label, settings)), disk

    parts, disks = [], []
    for text, weight in zip(plan.texts, weights, strict=True):
        model, disk = opened(str(text.model))
        windows = read_windows(text.path, model, values["samples"], values["length"], False)
        parts.append(Part(Run(model, windows), weight))
        disks.append(disk)
        tokens = sum(len(window.ids) for window in windows)
        say(f"{model.label}: {counted(len(windows), 'samples')} of {tokens} tokens of {text.path}")
    base, disk = opened(str(plan.recipe.base)) if plan.recipe.base else (None, disks[0])
    first = base or parts[0].model
    _refuse_others(parts, first)
    layout = DiskLayout(disk.tensors, first.weights.checkpoint.tensors)
    names = {step.name for step in plan.steps if step.task}
    shapes = {n: s for n, s in solved_names(layout, first).items() if n in names}
    result = Result(scratch.folder / SOLVED, shapes, {})
    flag, count = StopFlag(), sum(len(part.run.samples) for part in parts) * len(first.layers)
    done = 0

    def tick(stage: str) -> None:
        nonlocal done
        if flag.is_set():
            raise flag.error(100 * done / max(1, count))
        done += 1
        shown.wrote(TICK)

    shown = Progress(progress, count * TICK, "regmean")
    solution = RegMean(
        parts,
        base,
        layout,
        result,
        scratch,
        tick,
        set(shapes),
        reduction=values["reduction"],
        ridge=values["ridge"],
    )
    with stop_on_signal(flag), shown:
        solution.solve()
    result.close()
    _note(solution, scratch.folder, say)


def _note(solution: RegMean, folder: Path, say: Callable[[str], None]) -> None:
    notes = []
    if solution.few:
        notes.append(
            f"regmean: {counted(len(solution.few), 'matrices of experts')} saw fewer tokens than "
            f"they have channels, and are the mean: {first_names(solution.few)}"
        )
        say(notes[0])
    facts = {"solved": sorted(solution.solved), "notes": notes}
    write_file(folder / NOTES, json.dumps(facts))


def _values(plan: Plan) -> Mapping[str, Any]:
    """Return the values of the method. UsageError if they are not the same for all tensors."""
    every = [step.task.values for step in plan.steps if step.task and step.task.models]
    if any(values != every[0] for values in every):
        raise UsageError(
            f"{plan.recipe.where}: regmean with data has one value of each parameter for all "
            f"tensors; leave out gradients and filters"
        )
    return every[0]


def _weights(plan: Plan, values: Any) -> list[float]:
    """Return λ of each model in the order of the texts, of which none may be negative."""
    weights = [float(weight) for weight in values["weight"]]
    if len(weights) != len(plan.texts) or min(weights) < 0 or not any(weights):
        raise UsageError(f"{plan.recipe.where}: regmean: weights must be 0 or more, and not all 0")
    return weights


def _refuse_others(parts: Sequence[Part], first: Model) -> None:
    """Raise UsageError for models whose layers have other matrices than the first's."""
    for part in parts:
        for number in range(len(first.layers)):
            if part.model.names_of_layer(number) != first.names_of_layer(number):
                raise UsageError(
                    f"{part.model.label}: its layers have other tensors than those of "
                    f"{first.label}; regmean merges models of one class"
                )


def _taken(step: Step, solved: Any) -> Step:
    """Return a step that takes its result from the solved file, rounded once to its dtype."""
    assert step.task is not None
    values = {"weight": (1.0,), "normalize": False}
    linear = methods.get("linear")
    work = working_dtype(step.dtype, values)
    task = replace(step.task, models=1, has_base=False, values=values, work=work)
    return replace(
        step,
        sources=(solved,),
        task=task,
        method=linear,
        grid=block_grid(step.shape, Granularity.ELEMENT, CPU_BLOCK),
        reads=1,
        scratch=linear.algorithm.scratch_bytes(linear, 1),
        flops=0,
        held=0,
    )
