"""What must not be where OUT goes, whatever is merged: inputs, and files of others. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from .disk import finished
from .errors import OutputError, first_names
from .output_files import PARTIAL
from .plan import Plan


def refuse_occupied(plan: Plan, out: Path) -> None:
    """OutputError for what a look shows, before anything is begun there."""
    refuse_inputs(out, inputs_of(plan))
    refuse_file(out)
    if out.is_dir() and not finished(out):
        refuse_foreign(out)


def inputs_of(plan: Plan) -> dict[str, Path]:
    """The folders or files of all models, by what the recipe calls them."""
    return {label: model.path for label, model in plan.inputs.items()}


def refuse_inputs(out: Path, inputs: Mapping[str, Path]) -> None:
    """OutputError if OUT is one of the inputs, in one, or around one; links are followed."""
    real = out.resolve()
    for label, path in inputs.items():
        place = path.resolve()
        if real == place or place in real.parents or real in place.parents:
            how = "is" if real == place else "is inside" if place in real.parents else "contains"
            raise OutputError(
                f"{out}: {how} the input {label}; inputs are never changed, choose another folder"
            )


def refuse_file(out: Path) -> None:
    """OutputError if OUT is there, and no folder."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file; give a folder for the merged model")


def refuse_foreign(out: Path, ours: Collection[str] = ()) -> None:
    """OutputError if a folder holds more than `ours` and what an unfinished merge has there."""
    names = sorted(path.name for path in out.iterdir())
    foreign = [name for name in names if not name.startswith(PARTIAL) and name not in ours]
    if foreign:
        raise OutputError(
            f"{out}: not empty, and not of a merge of ours: {first_names(foreign)}\n"
            f"  choose another folder, or move these files away"
        )
