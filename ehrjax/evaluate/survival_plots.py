"""Figures of a time-to-event task: incidence as observed and predicted by groups of risk, and calibration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ehrjax.evaluate.plot_style import add_legend, colour_of, panel_grid, save_figure, single_panel
from ehrjax.metrics.summary import Horizons
from ehrjax.metrics.survival_calibration import observed_against_predicted
from ehrjax.metrics.survival_curves import aalen_johansen

RISK_GROUPS = ("lowest third", "middle third", "highest third")
NUM_DAYS = 61  # points of a drawn curve


def curves_by_risk(labels: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, "n S"], horizons: Horizons) -> dict:
    """Incidence of the first cause in thirds of predicted risk, as results.json holds it.

    `observed` at `days` by Aalen and Johansen's estimator, `predicted` (the mean) at `horizons`. Groups come from the
    predictions alone; equal predictions stay together, so a group may be empty and is then left out.
    """
    own = scores[:, horizons.columns(1)]
    cuts = np.quantile(own[:, -1], [1 / 3, 2 / 3]) if len(own) else np.zeros(2)
    groups = np.searchsorted(cuts, own[:, -1], side="right")
    days = np.linspace(0, horizons.days[-1], NUM_DAYS)
    curves = {}
    for number, name in enumerate(RISK_GROUPS):
        rows = groups == number
        if not rows.any():
            continue
        observed = aalen_johansen(labels[rows, 0], labels[rows, 1].astype(int), num_causes=len(horizons.causes))
        incidence = observed.at(days)[:, 0]
        curves[name] = {
            "num_rows": int(rows.sum()),
            "days": days.tolist(),
            "observed": [None if np.isnan(value) else float(value) for value in incidence],
            "predicted": own[rows].mean(axis=0).astype(float).tolist(),
        }
    return {"cause": horizons.causes[0], "horizons": list(horizons.days), "curves": curves}


def survival_plots(
    folder: str | Path,
    name: str,
    labels: Float[np.ndarray, "n 2"],
    scores: Float[np.ndarray, "n S"],
    horizons: Horizons,
    curves: Mapping[str, Any],
) -> list[Path]:
    """`NAME_incidence.png` (the curves of `curves_by_risk`) and `NAME_calibration.png`; the paths written."""
    paths = [Path(folder) / f"{name}_{figure}.png" for figure in ("incidence", "calibration")]
    _incidence(paths[0], curves)
    _calibration(paths[1], labels, scores, horizons)
    return paths


def _incidence(path: Path, curves: Mapping[str, Any]) -> None:
    figure, axes = single_panel(f"{curves['cause']}: observed (lines) and predicted (points)")
    for number, (name, curve) in enumerate(curves["curves"].items()):
        observed = np.array([np.nan if value is None else value for value in curve["observed"]])
        axes.step(curve["days"], observed, where="post", color=colour_of(number), label=f"{name} of predicted risk")
        axes.plot(curves["horizons"], curve["predicted"], "o", color=colour_of(number))
    axes.set(xlabel="days", ylabel="cumulative incidence")
    axes.set_ylim(bottom=0)
    add_legend(axes)
    save_figure(figure, path)


def _calibration(path: Path, labels: np.ndarray, scores: np.ndarray, horizons: Horizons) -> None:
    panels, figure = panel_grid(
        len(horizons.days), title="predicted and observed incidence, by tenths of predicted risk"
    )
    for axes, horizon, predicted in zip(panels, horizons.days, scores[:, horizons.columns(1)].T, strict=True):
        found = observed_against_predicted(labels, predicted, horizon)
        bars = np.stack([found.observed - found.low, found.high - found.observed])
        axes.errorbar(found.predicted, found.observed, np.nan_to_num(np.maximum(bars, 0)), fmt="o", color=colour_of(0))
        top = float(np.nanmax([*found.predicted, *found.high, 1e-6]))
        axes.plot([0, top], [0, top], color="0.6", linewidth=1)
        axes.set(title=f"{horizon:g} days", xlabel="predicted", ylabel="observed")
    save_figure(figure, path)
