"""The model card of a merge, for readers and for the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..checkpoint.folder import Checkpoint, is_hub_id
from ..checkpoint.hub import snapshot
from ..checkpoint.importance import ImportanceFile, hub_place
from ..checkpoint.links import leads_out
from ..messages import counted, printable
from ..planning.plan import Plan
from ..recipe.schema import ModelRef, parse_model
from ..structure.embeddings import is_vocabulary
from .files import CARD, MANIFEST
from .model_use import languages, use_of

LONGEST_CARD = 1 << 20
_LICENSE = ("license", "license_name", "license_link")


def public_name(ref: ModelRef) -> str:
    """Return a name without paths of this machine: Hub id or last part of the folder."""
    name = _public(ref.path, ref.revision)
    return f"{name}+{_public(ref.lora, ref.lora_revision)}" if ref.lora else name


def public_model(word: str) -> str:
    """Return the public name of a model given as a word of a command: a folder, `base+adapter`."""
    try:
        return public_name(parse_model(word))
    except ValueError:
        return Path(word).name or Path(word).resolve().name


def _public(path: str, revision: str | None) -> str:
    if is_hub_id(path) and not Path(path).is_absolute():
        return f"{path}@{revision}" if revision else path
    origin = snapshot(Path(path))
    if origin:
        return "@".join(origin)
    return Path(path).name or Path(path).resolve().name


def model_card(plan: Plan, title: str) -> str:
    """Return README.md: front matter for the Hub, models and tensors, the recipe."""
    refs, recipe = plan.recipe.model_refs(), plan.recipe
    text = public_text(plan, recipe.text).rstrip()
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    hub = [f"- {json.dumps(name)}" for name in dict.fromkeys(_hub_ids(plan))]
    models = (m for m in plan.inputs.values() if not isinstance(m, ImportanceFile))
    fronts = [_front_matter(model) for model in models]
    spoken, use = languages(fronts), use_of(plan, title)
    lines = [
        "---",
        *(["base_model:", *hub, "base_model_relation: merge"] if hub else []),
        *(f"{key}: {json.dumps(value)}" for key, value in _license(fronts).items()),
        *(["language:", *(f"- {json.dumps(word)}" for word in spoken)] if spoken else []),
        f"library_name: {use.library}",
        *([f"pipeline_tag: {use.task}"] if use.task else []),
        "tags:",
        "- merge",
        *(["- moe"] if plan.mixture else []),
        "- merge-launch",
        "---",
        "",
        f"# {markdown(title)}",
        "",
        f"{_sentence(plan)}, made with merge-launch {__version__}.",
        "",
        *(
            f"- {markdown(public_name(ref))}{' (base)' if ref == recipe.base else ''}"
            for ref in refs
        ),
        "",
        *_experts(plan),
        "| | tensors |",
        "|---|---|",
        *(f"| {label} | {count} |" for label, count in _table(plan)),
        "",
        f"Everything else about this merge is in `{MANIFEST}`, which merges again.",
        "",
        "```python",
        *use.code,
        "```",
        "",
        f"{fence}yaml",
        text,
        fence,
        "",
    ]
    return "\n".join(lines)


def _sentence(plan: Plan) -> str:
    """Say what the result is, without the end of the sentence."""
    method = f"[{plan.method.name}]({plan.method.reference})"
    if plan.mixture is None:
        return f"A merge of {counted(len(plan.recipe.model_refs()), 'models')} by {method}"
    sizes = plan.mixture.sizes
    shared = " and a shared one" if sizes.shared else ""
    return (
        f"A mixture of {counted(sizes.experts, 'experts')} ({method}), "
        f"{sizes.per_token} for each token{shared}: {plan.mixture.active:,} of "
        f"{plan.mixture.total:,} parameters are active. All but the MLPs of the experts is the "
        f"base's. Gates: {plan.mixture.gates.mode}"
    )


def _experts(plan: Plan) -> Iterator[str]:
    """Yield the table of the experts of a mixture."""
    if plan.mixture is None:
        return
    yield "| expert | prompts | negative | residual_scale |"
    yield "|---|---|---|---|"
    for expert in plan.mixture.experts:
        name = markdown(public_text(plan, expert.label)) + (" (shared)" if expert.shared else "")
        yield f"| {name} | {expert.prompts} | {expert.negative} | {expert.residual_scale:g} |"
    yield ""


def _hub_ids(plan: Plan) -> Iterator[str]:
    """Yield the Hub ids of models and adapters."""
    start = plan.options.relative_to
    for ref in plan.recipe.model_refs():
        for path in (ref.path, ref.lora):
            origin = snapshot(start / Path(path).expanduser()) if path else None
            if origin:
                yield origin[0]
            elif path and is_hub_id(path) and not (start / path).exists():
                yield path


def _table(plan: Plan) -> Iterator[tuple[str, str]]:
    merged = sum(step.task is not None for step in plan.steps)
    yield "merged", str(merged)
    yield "copied", str(len(plan.steps) - merged)
    rows = plan.tokenizer.rows
    if rows and rows[0] != rows[1]:
        count = sum(step.shape[:1] == rows[1:] and is_vocabulary(step.name) for step in plan.steps)
        yield f"of them resized, {rows[0]} to {rows[1]} rows", str(count)
    if plan.matches.missing:
        yield "not in every model", str(len(plan.matches.missing))
    if plan.matches.surplus:
        yield "not in the first model, left out", str(len(plan.matches.surplus))


def _license(fronts: Sequence[str]) -> dict[str, Any]:
    """Return the license if all models share it."""
    first, *others = map(_license_fields, fronts)
    return first if "license" in first and all(other == first for other in others) else {}


def _front_matter(model: Checkpoint) -> str:
    """Return the text before a model's card that describes it to the Hub; "" if there is none."""
    path = model.path / CARD
    try:
        if not path.is_file() or leads_out(model.path, CARD):
            return ""
        with path.open(encoding="utf-8") as file:
            text = file.read(LONGEST_CARD)
    except (OSError, ValueError):
        return ""
    return text.split("---\n", 2)[1] if text.startswith("---\n") else ""


def _license_fields(front: str) -> dict[str, str]:
    """Return the license fields that are plain scalars.

    Read without a YAML parser: cards are not trusted, and few fields are needed.
    """
    pairs = [line.partition(":")[::2] for line in front.split("\n")]
    given = {key: _scalar(text) for key, text in reversed(pairs) if key in _LICENSE}
    return {key: given[key] for key in _LICENSE if given.get(key)}


def _scalar(text: str) -> str:
    """Return the plain or quoted scalar after a colon of YAML; empty for anything else."""
    value = text.partition("#")[0].strip()
    plain = text[:1] in (" ", "\t") and value[:1] not in ("[", "{", "&", "*", "!", "|", ">")
    return value.strip("\"'") if plain else ""


def markdown(text: str) -> str:
    """Escape text in a line or a cell of Markdown: names of folders may hold anything."""
    at_edge = r"(?<![^\W_])_|_(?![^\W_])"  # within a word it is no emphasis
    return re.sub(rf"[\\`*~|\[\]<>&]|{at_edge}", r"\\\g<0>", printable(text))


def public_text(plan: Plan, text: str) -> str:
    """Shorten paths of this machine to their last part, in a text about a plan."""
    recipe = plan.recipe
    paths = {path for ref in recipe.model_refs() for path in (ref.path, ref.lora) if path}
    paths |= {word for word in recipe.importance_words() if hub_place(word) is None}
    paths |= {*recipe.data_words(), *(run.request.run for run in recipe.runs())}
    names = {path: _public(path, None) for path in paths}
    all_names = list(names.values())
    for path, name in names.items():
        if all_names.count(name) > 1 and name != path:
            names[path] = f"./{Path(path).absolute().parent.name}/{name}"
    asked = recipe.chat_template or ""
    for path in (recipe.where, asked if "{" not in asked else "", str(plan.options.stages_folder)):
        if "/" in path:
            names[path] = Path(path).name
    for path in sorted(names, key=lambda path: (-len(path), path)):
        if names[path] != path:
            # Whole words only: a model may be called `.` or `/a`. A sentence may end with one.
            end = r"[\w/-]|\.\w" if path.strip(".") else r"[\w./-]"
            word = rf"(?<![\w./~-]){re.escape(path)}(?!{end})"
            text = re.sub(word, names[path].replace("\\", r"\\"), text)
    return text
