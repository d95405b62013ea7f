"""The model card of a merge: what it was made of, for people and for the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import __version__
from .checkpoint import is_hub_id
from .plan import Plan
from .recipe import ModelRef


def public_name(ref: ModelRef) -> str:
    """A name without any path of this machine: the hub id, or the last part of the folder."""
    name = _public(ref.path, ref.revision)
    return f"{name}+{_public(ref.lora, ref.lora_revision)}" if ref.lora else name


def _public(path: str, revision: str | None) -> str:
    if is_hub_id(path) and not Path(path).is_absolute():
        return f"{path}@{revision}" if revision else path
    return Path(path).name or Path(path).resolve().name


def model_card(plan: Plan, title: str) -> str:
    """README.md: front matter that the hub reads, then what was merged, then the recipe."""
    refs = plan.recipe.model_refs()
    start = plan.options.relative_to
    hub = [r.path for r in refs if is_hub_id(r.path) and not (start / r.path).exists()]
    lines = ["---"]
    if hub:
        lines += ["base_model:", *(f"- {json.dumps(name)}" for name in dict.fromkeys(hub))]
        lines += ["base_model_relation: merge"]
    lines += ["library_name: transformers", "tags:", "- merge", "- merge-launch", "---", ""]
    merged = sum(step.task is not None for step in plan.steps)
    lines += [
        f"# {title}",
        "",
        f"A merge of {len(refs)} models by "
        f"[{plan.method.name}]({plan.method.reference}), made with merge-launch {__version__}.",
        "",
        *(f"- {public_name(ref)}{' (base)' if ref == plan.recipe.base else ''}" for ref in refs),
        "",
        f"{merged} tensors merged, {len(plan.steps) - merged} copied. "
        f"Everything else about this merge is in `merge_manifest.json`.",
        "",
        "```yaml",
        public_recipe(plan).rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def public_recipe(plan: Plan) -> str:
    """The recipe's text with folders of this machine shortened to their last part."""
    text = plan.recipe.text
    paths = {path for ref in plan.recipe.model_refs() for path in (ref.path, ref.lora) if path}
    for path in sorted(paths, key=lambda path: (-len(path), path)):
        name = _public(path, None)
        if name != path:
            # Whole words only: a model may be called `.` or `/a`.
            word = rf"(?<![\w./~-]){re.escape(path)}(?![\w./-])"
            text = re.sub(word, name.replace("\\", r"\\"), text)
    return text
