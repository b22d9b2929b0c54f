"""Charts from odd data: nothing to draw, one point, gaps, equal values, hostile names."""

import re
from importlib import resources

import pytest

from ehrjax.evaluate.report_charts import Bar, Series, bar_chart, interval_chart, line_chart, ticks

LABELS = {"xlabel": "x", "ylabel": "y"}


def _paths(svg):
    return re.findall(r'<path class="line[^"]*" d="([^"]*)"', svg)


def test_nothing_to_draw_is_no_chart():
    reference = Series("perfect", [0, 1], [0, 1], is_reference=True)
    for series in (
        [],
        [reference],
        [Series("a", [], [])],
        [Series("a", [1.0], [None])],
        [Series("a", [1], [float("nan")])],
    ):
        assert line_chart("title", series, **LABELS) == []
    assert bar_chart("title", []) == interval_chart("title", []) == []


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-12, 1e-12], [1e9, 1e9 + 1e-3]])
def test_equal_values_have_an_axis(values):
    (chart,) = line_chart("title", [Series("a", range(len(values)), values, has_points=True)], **LABELS)
    assert "nan" not in chart.svg and chart.svg.count("<circle") == len(values)


def test_a_gap_breaks_the_line_and_steps_stay_until_the_next_value():
    (chart,) = line_chart("title", [Series("a", [0, 1, 2, 3], [1.0, 2.0, None, 1.0])], **LABELS)
    assert _paths(chart.svg)[0].count("M") == 2
    (chart,) = line_chart("title", [Series("a", [0, 1], [0.0, 1.0], is_step=True)], xlim=(0, 1), ylim=(0, 1), **LABELS)
    assert _paths(chart.svg) == ["M66.0 254.0H426.0V12.0"]


def test_names_are_escaped_everywhere():
    name = '<b>"x"</b>'
    charts = line_chart(name, [Series(name, [0, 1], [0, 1])], xlabel=name, ylabel=name)
    charts += bar_chart(name, [Bar(name, 1.0, name)]) + interval_chart(name, [Bar(name, 1.0, name, 0.5, 1.5)])
    for chart in charts:
        assert "<b>" not in chart.svg and "&lt;b&gt;&quot;x&quot;" in chart.svg


def test_bars_of_both_signs_start_at_zero():
    (chart,) = bar_chart("title", [Bar("up", 1.0, "+1"), Bar("down", -1.0, "-1"), Bar("none", 0.0, "0")])
    boxes = [(float(x), float(w)) for x, w in re.findall(r'<rect [^>]*x="([^"]*)" [^>]*width="([^"]*)"', chart.svg)]
    assert boxes == [(220.0, 212.0), (8.0, 212.0), (220.0, 1.0)]


def test_an_interval_spans_its_ends_and_may_be_missing():
    (chart,) = interval_chart("title", [Bar("a", 0.5, "", 0.0, 1.0), Bar("oracle", 0.75, "")])
    assert re.findall(r'd="(M8.0 \S+H432.0)"', chart.svg) and chart.svg.count("<path") == 1
    assert 'cx="326.0"' in chart.svg


def test_ticks_are_round_and_within_the_limits():
    assert [text for _, text in ticks(-0.02, 0.05)] == ["-0.02", "0.00", "0.02", "0.04"]
    assert [text for _, text in ticks(0, 5000)] == ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]
    assert all(3.1 <= value <= 3.2 for value, _ in ticks(3.1, 3.2))


def _luminance(colour):
    colour = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_stand_out_from_the_page(scheme):
    """WCAG 2.2: 4.5 to 1 for text, 3 to 1 for lines and dots, on the page and on shaded parts, light and dark."""
    css = resources.files("ehrjax.evaluate").joinpath("report.css").read_text(encoding="utf-8")
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--(\w+): (#\w+);", block))
    for background in ("paper", "shade"):
        for name, colour in colours.items():
            if name not in ("paper", "shade", "rule"):
                light, dark = sorted((_luminance(colour), _luminance(colours[background])), reverse=True)
                needed = 3.0 if name == "none" or name[1:].isdigit() else 4.5
                assert (light + 0.05) / (dark + 0.05) >= needed, (name, background)
