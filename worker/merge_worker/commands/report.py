"""`merge-worker report`: how far a finished merge is from each of its inputs, layer by layer."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..checkpoint.hub import Hub
from ..command_line.parser import Parser
from ..errors import InputError, UsageError, WorkerError, input_errors
from ..messages import printable
from ..output.files import MANIFEST, RECIPE
from ..output.manifest import read_manifest
from ..output.model_card import public_name
from ..planning.inputs import locate, model_words
from ..recipe import parse
from ..recipe.schema import ModelRef, parse_model
from ..recipe.yaml_document import read_documents
from .compare import check_search, measure, output_options, render

if TYPE_CHECKING:
    from ..comparison.advice import Advice
    from ..comparison.figures import Comparison


def options(parser: Parser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder of a finished merge")
    parser.add_argument(
        "--models",
        metavar="MODEL",
        nargs="+",
        help="where its inputs are now, in the order of the manifest",
    )
    output_options(parser)


@input_errors("report")
def command(arguments: argparse.Namespace) -> str:
    """Return the table or JSON, and write the plot to its file."""
    from ..comparison.metrics import merged_metrics
    from ..comparison.models import align
    from ..comparison.plot import check_plot

    out = Path(arguments.out)
    check_plot(arguments.plot)
    check_search(arguments.search)
    inputs, base = _inputs(out)
    if arguments.models:
        models, notes = _given_models(inputs, arguments.models)
    else:
        models, notes = _recorded_models(out, inputs), []
    # The base goes first, if there is one.
    order = sorted(range(len(models)), key=lambda i: i != base)
    names = [str(inputs[i]["model"]) for i in order]
    repeats = [names[:i].count(name) for i, name in enumerate(names)]
    labels = [f"{name} ({n + 1})" if n else name for name, n in zip(names, repeats, strict=True)]
    labels.append(f"{out.resolve().name} (merged)")
    aligned = align(
        [*(models[i] for i in order), open_checkpoint(out)],
        tuple(map(printable, labels)),
        base is not None,
    )
    comparison = measure(aligned, arguments)
    summary, search = _summary(comparison, notes), _search(out)
    if search is None:
        why = "no search is suggested: the recipe has no values that one search could vary"
        summary = replace(summary, findings=(*summary.findings, why))
    summary = replace(summary, search=search)
    return render(comparison, summary, merged_metrics, arguments)


def _inputs(out: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Return the inputs in the manifest and the index of the base. InputError without a merge."""
    value = read_manifest(out)
    if value is None:
        raise InputError(f"{out}: no {MANIFEST}; not a finished merge")
    inputs: list[dict[str, Any]] = value.get("inputs") or []
    recipe: dict[str, Any] = value.get("recipe") or {}
    if not inputs:
        raise InputError(f"{out / MANIFEST}: damaged; the list of inputs is missing")
    names = [entry["model"] for entry in inputs]
    base = recipe.get("base_model")
    return inputs, names.index(base) if base in names else None


def _given_models(
    inputs: Sequence[Mapping[str, Any]], paths: Sequence[str]
) -> tuple[list[Checkpoint], list[str]]:
    """Open the folders given with --models. UsageError unless there is one for each input."""
    names = " ".join(str(entry["model"]) for entry in inputs)
    if len(paths) != len(inputs):
        raise UsageError(
            f"report: {len(paths)} --models for {len(inputs)} inputs; give them as: "
            f"--models {printable(names)}"
        )
    models = [open_checkpoint(Path(path).expanduser()) for path in paths]
    notes = [
        f"{path} is not the {entry['model']} that was merged: its headers differ from those in "
        f"the manifest"
        for path, entry, model in zip(paths, inputs, models, strict=True)
        if not _has_headers_of(model, entry)
    ]
    return models, notes


def _recorded_models(out: Path, inputs: Sequence[Mapping[str, Any]]) -> list[Checkpoint]:
    """Open the inputs at the paths in the recipe of OUT. InputError lists all that are missing."""
    refs = _recipe_models(out)
    faults, models = [], []
    for entry in inputs:
        try:
            candidates = [ref for ref in refs if public_name(ref) == entry["model"]]
            models.append(_open_input(out, entry, candidates))
        except WorkerError as error:
            faults.append(str(error))
    if faults:
        names = " ".join(str(entry["model"]) for entry in inputs)
        hint = f"  say where the inputs are now, in this order: --models {printable(names)}"
        raise InputError("\n".join([*faults, hint]))
    return models


def _recipe_models(out: Path) -> tuple[ModelRef, ...]:
    """Return the models in the recipe as it was given, with their folders."""
    path = out / RECIPE
    try:
        text = path.read_text(encoding="utf-8")
        recipe = parse(text, str(path))
    except (OSError, UnicodeDecodeError):
        return ()
    except UsageError:  # a method from outside, which need not be here
        return tuple(_named_models(text, str(path)))
    return tuple(ref for document in (recipe, *recipe.stages) for ref in document.own_refs())


def _named_models(text: str, where: str) -> Iterator[ModelRef]:
    """Yield the models that a text names in the places of a recipe."""
    with contextlib.suppress(UsageError, ValueError):
        for document in read_documents(text, where):
            yield from map(parse_model, dict.fromkeys(model_words(document.value)))


def _open_input(out: Path, entry: Mapping[str, Any], refs: Sequence[ModelRef]) -> Checkpoint:
    """Open the first candidate that is the model that was merged. InputError if none is."""
    name, changed, hub = entry["model"], None, Hub()
    for ref in refs:
        for start in (Path(), out.resolve().parent, out):
            try:
                model = open_checkpoint(locate(ref, start, hub), hub)
            except WorkerError:
                continue
            if _has_headers_of(model, entry):
                for shard in model.shards:
                    hub.download(shard.path)
                return model
            changed = model.path
    if changed is not None:
        raise InputError(f"{changed}: changed since it was merged as {name}: its headers differ")
    places = ", ".join(dict.fromkeys(ref.path for ref in refs)) or "the recipe has no path for it"
    raise InputError(f"{name}: not found ({places})")


def _has_headers_of(model: Checkpoint, entry: Mapping[str, Any]) -> bool:
    """Compare the digests of the headers with those of a manifest's input."""
    shards = entry.get("shards") or ()
    digests = {shard.get("header_sha256") for shard in shards if isinstance(shard, dict)}
    # Weights in sub-folders that only this model has were not merged.
    return bool(digests) and {shard.header_sha256 for shard in model.shards} >= digests


def _summary(comparison: Comparison, notes: Sequence[str]) -> Advice:
    """Summarize where the result lies among its inputs."""
    from ..comparison.advice import Advice
    from ..comparison.metrics import shown

    facts, models = comparison.total.facts, comparison.models
    names, out = models.labels, len(models.labels) - 1
    warnings = list(notes)
    warnings += [
        f"the result is IDENTICAL to {names[i]}: the other models changed nothing"
        for i in range(out)
        if facts.equal[i][out] == 1
    ]
    if facts.nonfinite[out]:
        warnings.append(f"the result holds {facts.nonfinite[out]} NaN or Inf")
    findings = []
    for i in range(out):
        finding = f"{shown(facts.relative[i][out], True)} from {names[i]}"
        if models.has_base and i in models.own:
            finding += f", cosine of the task vectors {facts.cosine[i][out]:.2f}"
        findings.append(finding)
    cells = [(row.facts.relative[i][out], i, row) for row in comparison.cells for i in range(out)]
    if cells := [cell for cell in cells if not math.isnan(cell[0])]:
        distance, farthest, row = max(cells, key=lambda cell: cell[0])
        place = f"{row.place} {row.component}"
        findings.append(f"farthest from {names[farthest]} in {place}: {shown(distance, True)}")
    return Advice(tuple(warnings), tuple(findings), None, question="Where does the merge lie?")


def _search(out: Path) -> str | None:
    """Return a search over the recipe of OUT, or over a plain one of its inputs.

    None where the recipe has several documents or stacks layers, so that no value would help.
    """
    from ..comparison.search_file import search_text

    with contextlib.suppress(OSError, UnicodeDecodeError, UsageError):
        path = out / RECIPE
        documents = read_documents(path.read_text(encoding="utf-8"), str(path))
        recipe = documents[0].value if len(documents) == 1 else None
        if not isinstance(recipe, dict):
            return None
        text = search_text(recipe)
        if text or not isinstance(models := recipe.get("models"), list):
            return text
        names = [m.get("model") if isinstance(m, dict) else m for m in models]
        plain: dict[str, Any] = {"merge_method": "linear"}
        if recipe.get("base_model"):
            names = [name for name in names if name != recipe["base_model"]]
            plain = {"merge_method": "task_arithmetic", "base_model": recipe["base_model"]}
        plain["models"] = [{"model": name, "parameters": {"weight": 1.0}} for name in names]
        return search_text(plain) if len(names) > 1 else None
    return None
