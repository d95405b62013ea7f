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


class Table(NamedTuple):
    """A heading, names of columns, cells."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


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
    """Return tables of whole commands, ranks, several merges in one pass, and adapters."""
    merges = [case for case in cases if case["method"] != EXTRACTION]
    result = [_whole(merges), _ranks(merges), _together(merges), _adapters(cases)]
    return [table for table in result if table.rows]


def _whole(cases: Sequence[Case]) -> Table:
    head = (
        "method",
        "merge-worker s",
        "streaming s",
        "floor s",
        "streaming × floor",
        "peer s",
        "peer × worker",
        "peak GiB",
        "peer GiB",
    )
    return Table("Whole commands", ("models", "cache", *head), list(_whole_rows(cases)))


def _whole_rows(cases: Sequence[Case]) -> Iterator[tuple[str, ...]]:
    for case in cases:
        whole, streaming = median(case, "worker"), median(case, "worker", "stream_s")
        bottom, peer = median(case, "floor"), median(case, "peer")
        if whole is not None:
            yield (
                setting(case),
                case["cache"],
                f"{case['method']} {case['options']}".strip(),
                cell(whole),
                cell(streaming),
                cell(bottom),
                cell(ratio(streaming, bottom)),
                cell(peer),
                cell(ratio(peer, whole), 1),
                cell(peak_gib(case, "worker")),
                cell(peak_gib(case, "peer")),
            )


def _ranks(cases: Sequence[Case]) -> Table:
    head = ("models", "cache", "method", "options", "ranks", "s", "streaming s", "× faster")
    rows: list[tuple[str, ...]] = []
    for case in cases:
        counts = sorted(int(n[6:]) for n in case["runs"] if re.fullmatch(r"ranks \d+", n))
        alone = median(case, "worker", "stream_s")
        for name, count in [("worker", 1), *((f"ranks {n}", n) for n in counts)]:
            streaming = median(case, name, "stream_s")
            faster = cell(ratio(alone, streaming))
            if counts and streaming is not None:
                rows.append(
                    (
                        setting(case),
                        case["cache"],
                        case["method"],
                        case["options"] or "none",
                        str(count),
                        cell(median(case, name)),
                        cell(streaming),
                        faster,
                    )
                )
    return Table("Ranks, each a process on this machine", head, rows)


def _together(cases: Sequence[Case]) -> Table:
    head = (
        "models",
        "cache",
        "method",
        "recipes",
        "one run s",
        "one pass s",
        "as many runs s",
        "pass × run",
        "floor s",
    )
    rows: list[tuple[str, ...]] = []
    for case in cases:
        one, passed = median(case, "worker"), median(case, "one pass")
        if passed is not None:
            times = (cell(one), cell(passed), cell(median(case, "runs")))
            rest = (cell(ratio(passed, one)), cell(median(case, "floor of the pass")))
            recipes = str(case["together"])
            rows.append((setting(case), case["cache"], case["method"], recipes, *times, *rest))
    return Table("Several recipes in one pass over the inputs", head, rows)


def _adapters(cases: Sequence[Case]) -> Table:
    """Return the table of adapters; errors are relative, the peer's those of the best possible."""
    head = (
        "models",
        "cache",
        "extract-lora s",
        "peer s",
        "peer × worker",
        "peak GiB",
        "peer GiB",
        "largest error",
        "peer's",
        "worst × peer's",
    )
    rows: list[tuple[str, ...]] = []
    for case in (case for case in cases if case["method"] == EXTRACTION):
        worker, peer = median(case, "worker"), median(case, "peer")
        own, best = (
            case["runs"][name][0]["parts"] if case["runs"].get(name) else {}
            for name in ("worker", "peer")
        )
        worst = max((own[name] / best[name] for name in own.keys() & best.keys()), default=0)
        rows.append(
            (
                setting(case),
                case["cache"],
                cell(worker),
                cell(peer),
                cell(ratio(peer, worker), 1),
                cell(peak_gib(case, "worker")),
                cell(peak_gib(case, "peer")),
                cell(max(own.values(), default=None), 4),
                cell(max(best.values(), default=None), 4),
                cell(worst or None, 4),
            )
        )
    return Table("Adapters out of fine-tunes", head, rows)


def cell(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def plain(table: Table) -> str:
    lines = [table.head, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    rows = ["  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([table.title, *rows])


def markdown(table: Table) -> str:
    """Format a table as Markdown, without empty columns."""
    kept = [i for i in range(len(table.head)) if any(row[i] for row in table.rows)]
    lines = [[line[i] for i in kept] for line in (table.head, *table.rows)]
    words = {"models", "cache", "method", "options"}
    rule = ["---" if table.head[i] in words else "---:" for i in kept]
    rows = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
    return "\n".join([f"**{table.title}**", "", *rows])


def where(result: Mapping[str, Any]) -> str:
    """Return the machine, versions and command of a file of figures."""
    machine = ", ".join(f"{name} {fact}" for name, fact in result["machine"].items())
    return f"{machine}; median of {result['runs']}: `{result['command']}`"
