"""The page of `compare` and `report` in Chromium: no errors, no requests, sortable, and narrow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser
from support.checkpoint_factory import save_fine_tunes
from support.recipes import average, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return save_fine_tunes(tmp_path, "olmo_hybrid", count=4)


def column(browser: Browser, number: int) -> list[str]:
    """Return one column of the visible rows of the table of cells."""
    values: list[str] = browser.evaluate(
        "[...document.querySelectorAll('#cells tbody tr')].filter(row => !row.hidden)"
        f".map(row => row.cells[{number}].dataset.v)"
    )
    return values


def click(browser: Browser, number: int) -> list[float]:
    browser.evaluate(f"document.querySelectorAll('#cells thead button')[{number}].click()")
    return [float(value) for value in column(browser, number) if value]


@pytest.mark.parametrize("kind", ["compare", "report"])
def test_the_page_works_by_itself(
    browser: Browser, models: list[Path], tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "page.html"
    if kind == "compare":
        words: list[object] = ["compare", *models[1:], "--base", models[0]]
    else:
        assert average(tmp_path / "out", models) == 0
        words = ["report", tmp_path / "out"]
    assert run(*words, "--plot", file, "--progress", "off") == 0
    browser.events.clear()
    browser.open(file)
    assert browser.evaluate("document.title")
    # Largest first, then smallest first; cells without a figure stay at the end.
    first, again = click(browser, 3), click(browser, 3)
    assert first == sorted(first, reverse=True) and again == sorted(first) and len(set(first)) > 3
    assert column(browser, 3)[-1] == "" or len(again) == len(column(browser, 3))
    layers = column(browser, 0)
    browser.evaluate("document.querySelectorAll('#cells thead button')[0].click()")
    assert column(browser, 0) == sorted(layers)
    browser.evaluate(
        "document.querySelector('details').open = true;"
        "const box = document.querySelector('input[data-table]'); box.value = 'NORM';"
        "box.dispatchEvent(new Event('input'))"
    )
    names = browser.evaluate(
        "[...document.querySelectorAll('#tensors tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.textContent.toLowerCase())"
    )
    assert names and all("norm" in name for name in names)
    wide = browser.evaluate("[document.body.scrollWidth, window.innerWidth]")
    assert wide[0] <= wide[1], "the page is wider than the window"
    assert browser.messages() == []
    page = file.resolve().as_uri()
    assert browser.requested() in ([page], [page, "data:,"])


SMALLEST = """Math.min(...[...document.querySelectorAll("body *")].filter(node =>
  !["SCRIPT", "STYLE", "title"].includes(node.tagName) && [...node.childNodes].some(part =>
  part.nodeType === 3 && part.textContent.trim())).map(node =>
  parseFloat(getComputedStyle(node).fontSize)))"""
CLIPPED = """[...document.querySelectorAll(".panels svg")].filter(svg =>
  svg.getBoundingClientRect().width < svg.width.baseVal.value - 1).length"""


def test_the_page_fits_phones_and_dark_rooms(
    browser: Browser, models: list[Path], tmp_path: Path
) -> None:
    """Three widths, light and dark: no sideways scroll, legible letters, a screenshot of each."""
    file = tmp_path / "page.html"
    words = [*models[1:], "--base", models[0], "--plot", file]
    assert run("compare", *words, "--progress", "off") == 0
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}
    for width in (360, 768, 1280):
        for scheme, ground in grounds.items():
            browser.show_as(width, scheme)
            browser.events.clear()
            browser.open(file)
            root = "document.documentElement"
            assert browser.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), width
            assert browser.evaluate(f"{root}.clientWidth") == width
            assert browser.evaluate(SMALLEST) >= 11
            assert browser.evaluate(CLIPPED) == 0
            actual = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert actual == ground
            picture = tmp_path / f"page-{width}-{scheme}.png"
            browser.screenshot(picture)
            assert picture.read_bytes().startswith(b"\x89PNG")
    wide = "<body><div style='width: 999px; font-size: 5px'>wide</div>"
    file.write_text(wide)
    browser.show_as(360, "light")
    browser.events.clear()
    browser.open(file)
    assert browser.evaluate("document.documentElement.scrollWidth") > 360
    assert browser.evaluate(SMALLEST) == 5


def test_requests_and_errors_are_noticed(browser: Browser, tmp_path: Path) -> None:
    """Show that the test above can fail, with a page that makes requests and logs errors."""
    file = tmp_path / "page.html"
    file.write_text(
        "<link rel=icon href=data:,><img src='https://example.invalid/x.png'>"
        "<script>console.error('oh'); nothing()</script>"
    )
    browser.events.clear()
    browser.open(file)
    assert len(browser.messages()) >= 2
    assert "https://example.invalid/x.png" in browser.requested()
