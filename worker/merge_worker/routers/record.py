"""Records of trainings and of routing, in the manifest of a merge and in its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..output.evaluation import recording, write_between_manifests
from ..output.evaluation_card import with_section
from ..output.files import CARD, MANIFEST, output_errors
from ..output.manifest import read_manifest, settled
from ..output.model_card import markdown
from .routing import Routing
from .routing_table import as_json, card_section

KEY = "router_training"
"""The list of records in a manifest, the oldest first."""

ROUTING = "routing"
"""Where the prompts of experts go, in a manifest; that of former routers is dropped."""

MARKS = "<!-- router training by merge-launch -->", "<!-- end of router training -->"

ROUTING_MARKS = "<!-- routing by merge-launch -->", "<!-- end of routing -->"


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
    before = _read_card(out)
    if before is not None:
        files[CARD] = with_section(with_section(before, ROUTING_MARKS, ""), MARKS, _table(records))
        size = len(files[CARD].encode(errors="surrogateescape"))
        outputs = [{**e, "bytes": size} if e["file"] == CARD else e for e in outputs]
    kept = {key: value for key, value in manifest.items() if key != ROUTING}
    value = {**kept, "outputs": outputs, KEY: records}
    files[MANIFEST] = _json(value)
    return files


def record_routing(out: Path, routing: Routing) -> None:
    """Record the routing of a finished merge in its manifest and card. OutputError.

    The manifest is written twice, first without the card, and alone (see `output.evaluation`).
    """
    with recording(out), output_errors(out):
        manifest = read_manifest(out)
        if manifest is None:
            return
        texts, card = {}, _read_card(out)
        if card is not None:
            text = f"## Routing of the prompts\n\n{card_section(routing)}"
            texts[CARD] = with_section(card, ROUTING_MARKS, text)
        facts = {ROUTING: as_json(routing)}
        write_between_manifests(out, settled(out, manifest), texts, facts)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _read_card(out: Path) -> str | None:
    """Return the text of the card, with odd bytes kept; None if there is none, or a link."""
    path = out / CARD
    if path.is_symlink() or not path.is_file():
        return None
    return path.read_bytes().decode(errors="surrogateescape")


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## Training of the routers",
        "",
        "Nothing but the routers was trained after the build. Losses are nats a token on held-out "
        "text.",
        "",
        "| data | tokens | steps | loss before | loss after |",
        "|---|---:|---:|---:|---:|",
        *map(_row, records),
    ]
    return "\n".join(lines)


def _row(record: Mapping[str, Any]) -> str:
    data, loss = record["data"], record["loss"]
    names = markdown(", ".join(data["files"]))
    numbers = f"{data['tokens']} | {record['settings']['steps']}"
    return f"| {names} | {numbers} | {loss['before']:.4f} | {loss['after']:.4f} |"
