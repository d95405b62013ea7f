"""The picture of a search: what stands where, and that every format is drawn."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from merge_worker.drawing.files import check_plot
from merge_worker.errors import OutputError, UsageError
from merge_worker.search.charts import MOST_VALUES, charts_of
from merge_worker.search.plot import draw_search
from merge_worker.search.results import Result
from merge_worker.search.svg_charts import NARROW, WIDE, svg


def trial(number: int, score: float | None, **values: Any) -> Result:
    state = "failed" if score is None else "done"
    return Result(f"t{number:04d}", "trial", state, score, values=values, trial=number)


PARENTS = [
    Result("parent-math", "parent", "done", 0.5),
    Result("parent-broken", "parent", "failed"),
    Result("average", "average", "done", 0.4),
    Result("recipe", "recipe", "done", 0.6),
]
TRIALS = [
    trial(0, 0.3, a=0.1, b=0.9),
    trial(1, 0.7, a=0.5, b=0.5),
    trial(2, None, a=0.0, b=0.0),
    trial(3, 0.6, a=0.4, b=0.6),
    trial(4, 0.8, a=0.6, b=0.4),
]
RESULTS = [*PARENTS, *TRIALS]


def test_progress() -> None:
    chart = charts_of(RESULTS, True, "acc").progress
    assert [(mark.x, mark.y) for mark in chart.marks] == [(0, 0.3), (1, 0.7), (3, 0.6), (4, 0.8)]
    assert [mark.x for mark in chart.marks if mark.is_best] == [4]
    corners = [(0, 0.3), (1, 0.3), (1, 0.7), (3, 0.7), (4, 0.7), (4, 0.8)]
    assert list(chart.steps) == corners
    levels = [(level.name, level.y) for level in chart.levels]
    assert levels == [("math", 0.5), ("even average", 0.4), ("recipe as it stands", 0.6)]
    assert (chart.x.label, chart.y.label) == ("trial", "acc")
    assert all(float(value).is_integer() for value, _ in chart.x.ticks)


def test_lower_is_better() -> None:
    chart = charts_of(RESULTS, False, "perplexity").progress
    assert [mark.x for mark in chart.marks if mark.is_best] == [0]
    assert list(chart.steps) == [(0, 0.3), (1, 0.3), (3, 0.3), (4, 0.3)]


def test_each_value_and_the_plane() -> None:
    charts = charts_of(RESULTS, True, "acc")
    assert [chart.x.label for chart in charts.values] == ["a", "b"]
    assert [(m.x, m.y) for m in charts.values[1].marks][:2] == [(0.9, 0.3), (0.5, 0.7)]
    plane = charts.plane
    assert plane is not None and (plane.x.label, plane.y.label) == ("a", "b")
    # The best is drawn last, and its shade is that of its score.
    assert [(m.x, m.y) for m in plane.marks][-1] == (0.6, 0.4) and plane.marks[-1].is_best
    assert plane.shades is not None
    assert [m.shade for m in plane.marks] == sorted(
        plane.shades.fraction(score) for score in (0.3, 0.6, 0.7, 0.8)
    )
    assert charts.notes == ("1 trial without a score",)


def test_no_plane_of_one_three_or_words() -> None:
    for values in ({"a": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1.0, "b": "ties"}):
        assert charts_of([trial(0, 0.5, **values)], True, "acc").plane is None


def test_choices_and_gradients() -> None:
    results = [
        trial(0, 0.1, method="ties", t=[0.0, 1.0]),
        trial(1, 0.2, method="linear", t=[0.5, 0.2]),
    ]
    method, first, second = charts_of(results, True, "acc").values
    assert [label for _, label in method.x.ticks] == ["linear", "ties"]
    assert [mark.x for mark in method.marks] == [1, 0]
    assert [(c.x.label, [m.x for m in c.marks]) for c in (first, second)] == [
        ("t[0]", [0.0, 0.5]),
        ("t[1]", [1.0, 0.2]),
    ]


def test_the_most_telling_of_many_values() -> None:
    def values(i: int) -> dict[str, Any]:
        return {f"v{n}": (i if n in (3, 17) else (i * n * 7919) % 5) for n in range(20)}

    charts = charts_of([trial(i, float(i), **values(i)) for i in range(30)], True, "acc")
    names = [chart.x.label for chart in charts.values]
    assert len(names) == MOST_VALUES and {"v3", "v17"} <= set(names)
    assert names == sorted(names, key=lambda name: int(name[1:]))
    assert charts.notes[0] == "the 12 values that go most with the score, of 20"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_everything_is_inside_the_picture(width: int) -> None:
    long = [
        trial(i, s, **{"weight of a model with a very long name": i}) for i, s in [(0, 1), (9, 2)]
    ]
    parent = Result("parent-" + "long-name-" * 20, "parent", "done", 1e-9)
    text = svg(
        charts_of([*long, parent], True, "results.some.very.long.path.acc,none").progress,
        width,
        260,
    )
    found = re.search(r'width="(\d+)" height="(\d+)"', text)
    assert found is not None and int(found[1]) == width
    height = int(found[2])
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', text):
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    for x, words in re.findall(r'<text x="([\d.]+)" y="[\d.]+">([^<]+)', text):
        assert float(x) + 6.7 * len(words) <= width  # 12 px sans-serif


def test_names_are_escaped(tmp_path: Path) -> None:
    results = [
        trial(0, 0.5, **{"<b>": "</svg><script>"}),
        Result("parent-<i>", "parent", "done", 1.0),
    ]
    file = tmp_path / "x.html"
    draw_search(results, True, ("<u>\x1b", "<s>", ["<p>"]), str(file))
    text = file.read_text(encoding="utf-8")
    for word in ("<b>", "<i>", "<s>", "<u>", "<p>\n", "</svg><script>", "\x1b"):
        assert word not in text


CASES = {
    "two values": RESULTS,
    "one value": [trial(i, 0.1 * i, w=i / 7) for i in range(7)],
    "words": [trial(i, 0.1 * i, m="ab"[i % 2], t=[i, 1.0]) for i in range(7)],
    "orders of magnitude": [trial(i, math.exp(i), w=i, v=10.0**-i) for i in range(12)],
    "no trial yet": PARENTS,
    "nothing": [],
    "equal scores": [trial(i, 0.0, w=1.0, v=2.0) for i in range(3)],
    "negative": [trial(i, -(i**2), w=-i) for i in range(4)],
}


@pytest.mark.parametrize(
    ("case", "ending"),
    [
        *((case, ending) for case in CASES for ending in ("html", "svg")),
        *(("two values", e) for e in ("png", "pdf")),
    ],
)
def test_every_format(case: str, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"search.{ending}"
    draw_search(CASES[case], True, ("Search", "acc", ["summary"]), str(file))
    start = {"html": b"<!doctype", "png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending]
    assert file.read_bytes().startswith(start)


def test_html_needs_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    check_plot(str(tmp_path / "x.html"))
    draw_search(RESULTS, True, ("Search", "acc", []), str(tmp_path / "x.html"))
    assert (tmp_path / "x.html").stat().st_size > 1000


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must end in"):
        check_plot(str(tmp_path / "x.gif"))
    with pytest.raises(UsageError, match="folder not found"):
        check_plot(str(tmp_path / "no" / "x.html"))
    (tmp_path / "x.html").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        draw_search(RESULTS, True, ("Search", "acc", []), str(tmp_path / "x.html"))
