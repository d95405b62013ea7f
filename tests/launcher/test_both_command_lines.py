"""merge-launch and merge-worker understand the same words alike: one table, one plan, one disk."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from merge_launch import cli as merge_launch_cli
from merge_launch.settings.groups import CheckOptions, MergeOptions, WorkerOptions
from merge_launch.settings.options import Option, options_of
from merge_worker import units
from merge_worker.commands import check, merge
from merge_worker.options import OPTIONS, SharedOption
from merge_worker.output import space
from merge_worker.planning.options import PlanOptions
from merge_worker.planning.plan import Plan
from support.recipes import run
from support.staged_recipes import models

__all__ = ["models"]

LINEAR = """
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]
"""
STORED = """
name: first
merge_method: slerp
base_model: b
models: [a]
parameters: {t: 0.5}
---
merge_method: linear
models: [first, c]
parameters: {weight: 1}
"""
CHAIN = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]
---
name: second
merge_method: slerp
base_model: c
models: [first]
parameters: {t: [{filter: first, value: 0.9}, {value: 0.3}]}
---
merge_method: task_arithmetic
base_model: first
models: [second, c]
parameters: {weight: 0.5}
"""
RANDOM = """
merge_method: dare_ties
base_model: c
models: [a, b]
parameters: {weight: 0.5, density: 0.4}
"""
RECIPES = {"linear": LINEAR, "stored": STORED, "chain": CHAIN, "random": RANDOM}
WORDS = (
    (),
    ("--device", "cpu"),
    ("--device", "cuda:1"),
    ("--dtype", "float32", "--shard-size", "1KB"),
    ("--dtype=same", "--threads", "3", "--memory", "1.5 GiB"),
    ("--seed", "7", "--strict", "--dequantize"),
    ("--seed=-1", "--missing", "copy", "--surplus", "drop"),
    ("--include", "layers.1,,first", "--exclude", "first.w"),
    ("--overwrite", "--no-resume", "--sha256", "--deadline", "1h30m", "--progress", "off"),
)
DIRECT = (
    ("a", "b", "c"),
    ("a", "b", "c", "--weights", "2,-1,5e-1"),
    ("a", "b", "c", "--schedule", "last-k:2", "--dtype", "float32"),
    ("a", "b", "c", "--method", "task_arithmetic", "--base-model", "c"),
    ("b", "a", "--method", "model_stock", "--base-model", "c", "--device", "cuda"),
)


class Planned(NamedTuple):
    plan: Plan
    out: Path


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Planned]:
    """Collect the plans of both command lines; nothing is merged or printed."""
    collected: list[Planned] = []

    def merged(plans: list[tuple[Plan, Path]], *_: object) -> list[str]:
        collected.extend(itertools.starmap(Planned, plans))
        return []

    def report_plan(plan: Plan, out: Path, json: bool) -> check.PlanReport:
        collected.append(Planned(plan, out))
        return check.PlanReport("", None)

    monkeypatch.setattr(merge, "run_merges", merged)
    monkeypatch.setattr(check, "report_plan", report_plan)
    return collected


def check_by_launcher(*words: str) -> None:
    assert merge_launch_cli.run(["check", *words]) == 0


def compared(planned: list[Planned]) -> None:
    worker, launcher = planned
    assert launcher.plan.key == worker.plan.key
    assert [each.key for each in launcher.plan.stages] == [each.key for each in worker.plan.stages]
    assert plain(launcher.plan.options) == plain(worker.plan.options)
    there, here = (
        space.disk_space(launcher.plan, launcher.out),
        space.disk_space(worker.plan, worker.out),
    )
    assert (there.needs, there.files) == (here.needs, here.files)
    stored = [each.output_bytes for each in worker.plan.stages]
    assert there.needs == space.SPARE_BYTES + worker.plan.output_bytes + sum(stored)


def plain(options: PlanOptions) -> PlanOptions:
    """Options with absolute paths, as merge-launch has them from the beginning."""
    place, stages = options.relative_to.resolve(), options.stages_folder.resolve()
    return dataclasses.replace(options, relative_to=place, stages_folder=stages)


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(
    name: str,
    words: tuple[str, ...],
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    planned: list[Planned],
) -> None:
    monkeypatch.chdir(models)
    Path("r.yml").write_text(RECIPES[name])
    assert run("merge", "r.yml", "folder/out", *words) == 0
    check_by_launcher("r.yml", "folder/out", *words)
    compared(planned)
    if name in ("stored", "chain"):
        assert planned[0].plan.stages


@pytest.mark.parametrize("words", DIRECT, ids=" ".join)
def test_a_direct_merge(
    words: tuple[str, ...],
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    planned: list[Planned],
) -> None:
    monkeypatch.chdir(models)
    assert run("average", "out", *words) == 0
    check_by_launcher("out", *words)
    compared(planned)


def offered() -> list[SharedOption]:
    commands = {"merge", "average", "check"}
    return [each for each in OPTIONS if each.launch and commands & set(each.commands)]


def test_merge_launch_has_every_option_of_the_table() -> None:
    groups = (MergeOptions, WorkerOptions, CheckOptions)
    known = {each.name: each for group in groups for each in options_of(group)}
    assert {each.name for each in offered()} == set(known) - {"out"}
    for each in offered():
        assert alike(each, known[each.name]), each.name


def alike(shared: SharedOption, option: Option) -> bool:
    kinds: dict[Any, type] = {bool: bool, int: int, units.positive_integer: int}
    return (
        shared.flag == option.flag
        and option.spec.help.endswith(shared.help)
        and (tuple if shared.default == () else kinds.get(shared.type, str)) is option.kind
    )


def test_defaults_of_the_table_are_those_of_a_plan() -> None:
    given = PlanOptions.from_values({"device": "cpu"}, None)
    plain = PlanOptions(relative_to=given.relative_to, stages_folder=given.stages_folder)
    assert given == plain
