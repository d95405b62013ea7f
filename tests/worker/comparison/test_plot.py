"""Plots and pages of `compare`: complete, self-contained, and of a reasonable size."""

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from merge_worker.comparison.grid import limits, log_ticks, title_lines
from merge_worker.comparison.matplotlib_maps import WIDE
from merge_worker.comparison.metrics import Metric, Scale, shown
from merge_worker.comparison.svg_maps import fraction
from merge_worker.drawing.colors import color
from support.checkpoint_factory import save_fine_tunes, write_checkpoint
from support.recipes import run


def metric(scale: Scale) -> Metric:
    return Metric("moved", "a", scale, [(0, 1)])


class Page(HTMLParser):
    """A parser that matches opening and closing tags, and collects links a browser might fetch."""

    EMPTY = frozenset({"meta", "link", "input", "rect", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.rows += tag == "tr"
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return save_fine_tunes(tmp_path, "olmo_hybrid", count=4)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("base", [True, False])
def test_the_page_is_complete_and_fetches_nothing(
    count: int, base: bool, models: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "out.html"
    words = ["--base", models[0]] if base else []
    chosen = models[-count + (count == 4 and base) :]
    assert run("compare", *chosen, *words, "--plot", file, "--progress", "off") == 0
    text = file.read_text("utf-8")
    page = Page()
    page.feed(text)
    assert page.open == [] and page.links == ["data:,"]
    assert "default-src 'none'" in text and not re.search(r"https?://", text)
    svgs = re.findall(r'<svg role="img".*?</svg>', text, re.S)
    assert len(svgs) >= 5
    for svg in svgs:
        ElementTree.fromstring(svg)
        assert "nan" not in svg.lower().replace("nance", "")
    assert page.rows > 68 + 15  # every tensor, every cell


def test_names_cannot_inject(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>.0.\x1b[2Jweight"
    for number, name in enumerate(("<b>a", "b&quot;")):
        write_checkpoint(tmp_path / name, {evil: torch.ones(3, 3) + number})
    file = tmp_path / "x.html"
    assert run("compare", *tmp_path.iterdir(), "--plot", file, "--progress", "off") == 0
    text = file.read_text("utf-8")
    assert "<script>alert" not in text and "<b>a" not in text and "\x1b" not in text
    assert text.count("<script>") == 1


def test_plot_formats(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")):
        file = tmp_path / f"x{ending}"
        words = [*models[1:3], "--base", models[0], "--plot", file, "--progress", "off"]
        assert run("compare", *words) == 0
        assert file.read_bytes().startswith(start)
        assert f"picture    {file}" in capsys.readouterr().out
    plot = ElementTree.parse(tmp_path / "x.svg")
    assert plot.getroot().tag.endswith("svg")


def test_without_matplotlib(
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    assert run("compare", *models[:2], "--plot", tmp_path / "x.png") == 2
    error = capsys.readouterr().err
    assert "pip install matplotlib" in error and f"--plot {tmp_path / 'x.html'}" in error


def test_ends_of_color_scales() -> None:
    assert limits(metric(Scale.SIGNED), [0.03, -0.07]) == (-0.1, 0.1, False)
    assert limits(metric(Scale.SIGNED), [0.03, -0.7]) == (-1, 1, False)
    assert limits(metric(Scale.CHANCE), [0.41, 0.5]) == (0.4, 0.6, False)
    assert limits(metric(Scale.SHARE), [0.0, 0.2]) == (0, 0.25, False)
    assert limits(metric(Scale.MAGNITUDE), [0.01, 0.05]) == (0, 0.05, False)
    assert limits(metric(Scale.MAGNITUDE), [0.001, 0.05, 0.0]) == (0.001, 0.05, True)
    # One extreme does not leave the others without color, and no scale begins far below its values.
    assert limits(metric(Scale.SIGNED), [0.03] * 18 + [0.9, 0.04]) == (-0.05, 0.05, False)
    assert limits(metric(Scale.SHARE), [0.93, 0.99]) == (0.9, 1, False)
    assert limits(metric(Scale.SHARE), [0.001, 0.008]) == (0, 0.01, False)
    assert limits(metric(Scale.MAGNITUDE), [8.0, 10.0]) == (8, 10, False)
    assert limits(metric(Scale.MAGNITUDE), []) == (0, 1, False)
    assert log_ticks(0.02, 0.3)[:4] == pytest.approx([0.01, 0.02, 0.05, 0.1])
    assert fraction(0.01, 0.001, 0.1, True) == pytest.approx(0.5)


def test_titles_keep_both_ends_of_long_names() -> None:
    long = "olmo-hybrid-7b-math-preview"
    assert title_lines("code", 20) == ["code"]
    assert title_lines(f"{long}, code", 20) == ["olmo-hybrid-…preview", "× code"]
    assert title_lines(f"{long}, {long[:-8]}", 16)[1] == "× olmo-hyb…-math"


def test_undefined_figures_and_missing_parts_look_different(
    models: list[Path], tmp_path: Path
) -> None:
    """Norms have no rank (gray), layers of linear attention no attention (hatched)."""
    file = tmp_path / "x.html"
    words = [*models[1:3], "--base", models[0], "--plot", file, "--progress", "off"]
    assert run("compare", *words) == 0
    panels = re.findall(r'<svg role="img" aria-label="([^:]*):.*?</svg>', file.read_text(), re.S)
    svgs = re.findall(r'<svg role="img".*?</svg>', file.read_text(), re.S)
    blank = [n for n, svg in zip(panels, svgs, strict=True) if 'class="blank"' in svg]
    assert blank and all(name.startswith("rank") for name in blank)
    assert all('class="none"' in svg for svg in svgs)


@pytest.mark.parametrize("layers", [2, 12, 80])
def test_labels_of_layers_do_not_touch(
    layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check every drawn panel with layer labels: no two labels overlap."""
    from matplotlib.figure import Figure

    for seed, name in enumerate(("base", "a", "b")):
        chance = torch.Generator().manual_seed(seed)
        shape = (4, 4)
        tensors = {"embed_tokens.weight": torch.randn(shape, generator=chance)}
        for layer in range(layers):
            tensors[f"model.layers.{layer}.mlp.w"] = torch.randn(shape, generator=chance)
        tensors["norm.weight"] = torch.randn(4, generator=chance)
        write_checkpoint(tmp_path / name, tensors)
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *words, **more: drawn.append(self))
    words = [tmp_path / "a", tmp_path / "b", "--base", tmp_path / "base"]
    assert run("compare", *words, "--plot", tmp_path / "x.png", "--progress", "off") == 0
    figure, seen = drawn[0], 0
    figure.draw_without_rendering()
    for axes in figure.axes:
        texts = [
            t for t in axes.get_yticklabels() if t.get_text() in ("input", "output", "0", "10")
        ]
        if len(texts) < 2:
            continue
        boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
        tops = sorted((box.y0, box.y1) for box in boxes)
        assert all(below[1] <= above[0] + 1 for below, above in pairwise(tops)), layers
        seen += 1
    assert seen >= 1
    inches = figure.get_size_inches()
    assert inches[0] == pytest.approx(WIDE) and inches[1] < 15


def test_colors_are_those_of_matplotlib() -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    for name in ("viridis", "cividis", "RdBu", "RdBu_r"):
        for step in range(21):
            actual, expected = to_rgb(color(name, step / 20)), colormaps[name](step / 20)
            assert actual == pytest.approx(expected[:3], abs=0.08), (name, step)


def test_formatted_numbers() -> None:
    values = [0.5, 0.0123, 1e-6, 0.0, float("nan"), float("inf"), 1.5]
    words = ["50.0%", "1.23%", "1e-04%", "0.00%", "-", "inf", "150.0%"]
    assert [shown(value, True) for value in values] == words
    assert [shown(x, False) for x in (0.1234, -0.0001, 12.34, 1234.5)] == [
        "0.123",
        "0.000",
        "12.3",
        "1234",
    ]


@pytest.mark.parametrize("count", [2, 3, 9])
def test_a_picture_in_a_page_of_830_pixels(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters of 9 pixels, every model named at its matrix, nothing outside, no empty third."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    chance = torch.Generator().manual_seed(count)
    for name in ("base", *(f"model-{i}" for i in range(count))):
        tensors = {
            f"model.layers.{layer}.{part}.w": torch.randn(4, 4, generator=chance)
            for layer in range(3)
            for part in ("mlp", "self_attn")
        }
        write_checkpoint(tmp_path / name, tensors)
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *words, **more: drawn.append(self))
    words = [*(tmp_path / f"model-{i}" for i in range(count)), "--base", tmp_path / "base"]
    assert run("compare", *words, "--plot", tmp_path / "x.png", "--progress", "off") == 0
    figure = drawn[0]
    figure.draw_without_rendering()
    pixels = 830 / figure.get_figwidth() / 72
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) * pixels >= 9
    window = figure.bbox
    for text in texts:
        box = text.get_window_extent()
        assert window.x0 <= box.x0 and box.x1 <= window.x1, text.get_text()
    for axes in figure.axes[:4:2]:
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == [f"model-{i}" for i in range(count)]
    title = figure.texts[0].get_text()
    names = ", ".join(f"model-{i}" for i in range(count)) if count < 9 else "9 models"
    assert title == f"{names}, from base"
    # Every line of panels reaches the right third.
    lines: dict[float, float] = {}
    for axes in figure.axes[4:]:
        place = axes.get_position()
        lines[round(place.y1, 3)] = max(place.x1, lines.get(round(place.y1, 3), 0))
    assert min(lines.values()) > 2 / 3
    summaries = {axes.get_title() for axes in figure.axes} - {""}
    assert ("least of\n36 pairs" in summaries) == (count == 9)
    assert ("most of\n9 models" in summaries) == (count == 9)
