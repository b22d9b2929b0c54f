"""The report in a headless browser: no error, nothing fetched, charts drawn, fit for a phone, the map answers."""

import pytest

from ehrjax.evaluate.report import main
from tests.browser.webdriver import CHROMEDRIVER, CHROMIUM, browser
from tests.evaluate.report_example import HOSTILE, write_example

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The example's report, opened; and the messages of its console."""
    workdir = write_example(tmp_path_factory.mktemp("run"))
    main([f"--workdir={workdir}"])
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.screen(1280)
        opened.open(workdir / "report.html")
        yield opened


def test_nothing_is_wrong_fetched_or_executed(page):
    assert page.console() == []
    assert page.script("return performance.getEntriesByType('resource').length") == 0
    assert page.script("return window.broken === undefined && document.images.length === 0")


def test_charts_are_drawn(page):
    sizes = page.script(
        "return [...document.querySelectorAll('svg.chart')].filter(s => !s.closest('details'))"
        ".map(s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height, s.getBBox().height])"
    )
    assert len(sizes) > 12
    assert all(min(size) > 20 for size in sizes)


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_as_wide_as_the_screen(page, width):
    page.screen(width)
    page.script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.script("return document.documentElement.scrollWidth") <= width
    smallest = page.script(
        "return Math.min(...[...document.querySelectorAll('p, td, th, a, li')]"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 13
    page.script("document.querySelectorAll('details').forEach(d => { d.open = false; })")
    page.screen(1280)


def test_the_map_tells_who_a_point_is_and_takes_colours(page):
    at = page.script(
        "document.querySelector('svg.map').scrollIntoView({behavior: 'instant', block: 'center'});"
        "const dot = document.querySelectorAll('svg.map circle')[1].getBoundingClientRect();"
        "return [dot.x + dot.width / 2, dot.y + dot.height / 2]"
    )
    page.point_at(*at)
    told = page.script("return document.getElementById('map-patient').textContent")
    for part in ("cluster: ", "age: ", "disease: ", "outcome: ", "top codes: " + HOSTILE[:40], "Metformin"):
        assert part in told
    page.script("document.querySelector('svg.map').focus()")
    page.press("ArrowRight")
    assert page.script("return document.querySelectorAll('svg.map .chosen').length") == 1
    page.script(
        "const choice = document.getElementById('map-colour'); choice.value = 'age';"
        "choice.dispatchEvent(new Event('change'))"
    )
    assert "under 18" in page.script("return document.querySelector('#embedding-map .legend').textContent")
    assert page.script("return window.broken === undefined") and page.console() == []


def test_dark_and_printed_forms_have_their_colours(page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = page.script(colour)
    page.screen(1280, scheme="dark")
    assert page.script(colour) != light == "rgb(255, 255, 255)"
    page.screen(1280, scheme="dark", media="print")
    assert page.script(colour) == light
    assert page.script("return getComputedStyle(document.querySelector('nav')).display") == "none"
    page.screen(1280)
