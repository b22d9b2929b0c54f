"""A patient's record as a figure: which visits and codes moved the risk, and the risk after each visit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.plot_style import COLOURS, GREY, tidy_axes

RAISES, LOWERS = COLOURS[1], COLOURS[0]
NUM_NAMED = 10  # codes named in the panel at the right
_LONGEST_NAME = 38
_LARGEST_BUBBLE = 260.0  # points squared
_OPAQUE = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def patient_timeline(path: str | Path, table: Mapping[str, Any], *, title: str = "") -> None:
    """Write a PNG of a table of `explain_patients`: attributions of its visits over age, its risk, its top codes.

    The area of a bubble is the size of the visit's attribution, its colour the sign; a visit that holds one of the top
    codes bears its number. Without ages the axis is years before the last visit.
    """
    figure = Figure(figsize=(11.0, 5.4), layout="constrained")
    panels = figure.subplot_mosaic(
        [["visits", "codes"], ["risk", "codes"]], width_ratios=[1.7, 1], height_ratios=[3, 2]
    )
    for axes in panels.values():
        tidy_axes(axes)
    times, label = visit_times(table["visits"])
    top = top_codes(table["visits"], NUM_NAMED)
    _draw_visits(panels["visits"], times, table["visits"], {number for number, _ in top})
    _draw_risk(panels["risk"], times, table["visits"])
    panels["risk"].set_xlabel(label)
    panels["risk"].sharex(panels["visits"])
    panels["visits"].tick_params(labelbottom=False)
    _draw_codes(panels["codes"], top)
    figure.suptitle(title or f"Example {table['example']}: risk {table['risk']:.3f}")
    with replaced(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def visit_times(visits: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, str]:
    """Where the visits stand on the time axis, and its label."""
    ages = [visit["age"] for visit in visits]
    if None not in ages:
        return np.array(ages, float), "age (years)"
    return -np.array([visit["days_before_last"] or 0.0 for visit in visits]) / 365.25, "years before the last visit"


def top_codes(visits: Sequence[Mapping[str, Any]], num_codes: int) -> list[tuple[int, Mapping[str, Any]]]:
    """Number of the visit and row of the code for the largest attributions by size; those of 0 are left out."""
    codes = [(visit["number"], code) for visit in visits for code in visit["codes"] if code["attribution"] != 0]
    return sorted(codes, key=lambda pair: -abs(pair[1]["attribution"]))[:num_codes]


def _draw_visits(axes: Axes, times: np.ndarray, visits: Sequence[Mapping[str, Any]], numbered: set[int]) -> None:
    values = np.array([visit["attribution"] for visit in visits], float)
    largest = max(np.abs(values).max(initial=0.0), 1e-12)
    colours = [RAISES if value > 0 else LOWERS for value in values]
    axes.axhline(0.0, color=GREY, linewidth=1)
    axes.vlines(times, 0.0, values, colors=colours, linewidth=1.5)
    axes.scatter(times, values, s=_LARGEST_BUBBLE * np.abs(values) / largest + 4, c=colours, alpha=0.75, linewidths=0)
    for visit, time, value in zip(visits, times, values, strict=True):
        if visit["number"] in numbered:
            above = value >= 0
            axes.annotate(
                str(visit["number"]),
                (time, value),
                xytext=(0, 10 if above else -10),
                textcoords="offset points",
                ha="center",
                va="bottom" if above else "top",
                fontsize=8,
            )
    axes.margins(x=0.05, y=0.2)
    axes.set(ylabel="attribution (logit)", title="Visits that moved the risk")


def _draw_risk(axes: Axes, times: np.ndarray, visits: Sequence[Mapping[str, Any]]) -> None:
    risks = np.array([np.nan if visit["risk_after"] is None else visit["risk_after"] for visit in visits], float)
    # A step, since the risk stays until the next visit says more.
    axes.step(times, risks, where="post", color="black", linewidth=1.2)
    axes.plot(times, risks, "o", color="black", markersize=3)
    axes.set_ylim(0.0, max(1.15 * float(np.nanmax(risks, initial=0.0)), 0.01))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("risk after the visit")


def _draw_codes(axes: Axes, top: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    values = np.array([code["attribution"] for _, code in top], float)
    rows = np.arange(len(top))
    axes.barh(rows, values, height=0.3, color=[RAISES if value > 0 else LOWERS for value in values])
    axes.axvline(0.0, color=GREY, linewidth=1)
    for row, (number, code) in enumerate(top):
        # Above its bar and over the panel's whole width: beside it, long names would squeeze the bars.
        text = f"{number}  {_shortened(code['description'])}"
        axes.annotate(text, (0, row - 0.22), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", bbox=_OPAQUE)
    axes.set_yticks([])
    axes.set_ylim(max(len(top), 1) - 0.5, -0.8)
    axes.spines["left"].set_visible(False)
    axes.set(xlabel="attribution (logit)", title="Codes that moved it most (visit, code)")


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
