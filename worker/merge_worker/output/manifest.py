"""`merge_manifest.json`: what was merged, from what, with what result. Written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..adapters.peft_format import WEIGHTS as ADAPTER_WEIGHTS
from ..checkpoint.folder import Checkpoint
from ..checkpoint.hub import snapshot
from ..checkpoint.json_files import read_json
from ..errors import InputError
from ..planning.plan import Plan
from .files import MANIFEST, RECIPE
from .model_card import public_name, public_text
from .side_files import by_treatment


def manifest(plan: Plan, outputs: list[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a merge; `run` holds timings, counts and notes of this run."""
    notes = (*plan.warnings, *run.pop("notes", ()))
    merged = sum(step.task is not None for step in plan.steps)
    written, copied, left_out = by_treatment(plan)
    order = {str(ref): public_name(ref) for ref in plan.recipe.model_refs()}
    recipe = plan.recipe
    return {
        "format": 1,
        "key": plan.key,
        "worker": worker_facts(),
        "recipe": {
            "method": recipe.method,
            "text": public_text(plan, recipe.text),
            "models": list(order.values()),
            "base_model": public_name(recipe.base) if recipe.base else None,
            "values": _values(plan),
        },
        "dtype": plan.options.dtype or recipe.out_dtype or recipe.dtype or "same",
        "seed": plan.options.seed,
        "options": plan.options.recorded(),
        "vocabulary": _vocabulary(plan),
        "inputs": [_input(order.get(name, name), model) for name, model in plan.inputs.items()],
        "outputs": outputs,
        "counts": {
            "merged": merged,
            "copied": len(plan.steps) - merged,
            "missing": len(plan.matches.missing),
            "surplus": len(plan.matches.surplus),
        },
        "files": {"merged": len(written), "copied": len(copied), "left_out": left_out},
        "notes": list(dict.fromkeys(public_text(plan, note) for note in notes)),
        **run,
    }


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return the manifest in OUT, or None. InputError if it is damaged."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        value = read_json(path)
    except InputError:
        if path.is_file():
            raise
        return None  # just removed, by another rank that replaces this merge
    return value if isinstance(value, dict) else {}


def files_to_upload(out: Path) -> Iterator[tuple[str, Path | bytes]]:
    """Yield name and content of every file of a finished merge, the manifest last. InputError.

    Files to upload hold no path of this machine: the recipe names models as the card does.
    """
    value = read_manifest(out)
    if not value or not isinstance(value.get("outputs"), list):
        raise InputError(f"{out}: no {MANIFEST}; not a finished merge")
    recipe = str(value["recipe"]["text"]).encode()
    for entry in value["outputs"]:
        if entry["file"] == RECIPE:
            entry["bytes"] = len(recipe)
        yield entry["file"], recipe if entry["file"] == RECIPE else out / entry["file"]
    yield MANIFEST, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def worker_facts() -> dict[str, str | None]:
    """SHA-256 of the zip that this worker runs from, as the launcher prints; None from a checkout.

    Under two names: `sources` is that of the whole worker, and jobs have carried parts of it.
    """
    path = getattr(globals()["__loader__"], "archive", None)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    return {"version": __version__, "sha256": digest, "sources": digest}


def _input(label: str, model: Checkpoint) -> dict[str, Any]:
    """Return the record of an input: sizes and digests of its headers, but no path."""
    files = [Path(shard.path) for shard in model.shards]
    adapter = [file.parent for file in files if file.name == ADAPTER_WEIGHTS]
    return {
        "model": label,
        **_commit(model.path),
        **({"adapter": commit} if adapter and (commit := _commit(adapter[-1])) else {}),
        "bytes": sum(shard.size for shard in model.shards),
        "tensors": sum(len(shard.tensors) for shard in model.shards),
        "shards": [
            {"file": _place(s.path, model), "bytes": s.size, "header_sha256": s.header_sha256}
            for s in model.shards
        ],
    }


def _place(file: str, model: Checkpoint) -> str:
    """Return the name of a file of weights in the folder of its model or adapter."""
    path = Path(file)
    inside = model.folder is not None and path.is_relative_to(model.path)
    return path.relative_to(model.path).as_posix() if inside else path.name


def _commit(folder: Path) -> dict[str, str]:
    """Return repository and commit of a folder in the cache of the Hub."""
    origin = snapshot(folder)
    return {"hub": origin[0], "commit": origin[1]} if origin else {}


def _vocabulary(plan: Plan) -> dict[str, Any] | None:
    """Return the changes of the vocabulary, if the recipe has a tokenizer section."""
    text = plan.tokenizer
    if text.rows is None:
        return None
    files = sorted(name for name, raw in text.side_files.overrides.items() if raw is not None)
    return {"rows": list(text.rows), "appended": list(text.appended), "changed_files": files}


def _values(plan: Plan) -> list[dict[str, Any]]:
    """Return each distinct set of resolved parameters with its number of tensors."""
    tensors: dict[str, list[str]] = {}
    for step in plan.steps:
        if step.task is not None:
            tensors.setdefault(json.dumps(step.task.values, default=list), []).append(step.name)
    return [
        {"parameters": json.loads(text), "tensors": len(names), "first": names[0]}
        for text, names in tensors.items()
    ]
