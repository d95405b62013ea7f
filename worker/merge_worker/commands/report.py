"""`merge-worker report`: how far a finished merge is from each of its inputs, layer by layer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.folder import Checkpoint, open_checkpoint
from ..errors import InputError, UsageError, WorkerError, input_errors
from ..messages import printable
from ..output.files import MANIFEST, RECIPE
from ..output.manifest import read_manifest
from ..output.model_card import public_name
from ..planning.inputs import locate
from ..recipe import parse
from ..recipe.schema import ModelRef
from .compare import answer, check_plot, measure, output_options

if TYPE_CHECKING:
    from ..comparison.advice import Advice
    from ..comparison.figures import Comparison


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder of a finished merge")
    parser.add_argument(
        "--models", metavar="MODEL", nargs="+",
        help="where its inputs are now, in the order of the manifest",
    )  # fmt: skip
    output_options(parser)


@input_errors("report")
def command(arguments: argparse.Namespace) -> str:
    """The table, or JSON; the picture is written beside. WorkerError of any kind."""
    from ..comparison.metrics import merged_metrics
    from ..comparison.models import align

    out = Path(arguments.out)
    check_plot(arguments.plot)
    inputs, base = _inputs(out)
    if arguments.models:
        found, notes = _given(inputs, arguments.models)
    else:
        found, notes = _found(out, inputs), []
    # The base goes first, where there is one.
    order = sorted(range(len(found)), key=lambda i: i != base)
    labels = [str(inputs[i]["model"]) for i in order]
    same = [labels[:i].count(name) for i, name in enumerate(labels)]
    labels = [f"{name} ({n + 1})" if n else name for name, n in zip(labels, same, strict=True)]
    models = [found[i] for i in order]
    aligned = align(
        [*models, open_checkpoint(out)],
        tuple(printable(name) for name in (*labels, _title(out))),
        base is not None,
    )
    comparison = measure(aligned, arguments)
    return answer(comparison, _says(comparison, notes), merged_metrics, arguments)


def _title(out: Path) -> str:
    return f"{out.resolve().name} (merged)"


def _inputs(out: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The inputs in the manifest, and the number of the base. InputError if it is none of ours."""
    value = read_manifest(out)
    if value is None:
        raise InputError(f"{out}: no {MANIFEST}; this is no finished merge")
    inputs: list[dict[str, Any]] = value.get("inputs") or []
    recipe: dict[str, Any] = value.get("recipe") or {}
    if not inputs or not all(isinstance(i, dict) and "model" in i for i in inputs):
        raise InputError(f"{out / MANIFEST}: damaged; it does not list what was merged")
    names = [entry["model"] for entry in inputs]
    base = recipe.get("base_model")
    return inputs, names.index(base) if base in names else None


def _given(
    inputs: Sequence[Mapping[str, Any]], words: Sequence[str]
) -> tuple[list[Checkpoint], list[str]]:
    """The folders that the user names. UsageError unless there is one for each input."""
    names = " ".join(str(entry["model"]) for entry in inputs)
    if len(words) != len(inputs):
        raise UsageError(
            f"report: {len(words)} --models for {len(inputs)} inputs; give them as: "
            f"--models {printable(names)}"
        )
    found = [open_checkpoint(Path(word).expanduser()) for word in words]
    notes = [
        f"{word} is not the {entry['model']} that was merged: its headers differ from those in "
        f"the manifest"
        for word, entry, model in zip(words, inputs, found, strict=True)
        if not _is(model, entry)
    ]
    return found, notes


def _found(out: Path, inputs: Sequence[Mapping[str, Any]]) -> list[Checkpoint]:
    """The inputs where the recipe in OUT says they are. InputError with what to give otherwise."""
    refs = _refs(out)
    faults, found = [], []
    for entry in inputs:
        try:
            found.append(_one(out, entry, [r for r in refs if public_name(r) == entry["model"]]))
        except WorkerError as error:
            faults.append(str(error))
    if faults:
        names = " ".join(str(entry["model"]) for entry in inputs)
        hint = f"  say where the inputs are now, in this order: --models {printable(names)}"
        raise InputError("\n".join([*faults, hint]))
    return found


def _refs(out: Path) -> tuple[ModelRef, ...]:
    """The models of the recipe as it was given, with their folders."""
    path = out / RECIPE
    try:
        recipe = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, UsageError):
        return ()
    return tuple(ref for each in (recipe, *recipe.stages) for ref in each.own_refs())


def _one(out: Path, entry: Mapping[str, Any], refs: Sequence[ModelRef]) -> Checkpoint:
    """The input where a reference leads to what was merged. InputError says why none does."""
    name, other = entry["model"], None
    for ref in refs:
        for start in (Path(), out.resolve().parent, out):
            try:
                model = open_checkpoint(locate(ref, start))
            except WorkerError:
                continue
            if _is(model, entry):
                return model
            other = model.path
    if other is not None:
        raise InputError(f"{other}: changed since it was merged as {name}: its headers differ")
    places = ", ".join(dict.fromkeys(ref.path for ref in refs)) or "the recipe does not say where"
    raise InputError(f"{name}: not found ({places})")


def _is(model: Checkpoint, entry: Mapping[str, Any]) -> bool:
    """Whether this is what was merged, by the digests of the headers."""
    shards = entry.get("shards")
    told = {s.get("header_sha256") for s in shards if isinstance(s, dict)} if shards else set()
    return {shard.header_sha256 for shard in model.shards} == told


def _says(comparison: Comparison, notes: Sequence[str]) -> Advice:
    """Where the result lies among its inputs."""
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
    findings = [
        f"{shown(facts.relative[i][out], True)} from {names[i]}"
        + (
            f", cosine of the task vectors {facts.cosine[i][out]:.2f}"
            if _vectors(models, i)
            else ""
        )
        for i in range(out)
    ]
    cells = [(row.facts.relative[0][out], row) for row in comparison.cells]
    far, row = max(cells, key=lambda cell: cell[0])
    findings.append(f"farthest from {names[0]} in {row.place} {row.component}: {shown(far, True)}")
    return Advice(tuple(warnings), tuple(findings), None, "Where does the merge lie?")


def _vectors(models: Any, number: int) -> bool:
    return models.has_base and number in models.own
