"""Records of trainings, in the manifest of a merge and in its card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..output.files import CARD, MANIFEST
from ..output.model_card import markdown

KEY = "router_training"
"""The list of records in a manifest, the oldest first."""

BEGIN, END = "<!-- router training by merge-launch -->", "<!-- end of router training -->"

_SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
_AFTER = re.compile(r"^Everything else about this merge is in ", re.MULTILINE)


def recorded(manifest: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the records in a manifest; none if it has none in their form."""
    value = (manifest or {}).get(KEY)
    records = value if isinstance(value, list) else []
    return [record for record in records if isinstance(record, dict)]


def files_with_record(
    out: Path, manifest: Mapping[str, Any], outputs: list[dict[str, Any]], record: dict[str, Any]
) -> dict[str, str]:
    """Return the new text of the manifest, and of the card if OUT has one.

    `outputs` are the entries of the manifest with the new checksums of the weights.
    """
    records = [*recorded(manifest), record]
    files: dict[str, str] = {}
    card = out / CARD
    if card.is_file():
        before = card.read_bytes().decode(errors="surrogateescape")
        files[CARD] = _with_section(before, records)
        size = len(files[CARD].encode(errors="surrogateescape"))
        outputs = [{**e, "bytes": size} if e["file"] == CARD else e for e in outputs]
    value = {**manifest, "outputs": outputs, KEY: records}
    files[MANIFEST] = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    return files


def _with_section(card: str, records: Sequence[Mapping[str, Any]]) -> str:
    """Replace the section, or insert it before the last paragraph of a card as merges write it."""
    lines = [
        BEGIN,
        "## Training of the routers",
        "",
        "Nothing but the routers was trained after the build. Losses are nats a token on held-out "
        "text.",
        "",
        "| data | tokens | steps | loss before | loss after |",
        "|---|---:|---:|---:|---:|",
        *map(_row, records),
        END,
    ]
    text = "\n".join(lines) + "\n\n"
    match = _SECTION.search(card)
    if match:
        return f"{card[: match.start()]}{text}{card[match.end() :]}"
    match = _AFTER.search(card)
    if match:
        return f"{card[: match.start()]}{text}{card[match.start() :]}"
    return f"{card.rstrip()}\n\n{text.rstrip()}\n"


def _row(record: Mapping[str, Any]) -> str:
    data, loss = record["data"], record["loss"]
    names = markdown(", ".join(data["files"])).replace("|", "\\|")
    numbers = f"{data['tokens']} | {record['settings']['steps']}"
    return f"| {names} | {numbers} | {loss['before']:.4f} | {loss['after']:.4f} |"
