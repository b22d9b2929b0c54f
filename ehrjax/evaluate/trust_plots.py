"""Figures of trust as PNG files: calibration before and after recalibration, and decision curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ehrjax.evaluate.plot_style import (
    GREY,
    add_legend,
    colour_of,
    dash_of,
    save_figure,
    single_panel,
    tidy_axes,
    wilson_interval,
)
from ehrjax.metrics.calibration import ReliabilityCurve, reliability_curve
from ehrjax.metrics.decision import DecisionCurve
from ehrjax.types import Array

NUM_BINS, NUM_BARS = 10, 25


def reliability_with_histogram(
    path: str | Path, labels: Shaped[Array, "n"], scores: Mapping[str, Float[Array, "n"]]
) -> None:
    """Observed rate against mean score of each system (e.g. model, Platt, isotonic), and how often scores occur.

    Bins of equal mass, 95 % Wilson intervals (rows taken as independent).
    """
    figure = Figure(figsize=(5.6, 6.6), layout="constrained")
    curves, bars = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    curves.set_title("Calibration, test split")
    tops = [_draw_curve(curves, labels, values, name, index) for index, (name, values) in enumerate(scores.items())]
    limit = min(1.0, 1.05 * max(tops, default=0.0)) or 1.0
    curves.plot([0, limit], [0, limit], color=GREY, linewidth=1, label="perfect", zorder=0)
    curves.set(ylabel="observed rate", xlim=(0, limit), ylim=(0, limit))
    add_legend(curves, loc="upper left")
    for index, values in enumerate(scores.values()):
        if len(values):
            share = np.full(len(values), 1 / len(values))
            edges = np.linspace(0, limit, NUM_BARS + 1)
            # Scores beyond the axis stand in its last bar.
            shown = np.minimum(values, limit)
            bars.hist(shown, edges, weights=share, histtype="step", color=colour_of(index), linestyle=dash_of(index))
    bars.set(xlabel="predicted probability (bin mean)", ylabel="share")
    for axes in (curves, bars):
        tidy_axes(axes)
    save_figure(figure, path)


def _draw_curve(axes: Axes, labels: Array, values: Array, name: str, index: int) -> float:
    """One system; returns the highest point drawn."""
    curve = reliability_curve(labels, values, num_bins=NUM_BINS)
    # Many equal scores leave slivers of bins between them, whose intervals span the figure.
    is_filled = curve.weight >= curve.weight.sum() / (4 * NUM_BINS)
    curve = ReliabilityCurve(*(column[is_filled] for column in curve))
    low, high = wilson_interval(curve.observed_rate, curve.weight)
    errors = np.maximum([curve.observed_rate - low, high - curve.observed_rate], 0.0)
    style = {"color": colour_of(index), "linestyle": dash_of(index), "marker": "os^Dv"[index % 5], "markersize": 4}
    axes.errorbar(curve.mean_score, curve.observed_rate, yerr=errors, capsize=2, linewidth=1.2, label=name, **style)
    return float(np.max([*high, *curve.mean_score], initial=0.0))


def decision(path: str | Path, curve: DecisionCurve) -> None:
    """Net benefit over thresholds, as far as acting on any system, or on all patients, is of use."""
    figure, axes = single_panel("Decision curve, test split")
    systems = {name: values for name, values in curve.net_benefit.items() if not name.startswith("treat ")}
    for name, colour in (("treat all", GREY), ("treat none", "black")):
        axes.plot(curve.thresholds, curve.net_benefit[name], color=colour, linewidth=1, label=name)
    for index, (name, values) in enumerate(systems.items()):
        axes.plot(curve.thresholds, values, color=colour_of(index), linestyle=dash_of(index), label=name)
    every = np.stack(list(curve.net_benefit.values()))
    best = np.max(every, axis=0, initial=0.0, where=np.isfinite(every))
    useful = curve.thresholds[best > 0]
    top = float(best.max(initial=0.0)) or 0.01
    axes.set(xlabel="threshold probability", ylabel="net benefit (true positives a patient)")
    axes.set(xlim=(0, min(1.0, 1.1 * float(useful.max(initial=0.0))) or 1.0), ylim=(-0.1 * top, 1.1 * top))
    add_legend(axes, loc="upper right")
    save_figure(figure, path)
