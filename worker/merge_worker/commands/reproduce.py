"""`merge_manifest.json` as a recipe: the same merge once more, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.hub import pins
from ..errors import InputError, UsageError, WorkerError
from ..output.files import MANIFEST, RECIPE
from ..planning.options import PlanOptions
from ..planning.plan import Plan, make_plan
from ..recipe import parse
from ..recipe.schema import parse_model


def read_as_manifest(path: Path, text: str) -> dict[str, Any] | None:
    """The manifest in a text that was given for a recipe; None if it is a recipe."""
    if path.suffix != ".json":
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "inputs" in value and "recipe" in value else None


def plan_from_manifest(path: Path, value: Mapping[str, Any], options: PlanOptions) -> Plan:
    """The plan of a manifest. InputError if its models are not found, or are others by now.

    Models of the hub are those of the commits that it tells, wherever their branches are by now.
    Beside the manifest stands the recipe as it was given, with the folders that its models were in;
    a manifest from elsewhere has only their names, which `--relative-to` leads to.
    """
    options = _options(path, value, options)
    for entry in value["inputs"]:
        _pin_commit(entry)
    made = {e["file"]: e["sum128"] for e in value.get("outputs", ()) if "sum128" in e}
    beside = path.parent / RECIPE
    texts = [beside.read_text(encoding="utf-8")] if beside.is_file() else []
    texts.append(str(value["recipe"].get("text", "")))
    starts = dict.fromkeys((options.relative_to, path.parent.resolve().parent))
    first: WorkerError | None = None
    for text in texts:
        for start in starts:
            try:
                plan = make_plan(parse(text, str(path)), replace(options, relative_to=start))
                _check(path, value, plan)
                return replace(plan, known_checksums=made)
            except WorkerError as error:
                first = first or error
    assert first is not None
    raise InputError(
        f"{first}\n  --relative-to DIR says where the models are that {path} was made from"
    )


def _options(path: Path, value: Mapping[str, Any], options: PlanOptions) -> PlanOptions:
    """The options of the merge, and of these those that do not change it."""
    told, given, usual = value.get("options"), options.recorded(), PlanOptions()
    if not isinstance(told, dict):
        raise InputError(f"{path}: of a merge before manifests could be merged again")
    plain = usual.recorded()
    for name, asked in given.items():
        if asked != plain[name] and json.loads(json.dumps(asked)) != told.get(name):
            raise UsageError(
                f"{path}: '{name}' is {told.get(name)} in the manifest; drop the option, or merge "
                f"the recipe instead"
            )
    return options.with_recorded({name: _tuples(item) for name, item in told.items()})


def _pin_commit(entry: Mapping[str, Any]) -> None:
    try:
        ref = parse_model(str(entry.get("model")))
    except ValueError:  # a folder of such a name
        return
    adapter = entry.get("adapter") or {}
    for name, revision, told in (
        (ref.path, ref.revision, entry),
        (ref.lora, ref.lora_revision, adapter),
    ):
        if name and told.get("commit"):
            pins[name, revision] = str(told["commit"])


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _check(path: Path, value: Mapping[str, Any], plan: Plan) -> None:
    """InputError unless the models have the headers that the manifest tells."""
    told = [[s["header_sha256"] for s in entry["shards"]] for entry in value["inputs"]]
    found = [[shard.header_sha256 for shard in model.shards] for model in plan.inputs.values()]
    for label, one, two in zip(plan.inputs, found, told, strict=False):
        if one != two:
            raise InputError(f"{label}: is not what {MANIFEST} was made from; its headers differ")
    if len(found) != len(told):
        raise InputError(f"{path}: tells of {len(told)} inputs, its recipe of {len(found)}")
