"""Figures of patient embeddings as PNG files: maps in several colourings, few-shot curves, survival of clusters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes

from ehrjax.evaluate.plot_style import (
    COLOURS,
    GREY,
    add_legend,
    colour_of,
    dash_of,
    panel_grid,
    save_figure,
    single_panel,
)

MAX_NAMED = len(COLOURS) - 1  # categories with a colour of their own; the last colour is black
MARKERS = "os^Dvp"


def embedding_map(
    path: str | Path,
    points: Float[np.ndarray, "n 2"],
    colourings: Mapping[str, Shaped[np.ndarray, "n"]],
    *,
    title: str = "Patient embeddings",
) -> None:
    """A panel a colouring of the same map: numbers (age) on a scale, anything else (disease, outcome, cluster) by name.

    Floats are numbers, NaN drawn grey. Of many names the six most frequent have a colour, all others are grey; empty
    names are "unknown" and grey too.
    """
    columns = 2 if len(colourings) == 4 else 3
    title = f"{title} (n = {len(points):,})"
    axes_list, figure = panel_grid(max(len(colourings), 1), title=title, columns=columns, height=3.6)
    for axes, (name, values) in zip(axes_list, colourings.items(), strict=False):
        values = np.asarray(values)
        if len(values) != len(points):
            raise ValueError(f"{name} has {len(values)} values for {len(points)} points: give one a point.")
        axes.set(title=name, xticks=[], yticks=[])
        axes.grid(False)
        if values.dtype.kind == "f":
            _draw_numbers(axes, points, values)
        else:
            _draw_names(axes, points, values.astype(str))
    save_figure(figure, path)


def _draw_numbers(axes: Axes, points: np.ndarray, values: np.ndarray) -> None:
    known = np.isfinite(values)
    _scatter(axes, points, ~known, color=GREY, alpha=0.3)
    drawn = _scatter(axes, points, known, c=values[known], cmap="cividis")
    axes.figure.colorbar(drawn, ax=axes)


def _draw_names(axes: Axes, points: np.ndarray, names: np.ndarray) -> None:
    kinds, counts = np.unique(names, return_counts=True)
    by_size = [str(kind) for kind in kinds[np.argsort(-counts, kind="stable")] if kind]
    # In the order of their names, so that cluster 0 is the first colour in every figure.
    named = sorted(by_size[:MAX_NAMED], key=_natural)
    rest = ~np.isin(names, named)
    if rest.any():
        label = "other" if len(by_size) > MAX_NAMED else "unknown"
        _scatter(axes, points, rest, color=GREY, alpha=0.3, label=f"{label} ({rest.sum():,})")
    for index, name in enumerate(named):
        rows = names == name
        marker = MARKERS[index % len(MARKERS)]
        _scatter(axes, points, rows, color=colour_of(index), marker=marker, label=f"{name} ({rows.sum():,})")
    if len(points):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2, frameon=False, fontsize=7, markerscale=2)


def _scatter(axes: Axes, points: np.ndarray, rows: np.ndarray, **style: Any) -> Any:
    size = float(np.clip(15_000 / max(len(points), 1), 5.0, 30.0))  # square points: small where there are many
    style = {"alpha": 0.7, "s": size, "linewidths": 0} | style
    return axes.scatter(points[rows, 0], points[rows, 1], **style)


def _natural(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else -1, name)


def few_shot_plot(path: str | Path, curves: Mapping[str, Mapping[str, Any]]) -> None:
    """`probes.few_shot_curve` of several labellings or models: mean over draws, a band of one standard deviation.

    The value with all labels is a line to the right.
    """
    figure, axes = single_panel("Few labelled patients, test split")
    longest = max((curve["shots"][-1] for curve in curves.values() if curve["shots"]), default=1)
    for index, (name, curve) in enumerate(curves.items()):
        if not curve["shots"]:
            continue
        mean, sd = np.array(curve["mean"]), np.array(curve["sd"])
        style = {"color": colour_of(index), "linestyle": dash_of(index)}
        axes.plot(curve["shots"], mean, marker="o", markersize=4, label=name, **style)
        axes.fill_between(curve["shots"], mean - sd, mean + sd, color=colour_of(index), alpha=0.15, linewidth=0)
        axes.plot([1.2 * longest, 2 * longest], 2 * [curve["all_labels"]], linewidth=2.5, **style)
    axes.axhline(0.5, color=GREY, linewidth=1, label="chance")
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(int(np.log2(longest)) + 1)]
    axes.set_xticks([*ticks, 1.6 * longest], [*map(str, ticks), "all"])
    axes.minorticks_off()
    axes.set(xlabel="labelled train patients a class", ylabel="AUROC")
    add_legend(axes, loc="lower right")
    save_figure(figure, path)


def cluster_survival_plot(path: str | Path, table: Mapping[str, Any], outcome: str) -> None:
    """Kaplan-Meier curves of the clusters in a table of `clusters.characterise_clusters` made with `survival_curve`."""
    figure, axes = single_panel(f"{outcome} by cluster")
    for row in table["clusters"]:
        found = row.get("outcomes", {}).get(outcome, {})
        if "curve" not in found:
            continue
        # Everybody is free of the event at first, whether or not the curve says so.
        times, survival = np.r_[0.0, found["curve"]["times"]], np.r_[1.0, found["curve"]["survival"]]
        index = row["cluster"]
        label = f"cluster {index}: {found['num_events']:,} of {found['num_patients']:,}"
        axes.step(times, survival, where="post", color=colour_of(index), linestyle=dash_of(index), label=label)
    axes.set(xlabel="years", ylabel="share without the event")
    axes.set_ylim(top=1.01)
    add_legend(axes, loc="lower left")
    save_figure(figure, path)
