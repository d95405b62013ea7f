"""Tables of scripts/bench figures: plain text for the screen, Markdown for documents."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

GIB = 1 << 30
EXTRACTION = "extract-lora"
ALIKE = 0.001
"""How far apart models are if nothing is said: as fine-tunes of one base, by a twentieth."""

Case = Mapping[str, Any]
Row = dict[str, str]
"""The cells of a line by the names of their columns."""


class Table(NamedTuple):
    """A heading and rows, which all have the same columns."""

    title: str
    rows: list[Row]


def median(case: Case, name: str, part: str | None = None) -> float | None:
    """Return the median seconds of a contender or a part of it; None if it did not run."""
    runs = case["runs"].get(name)
    if not runs or (part is not None and part not in runs[0]["parts"]):
        return None
    seconds: list[float] = [run["parts"][part] if part else run["wall_s"] for run in runs]
    return statistics.median(seconds)


def peak_gib(case: Case, name: str) -> float | None:
    peak = max((run["peak_bytes"] for run in case["runs"].get(name, [])), default=0)
    return peak / GIB if peak else None


def ratio(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def setting(case: Case) -> str:
    delta = case.get("delta", ALIKE)
    apart = f", apart by σ {delta:g}" if delta != ALIKE else ""
    return f"{case['models']} × {short(case['params'])} {case['dtype']}{apart}"


def short(count: float) -> str:
    """1.1e9 → 1.1 B."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def tables(cases: Sequence[Case]) -> list[Table]:
    """Return tables of whole commands, importance, ranks, several merges in a pass, adapters."""
    merges = [case for case in cases if case["method"] != EXTRACTION]
    result = [
        Table("Whole commands", list(_whole(merges))),
        Table("Importance files beside the models", list(_importance(merges))),
        Table("Ranks, each a process on this machine", list(_ranks(merges))),
        Table("Several recipes in one pass over the inputs", list(_together(merges))),
        Table("Adapters out of fine-tunes", list(_adapters(cases))),
    ]
    return [table for table in result if table.rows]


def _whole(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        whole, streaming = median(case, "worker"), median(case, "worker", "stream_s")
        bottom, peer = median(case, "floor"), median(case, "peer")
        if whole is not None:
            yield {
                "models": setting(case),
                "cache": case["cache"],
                "method": f"{case['method']} {case['options']}".strip(),
                "merge-worker s": cell(whole),
                "streaming s": cell(streaming),
                "floor s": cell(bottom),
                "streaming × floor": cell(ratio(streaming, bottom)),
                "peer s": cell(peer),
                "peer × worker": cell(ratio(peer, whole), 1),
                "peak GiB": cell(peak_gib(case, "worker")),
                "peer GiB": cell(peak_gib(case, "peer")),
            }


def _importance(cases: Sequence[Case]) -> Iterator[Row]:
    """Yield streaming by bytes read, of methods that read importance and what ran beside them."""
    for case in cases:
        if not case.get("importance"):
            continue
        paces = {}
        for name in ("task_arithmetic", "worker"):
            streaming, gib = median(case, name, "stream_s"), case["read_bytes"].get(name, 0) / GIB
            paces[name] = ratio(streaming, gib)
            yield {
                "models": setting(case),
                "cache": case["cache"],
                "method": case["method"] if name == "worker" else name,
                "importance": case["importance"] if name == "worker" else "none",
                "GiB read": cell(gib),
                "streaming s": cell(streaming),
                "s per GiB": cell(paces[name], 3),
                "× task_arithmetic": cell(ratio(paces[name], paces["task_arithmetic"])),
                "peak GiB": cell(peak_gib(case, name)),
            }


def _ranks(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        counts = sorted(int(n[6:]) for n in case["runs"] if re.fullmatch(r"ranks \d+", n))
        alone = median(case, "worker", "stream_s")
        for name, count in [("worker", 1), *((f"ranks {n}", n) for n in counts)]:
            streaming = median(case, name, "stream_s")
            if counts and streaming is not None:
                yield {
                    "models": setting(case),
                    "cache": case["cache"],
                    "method": case["method"],
                    "options": case["options"] or "none",
                    "ranks": str(count),
                    "s": cell(median(case, name)),
                    "streaming s": cell(streaming),
                    "× faster": cell(ratio(alone, streaming)),
                }


def _together(cases: Sequence[Case]) -> Iterator[Row]:
    for case in cases:
        alone, one_pass = median(case, "worker"), median(case, "one pass")
        if one_pass is not None:
            yield {
                "models": setting(case),
                "cache": case["cache"],
                "method": case["method"],
                "recipes": str(case["together"]),
                "one run s": cell(alone),
                "one pass s": cell(one_pass),
                "as many runs s": cell(median(case, "runs")),
                "pass × run": cell(ratio(one_pass, alone)),
                "floor s": cell(median(case, "floor of the pass")),
            }


def _adapters(cases: Sequence[Case]) -> Iterator[Row]:
    """Yield rows on adapters; errors are relative, the peer's those of the best possible."""
    for case in (case for case in cases if case["method"] == EXTRACTION):
        worker, peer = median(case, "worker"), median(case, "peer")
        own, best = (
            case["runs"][name][0]["parts"] if case["runs"].get(name) else {}
            for name in ("worker", "peer")
        )
        worst = max((own[name] / best[name] for name in own.keys() & best.keys()), default=0)
        yield {
            "models": setting(case),
            "cache": case["cache"],
            "extract-lora s": cell(worker),
            "peer s": cell(peer),
            "peer × worker": cell(ratio(peer, worker), 1),
            "peak GiB": cell(peak_gib(case, "worker")),
            "peer GiB": cell(peak_gib(case, "peer")),
            "largest error": cell(max(own.values(), default=None), 4),
            "peer's": cell(max(best.values(), default=None), 4),
            "worst × peer's": cell(worst or None, 4),
        }


def cell(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def plain(table: Table) -> str:
    """Format a table for the screen, its columns aligned."""
    lines = [list(table.rows[0]), *(list(row.values()) for row in table.rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    rows = ["  ".join(map(str.rjust, line, widths)) for line in lines]
    return "\n".join([table.title, *rows])


def markdown(table: Table) -> str:
    """Format a table as Markdown, without empty columns."""
    kept = [name for name in table.rows[0] if any(row[name] for row in table.rows)]
    words = {"models", "cache", "method", "options", "importance"}
    rule = ["---" if name in words else "---:" for name in kept]
    lines = [kept, rule, *([row[name] for name in kept] for row in table.rows)]
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([f"**{table.title}**", "", *rows])


def where(result: Mapping[str, Any]) -> str:
    """Return the machine, versions and command of a file of figures."""
    machine = ", ".join(f"{name} {fact}" for name, fact in result["machine"].items())
    return f"{machine}; median of {result['runs']}: `{result['command']}`"
