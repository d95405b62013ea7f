"""A manifest in place of a recipe: repeats a merge byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ..checkpoint.hub import Hub
from ..checkpoint.importance import hub_place
from ..errors import InputError, UsageError, WorkerError
from ..output.files import MANIFEST, RECIPE
from ..output.manifest import config_facts, methods_from_outside, well_formed
from ..planning.options import PlanOptions
from ..planning.plan import Plan, make_plan
from ..recipe import parse
from ..recipe.schema import parse_model
from ..registry import OWN, Registry


def read_as_manifest(text: str) -> dict[str, Any] | None:
    """Return the manifest in a JSON file given as a recipe, or None if it is a recipe."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and "inputs" in value and "recipe" in value else None


def plan_from_manifest(
    path: Path, manifest: Mapping[str, Any], options: PlanOptions, methods: Registry = OWN
) -> Plan:
    """Plan the merge of a manifest. InputError if its models are missing or have changed.

    Models of the Hub are read at the commits in the manifest, wherever their branches are now.
    The recipe beside a manifest has the folders of its models; a manifest alone has only their
    names, which are searched from `--relative-to`.
    """
    manifest = well_formed(manifest, path)
    if not all(entry.get("shards") for entry in manifest["inputs"]):
        raise InputError(f"{path}: damaged: an input without shards")
    options = _recorded_options(path, manifest, options)
    for entry in manifest["inputs"]:
        _pin_commit(entry, options.hub)
    checksums = {e["file"]: e["sum128"] for e in manifest.get("outputs", ()) if "sum128" in e}
    for training in reversed(manifest.get("router_training", ())):
        checksums |= training.get("checksums_before", {})  # of the merge itself, before it
    beside = path.parent / RECIPE
    texts = [beside.read_text(encoding="utf-8", errors="replace")] if beside.is_file() else []
    texts.append(str(manifest["recipe"].get("text", "")))
    starts = dict.fromkeys((options.relative_to, path.parent.resolve().parent))
    first: WorkerError | None = None
    for text, start in product(texts, starts):
        try:
            recipe = parse(text, str(path), start, methods)
            plan = make_plan(recipe, replace(options, relative_to=start))
            _check_inputs(path, manifest, plan)
            _check_methods(path, manifest, plan)
            if (manifest.get("config") or {}).get("sha256") != (config_facts(plan) or {}).get(
                "sha256"
            ):
                raise InputError(f"--config {plan.options.config}: not that of {path}; it differs")
            return replace(plan, known_checksums=checksums)
        except WorkerError as error:
            first = first or error
    raise InputError(
        f"{first}\n  --relative-to DIR says where the models are that {path} was made from"
    )


def _recorded_options(path: Path, manifest: Mapping[str, Any], options: PlanOptions) -> PlanOptions:
    """Return the options in the manifest; `options` supplies those that keep the result."""
    recorded, defaults = manifest.get("options"), PlanOptions().recorded()
    if not isinstance(recorded, dict):
        raise InputError(f"{path}: written by a release whose merges cannot be repeated")
    for name, given in options.recorded().items():
        if given != defaults[name] and json.loads(json.dumps(given)) != recorded.get(name):
            raise UsageError(
                f"{path}: '{name}' is {recorded.get(name)} in the manifest; drop the option, or "
                f"merge the recipe instead"
            )
    if options.config is None and (config := manifest.get("config")):
        commit = f"{config['hub']}@{config['commit']}" if config.get("commit") else None
        options = replace(options, config=commit or config["model"])
    return options.with_recorded({name: _as_tuples(value) for name, value in recorded.items()})


def _pin_commit(entry: Mapping[str, Any], hub: Hub) -> None:
    try:
        ref = parse_model(str(entry.get("model")))
    except ValueError:  # a folder of such a name
        return
    adapter = entry.get("adapter") or {}
    if entry.get("commit"):
        place = hub_place(ref.path) or (ref.path, ref.revision, "")
        hub.pins[place[:2]] = str(entry["commit"])
    if ref.lora and adapter.get("commit"):
        hub.pins[ref.lora, ref.lora_revision] = str(adapter["commit"])


def _as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _check_inputs(path: Path, manifest: Mapping[str, Any], plan: Plan) -> None:
    """Raise InputError unless the models have the headers recorded in the manifest."""
    recorded = [[s["header_sha256"] for s in entry["shards"]] for entry in manifest["inputs"]]
    present = [[shard.header_sha256 for shard in model.shards] for model in plan.inputs.values()]
    for label, digests, expected in zip(plan.inputs, present, recorded, strict=False):
        if digests != expected:
            raise InputError(
                f"{label}: not the model that {MANIFEST} was made from; its headers differ"
            )
    if len(present) != len(recorded):
        raise InputError(f"{path}: expected {len(recorded)} inputs, its recipe has {len(present)}")


def _check_methods(path: Path, manifest: Mapping[str, Any], plan: Plan) -> None:
    """Raise InputError unless methods from outside of merge-worker are those of the manifest."""
    recorded = {entry["name"]: entry["sha256"] for entry in manifest.get("methods", ())}
    for entry in methods_from_outside(plan):
        if recorded.get(entry["name"]) != entry["sha256"]:
            raise InputError(
                f"{path}: the method '{entry['name']}' of {entry['from']} is not the one that "
                f"merged; its code differs"
            )
