"""`merge_manifest.json`: what was merged, from what, with what result. Written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .. import __version__
from ..adapters.peft_format import WEIGHTS as ADAPTER_WEIGHTS
from ..checkpoint.folder import Checkpoint
from ..checkpoint.header import CONFIG
from ..checkpoint.hub import snapshot
from ..checkpoint.importance import ImportanceFile, hub_place
from ..checkpoint.json_files import load_json, read_json
from ..errors import InputError
from ..options import OPTIONS
from ..planning.configured import given_to
from ..planning.plan import Plan
from .files import CARD, MANIFEST, RECIPE, is_result_name, path_inside
from .model_card import public_model, public_name, public_text
from .model_use import published
from .side_files import by_treatment

RECORDING = "recording"
"""Key in a manifest: files of OUT that an evaluation is just being written to."""


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
        **({"methods": outside} if (outside := methods_from_outside(plan)) else {}),
        "dtype": plan.options.dtype or recipe.out_dtype or recipe.dtype or "same",
        "seed": plan.options.seed,
        "options": plan.options.recorded(),
        **({"config": config} if (config := config_facts(plan)) else {}),
        "vocabulary": _vocabulary(plan),
        **({"mixture": _mixture(plan)} if plan.mixture else {}),
        "inputs": [
            _input(order.get(name) or _public_file(name, model), model)
            for name, model in plan.inputs.items()
        ],
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


def config_facts(plan: Plan) -> dict[str, str] | None:
    """Return which config the inputs were given, with its digest; None if they have their own."""
    given = given_to(plan.models)
    if given is None:
        return None
    digest = hashlib.sha256((given.folder / CONFIG).read_bytes()).hexdigest()
    return {"model": public_model(given.label), **_commit(given.folder), "sha256": digest}


def methods_from_outside(plan: Plan) -> list[dict[str, str]]:
    """Return the methods of a merge that are not the worker's own, with digests of their code."""
    used = {p.method.name: p.method.origin for p in (plan, *plan.lazy, *plan.stages)}
    return [
        {"name": name, "from": origin.name, "sha256": origin.sha256}
        for name, origin in used.items()
        if origin is not None
    ]


def read_manifest(out: Path) -> dict[str, Any] | None:
    """Return the manifest in OUT, or None. InputError if it is damaged."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        return well_formed(read_json(path), path)
    except InputError:
        if path.is_file():
            raise
        return None  # just removed, by another rank that replaces this merge


def result_sizes(path: Path) -> dict[str, int]:
    """Return the bytes of the files that a manifest names, in its order; none if there is none.

    Raises OSError if it cannot be read, and InputError if it is damaged.
    """
    value = well_formed(load_json(path), path) if path.is_file() else {}
    return {entry["file"]: entry["bytes"] for entry in value.get("outputs", ())}


def settled(out: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of OUT with files that a stopped record of an evaluation left out."""
    files = [out / name for name in value.get(RECORDING, ())]
    left_out = [
        {"file": path.relative_to(out).as_posix(), "bytes": path.stat().st_size}
        for path in files
        if path.is_file()
    ]
    listed = {entry["file"] for entry in value.get("outputs", ())}
    added = [entry for entry in left_out if entry["file"] not in listed]
    whole = {key: item for key, item in value.items() if key != RECORDING}
    return {**whole, "outputs": [*value.get("outputs", ()), *added]} if added else whole


def well_formed(value: Any, path: Path) -> dict[str, Any]:
    """Return the manifest in a file if all that is ever read of it has the form it is written in.

    Manifests come with folders of others, and earlier releases wrote less. InputError.
    """
    place = _misfit(value, _FORM)
    if place is not None:
        raise InputError(f"{path}: damaged{place and f': {place} is not as merges write it'}")
    manifest: dict[str, Any] = value
    return manifest


def matches_form(value: Any, form: Any) -> bool:
    """Return whether a JSON value has a form: that of `_FORM` below."""
    return _misfit(value, form) is None


def _misfit(value: Any, form: Any, place: str = "") -> str | None:
    """Return the first place where a JSON value is not of a form, which see; None if it is."""
    inner: Iterable[tuple[Any, Any, str]] = ()
    if isinstance(form, dict):
        fits = isinstance(value, dict)
        present = [key for key in form if fits and key.rstrip("?") in value]
        fits = fits and all(key in present or key.endswith("?") for key in form)
        names = [(key, key.rstrip("?")) for key in present]
        inner = ((value[name], form[key], f"{place}.{name}".lstrip(".")) for key, name in names)
    elif isinstance(form, list):
        fits = isinstance(value, list)
        items = enumerate(value) if fits else ()
        inner = ((item, form[0], f"{place}[{number}]") for number, item in items)
    elif isinstance(form, type):
        fits = type(value) is form
    else:
        fits = bool(form(value))
    if not fits:
        return place
    return next((p for each in inner if (p := _misfit(*each)) is not None), None)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_text_or_null(value: object) -> bool:
    return value is None or type(value) is str


_CHOICES = {option.name: option.choices for option in OPTIONS}
_COMMIT = {"hub?": str, "commit?": str}
_FORM = {
    "key?": str,
    "recipe?": {"text?": str, "base_model?": _is_text_or_null},
    "options?": {
        "dtype?": lambda value: value is None or value in _CHOICES["dtype"],
        "shard_bytes?": lambda value: _is_count(value) and value > 0,
        "seed?": int,
        "dequantize?": bool,
        "format?": _CHOICES["format"].__contains__,
        "rules?": {
            "missing?": _CHOICES["missing"].__contains__,
            "surplus?": _CHOICES["surplus"].__contains__,
            "include?": [str],
            "exclude?": [str],
        },
        "block?": lambda value: _is_count(value) and 1 << 10 <= value <= 1 << 30,
    },
    "config?": {"model": str, **_COMMIT, "sha256": str},
    "methods?": [{"name": str, "from": str, "sha256": str}],
    "inputs?": [
        {"model": str, **_COMMIT, "adapter?": _COMMIT, "shards?": [{"header_sha256": str}]},
    ],
    "outputs?": [
        {"file": is_result_name, "bytes": _is_count, "sum128?": str, "sha256?": str, "crc32?": str}
    ],
    "nonfinite?": _is_count,
    "router_training?": [{"checksums_before?": dict}],
    "notes?": [str],
    RECORDING + "?": [is_result_name],
}
"""What is read of manifests: dicts by key (`?`: may be missing), lists, types, and tests."""


def files_to_upload(out: Path, hub: str) -> Iterator[tuple[str, Path | bytes]]:
    """Yield name and content of every file of a finished merge, the manifest last. InputError.

    Files for the Hub model `hub` hold no path of this machine: the recipe names models as the card
    does, and the card loads them from the Hub.
    """
    value = read_manifest(out)
    if not value or not value.get("outputs") or "text" not in value.get("recipe", {}):
        raise InputError(f"{out}: no {MANIFEST}; not a finished merge")
    value = settled(out, value)
    texts = {RECIPE: str(value["recipe"]["text"])}
    for entry in value["outputs"]:
        name, path = entry["file"], path_inside(out, entry["file"])
        if name == CARD:
            card = path.read_text(encoding="utf-8", errors="backslashreplace")
            texts[CARD] = published(card, out.resolve().name, hub)
        content = texts[name].encode(errors="backslashreplace") if name in texts else path
        if isinstance(content, bytes):
            entry["bytes"] = len(content)
        yield name, content
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    yield MANIFEST, text.encode(errors="backslashreplace")


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
        **_commit(_repository(model) if isinstance(model, ImportanceFile) else model.path),
        **({"adapter": commit} if adapter and (commit := _commit(adapter[-1])) else {}),
        "bytes": sum(shard.size for shard in model.shards),
        "tensors": sum(len(shard.tensors) for shard in model.shards) or len(model.tensors),
        "shards": [
            {"file": _place(s.path, model), "bytes": s.size, "header_sha256": s.header_sha256}
            for s in model.shards
        ],
    }


def _repository(file: ImportanceFile) -> Path:
    """Return the folder of the Hub's cache that an importance file is in, if it is in one."""
    return next((path for path in file.path.absolute().parents if snapshot(path)), file.path)


def _public_file(name: str, model: Checkpoint) -> str:
    """Return the name of an importance file without its folder on this machine."""
    if isinstance(model, ImportanceFile) and hub_place(name) is None:
        return Path(name).name
    return name


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


def _mixture(plan: Plan) -> dict[str, Any]:
    """Return the facts of a mixture of experts, with models named as the card does."""
    assert plan.mixture is not None
    facts = plan.mixture.as_json()
    members = [{**m, "model": public_text(plan, m["model"])} for m in facts["members"]]
    return {**facts, "members": members}


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
