"""Charts as inline SVG, styled by classes of the page: `s0`.. are strokes with a dash each, `d0`.. fills."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ehrjax.evaluate.report_blocks import Chart, Key, escape, shortened

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 12, 46
NUM_STYLES = 7
ROW_HEIGHT = 32


class Series(NamedTuple):
    """A line; y None breaks it. `low` and `high` are the ends of intervals; a `reference` is thin and grey.

    A series without a name is not in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    is_step: bool = False
    has_line: bool = True
    has_points: bool = False
    is_reference: bool = False
    style: int | None = None  # its place among the lines, where not given


class _Frame(NamedTuple):
    xlim: tuple[float, float]
    ylim: tuple[float, float]

    def x(self, value: float) -> float:
        return LEFT + (value - self.xlim[0]) / (self.xlim[1] - self.xlim[0]) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.ylim[0]) / (self.ylim[1] - self.ylim[0]) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    xlabel: str,
    ylabel: str,
    xlim: tuple[float, float] | None = None,
    ylim: tuple[float, float] | None = None,
) -> list[Chart]:
    """Lines over numeric axes; empty where no series has a finite point. Limits are the data's where not given."""
    styles = iter(range(len(series)))
    series = [
        one._replace(style=None if one.is_reference else next(styles) % NUM_STYLES if one.style is None else one.style)
        for one in series
    ]
    points = [point for one in series for point in _finite(one)]
    if not any(_finite(one) for one in series if not one.is_reference):
        return []
    ends = [value for one in series for side in (one.low, one.high) for value in side or () if value is not None]
    frame = _Frame(
        xlim or _limits([x for x, _ in points], pad=0.02), ylim or _limits([*(y for _, y in points), *ends], pad=0.05)
    )
    marks = "".join(_draw(one, frame) for one in series)
    text = _summary(series, ylabel)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img" aria-label="{escape(f"{title}. {text}")}">'
        f"{_axes(frame, xlabel, ylabel)}{_clipped(marks)}</svg>"
    )
    legend = [_key(one) for one in series if one.name and _finite(one)]
    return [Chart(title, svg, text, legend)]


def _key(series: Series) -> Key:
    style = "r" if series.is_reference else str(series.style)
    return Key("line" if series.has_line else "dot", style, series.name)


def _finite(series: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.x, series.y, strict=True) if y is not None and math.isfinite(y)]


def _limits(values: Sequence[float], pad: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    # Equal values, and those that differ by rounding only, get an axis about them.
    span = high - low if high - low > 1e-9 * max(abs(low), abs(high)) else abs(high) or 1.0
    if high - low < span:
        return low - span / 2, high + span / 2
    return low - pad * span, high + pad * span


def _draw(series: Series, frame: _Frame) -> str:
    if not _finite(series):
        return ""
    style = "reference" if series.is_reference else f"line s{series.style}"
    parts = [f'<path class="{style}" d="{_path(series, frame)}"/>'] if series.has_line else []
    if series.low is not None and series.high is not None:
        parts += [
            f'<path class="whisker s{series.style}" d="M{frame.x(x):.1f} {frame.y(low):.1f}V{frame.y(high):.1f}"/>'
            for x, low, high in zip(series.x, series.low, series.high, strict=True)
            if low is not None and high is not None
        ]
    if series.has_points:
        parts += [
            f'<circle class="d{series.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>'
            for x, y in _finite(series)
        ]
    return "".join(parts)


def _path(series: Series, frame: _Frame) -> str:
    steps, is_open = [], False
    for x, y in zip(series.x, series.y, strict=True):
        if y is None or not math.isfinite(y):
            is_open = False
            continue
        px, py = f"{frame.x(x):.1f}", f"{frame.y(y):.1f}"
        if not is_open:
            steps.append(f"M{px} {py}")
        else:
            steps.append(f"H{px}V{py}" if series.is_step else f"L{px} {py}")
        is_open = True
    return "".join(steps)


def _clipped(marks: str) -> str:
    """A nested drawing hides what leaves the plot area, without an id that would have to be unique."""
    x, y, width, height = LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{x} {y} {width} {height}">{marks}</svg>'


def _axes(frame: _Frame, xlabel: str, ylabel: str) -> str:
    parts = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value, text in ticks(*frame.ylim):
        y = frame.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value, text in ticks(*frame.xlim):
        x = frame.x(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(xlabel)}</text>')
    label = f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(ylabel)}</text>'
    return "".join([*parts, label, f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'])


def ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """Round numbers between the limits, about `count` of them, and their texts.

    >>> [text for _, text in ticks(0.0, 1.0)]
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(number * step, f"{number * step + 0.0:,.{decimals}f}") for number in range(first, last + 1)]


def _summary(series: Sequence[Series], ylabel: str) -> str:
    parts = []
    for one in series:
        points = _finite(one)
        if points and not one.is_reference:
            parts.append(f"{one.name}: {ylabel} from {points[0][1]:.3g} to {points[-1][1]:.3g}")
    return "; ".join(parts)


class Bar(NamedTuple):
    """A row of a horizontal chart: a value, or a value in an interval."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    style: int = 0


def bar_chart(title: str, bars: Sequence[Bar]) -> list[Chart]:
    """Horizontal bars from 0, to both sides where some are negative; empty where there are none."""
    if not bars:
        return []
    values = [0.0, *(bar.value for bar in bars)]
    low, high = _span(values)

    def mark(bar: Bar, place: Callable[[float], float], y: float) -> str:
        left, right = sorted((place(0.0), place(bar.value)))
        width = max(right - left, 1.0)
        return f'<rect class="d{bar.style}" x="{left:.1f}" y="{y + 14:.1f}" width="{width:.1f}" height="12"/>'

    return [_row_chart(title, bars, low, high, mark, zero=low < 0)]


def interval_chart(title: str, bars: Sequence[Bar]) -> list[Chart]:
    """Values with their intervals, a row a system; empty where there are none."""
    if not bars:
        return []
    low, high = _span([end for bar in bars for end in (bar.value, bar.low, bar.high) if end is not None])

    def mark(bar: Bar, place: Callable[[float], float], y: float) -> str:
        middle = f"{y + 20:.1f}"
        whisker = ""
        if bar.low is not None and bar.high is not None:
            whisker = f'<path class="interval s{bar.style}" d="M{place(bar.low):.1f} {middle}H{place(bar.high):.1f}"/>'
        return f'{whisker}<circle class="d{bar.style}" cx="{place(bar.value):.1f}" cy="{middle}" r="4.5"/>'

    return [_row_chart(title, bars, low, high, mark, zero=low < 0 < high)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _row_chart(title, bars: Sequence[Bar], low: float, high: float, mark, *, zero: bool) -> Chart:
    """Names and figures stand above their marks, so that long names fit a narrow page."""
    height = ROW_HEIGHT * len(bars) + 6
    left, right = 8, WIDTH - 8

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [f'<path class="axis" d="M{place(0.0):.1f} 0V{height}"/>'] if zero else []
    for number, bar in enumerate(bars):
        y = ROW_HEIGHT * number
        name = escape(shortened(bar.name, 46))
        parts.append(f'<text x="{left}" y="{y + 11}">{name}</text>')
        parts.append(f'<text x="{right}" y="{y + 11}" text-anchor="end">{escape(bar.text)}</text>')
        parts.append(mark(bar, place, y))
    text = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {height}" class="chart" role="img" aria-label="{escape(f"{title}. {text}")}">'
        f"{''.join(parts)}</svg>"
    )
    return Chart(title, svg, text)
