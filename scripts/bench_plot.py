"""Plot of scripts/bench figures: a bar for each contender, a panel for each setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_tables import Case, median, ratio, setting

OURS, PEER, FLOOR = "#1f77b4", "#c7c7c7", "#d62728"
BAR = 0.38
ROW_INCHES = 0.42


def draw(cases: Sequence[Case], target: Path) -> None:
    """Write the picture; its format follows the file's name."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if median(case, "worker") is not None:
            panels.setdefault((setting(case), case["cache"]), []).append(case)
    if not panels:
        raise ValueError("nothing to draw: no run of merge-worker is in these files")
    rows = [len(panel) for panel in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels),
        1,
        squeeze=False,
        layout="constrained",
        figsize=(8, sum(rows) * ROW_INCHES + 1.2 * len(panels)),
        gridspec_kw={"height_ratios": [count + 1 for count in rows]},
    )
    drawn: dict[str, Any] = {}
    for axis, ((models, cache), panel) in zip(axes[:, 0], panels.items(), strict=True):
        drawn |= _panel(axis, panel)
        axis.set_title(f"{models}, {cache} page cache", loc="left", fontsize=10)
    figure.legend(
        drawn.values(), drawn.keys(), loc="outside upper right", ncols=3, frameon=False, fontsize=8
    )
    axes[-1, 0].set_xlabel("seconds of the whole command (log scale)")
    figure.savefig(target, dpi=150)
    pyplot.close(figure)


def _panel(axis: Any, cases: Sequence[Case]) -> dict[str, Any]:
    """Draw the bars of one setting; returns them by name for the legend."""
    ordered = sorted(
        cases, key=lambda case: ratio(median(case, "peer"), median(case, "worker")) or 0
    )
    drawn: dict[str, Any] = {}
    for place, case in enumerate(ordered):
        worker, peer, floor = (median(case, name) for name in ("worker", "peer", "floor"))
        assert worker is not None
        drawn["merge-worker"] = axis.barh(place + BAR / 2, worker, BAR, color=OURS)
        axis.text(worker, place + BAR / 2, f" {worker:.1f} s", va="center", fontsize=8)
        if peer is not None:
            drawn["peer"] = axis.barh(place - BAR / 2, peer, BAR, color=PEER)
            label = f" {peer:.1f} s, {peer / worker:.1f} ×"
            axis.text(peer, place - BAR / 2, label, va="center", fontsize=8)
        if floor is not None:
            ends = (place - BAR, place + BAR)
            drawn["floor: read and write once"] = axis.vlines(floor, *ends, color=FLOOR, lw=1.5)
    axis.set_yticks(range(len(ordered)), [case["method"] for case in ordered], fontsize=9)
    axis.set_xscale("log")
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
    return drawn
