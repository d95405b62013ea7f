"""Side files of a model: tokenizer, config, license, templates and others that are copied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path, PurePosixPath

from ..checkpoint.header import CONFIG
from ..checkpoint.json_files import read_json
from ..checkpoint.model_files import survey
from ..errors import InputError
from ..planning.plan import Plan, final_config
from ..tokenizer.files import is_tokenizer_file
from .files import CARD, EVALUATION, MANIFEST, RECIPE, write_file

_NEW = {CARD, MANIFEST, RECIPE, CONFIG, EVALUATION}
"""Files that belong to one merge alone, and are never copied from a model."""

VOCABULARY = "another vocabulary than the result's"


def side_files(plan: Plan) -> dict[str, Path | bytes]:
    """Return the files beside the weights and the config by name: paths to copy, or contents.

    They are the base's, with the tokenizer that the recipe asks for.
    """
    model, text = plan.models[0], plan.tokenizer
    folder = model.folder or model.path  # which an earlier stage will write
    if folder.is_file():
        return {}
    own = (n for n in model.files.copied if not (text.foreign and is_tokenizer_file(n)))
    contents: dict[str, Path | bytes | None] = {name: folder / name for name in own}
    donor = text.side_files.folder
    if text.foreign and donor:
        others = filter(is_tokenizer_file, survey(donor, plan.options.hub).copied)
        contents |= {name: donor / name for name in others}
    contents |= text.side_files.overrides
    return {n: c for n, c in contents.items() if c is not None and n not in _NEW}


def side_file_bytes(plan: Plan) -> int:
    """Return the bytes of the side files, without those of results that are not there yet."""
    hub, total = plan.options.hub, 0
    for content in side_files(plan).values():
        if isinstance(content, bytes):
            total += len(content)
        elif hub.is_not_downloaded(str(content)):
            total += hub.size(str(content))
        elif content.exists():
            total += content.stat().st_size
    return total


def by_treatment(plan: Plan) -> tuple[list[str], list[str], dict[str, str]]:
    """Return the merged files of the result, the copied ones, and those that are left out.

    These are the first model's, with their reasons.
    """
    merged, copied = [shard.name for shard in plan.layout.shards], {*side_files(plan)}
    if plan.config:
        copied.add(CONFIG)
    overrides, left_out = plan.tokenizer.side_files.overrides, plan.models[0].files.left_out
    stale = dict.fromkeys((n for n, raw in overrides.items() if raw is None), VOCABULARY)
    return merged, sorted(copied), dict(sorted({**left_out, **stale}.items()))


def refuse_conflicts(plan: Plan) -> None:
    """Raise InputError if a side file lies in a folder named as a file of the result."""
    merged, copied, _ = by_treatment(plan)
    indexes = (name for name, _ in plan.layout.indexes())
    names = {*merged, *copied, *indexes, *_NEW}
    for name in copied:
        for parent in map(str, PurePosixPath(name).parents):
            if parent in names:
                raise InputError(
                    f"{plan.models[0].path / parent}: a folder, but the result has a file of this "
                    f"name\n  rename it, or move it out of the model"
                )


def copy_side_files(plan: Plan, into: Path) -> list[str]:
    """Copy the base's side files and write `config.json` below `into`; returns all names."""
    folder = plan.models[0].folder
    if folder is None:
        return []
    contents = side_files(plan)
    for name, content in contents.items():
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            plan.options.hub.download(str(content))
            shutil.copyfile(content, into / name)
        else:
            write_file(into / name, content)
    names = list(contents)
    config = folder / CONFIG
    if config.is_file():
        value = final_config(plan)
        if value == read_json(config):
            shutil.copyfile(config, into / CONFIG)
        else:
            write_file(into / CONFIG, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        names.append(CONFIG)
    return names
