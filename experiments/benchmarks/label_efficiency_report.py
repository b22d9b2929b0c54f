"""Summary, table and plot of `label_efficiency`: figures over seeds, and gains with intervals over test patients."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ehrjax.data.labels import Labels
from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.plot_style import COLOURS, DASHES
from ehrjax.metrics.bootstrap import NUM_RESAMPLES, paired_difference
from ehrjax.metrics.summary import known_rows, metrics_for

SYSTEMS = {"pretrained": "BEHRT, pre-trained", "scratch": "BEHRT, from scratch", "lstm": "LSTM"}
METRICS = {"binary": "auroc", "multiclass": "macro_auroc", "multilabel": "macro_auroc"}


def run_name(system: str, fraction: float, seed: int) -> str:
    """Name of a fine-tuning's files."""
    return f"{system}_{fraction:g}_{seed}"


def summarise(
    runs: list[dict[str, Any]], test: Labels, scores: Path, *, num_resamples: int = NUM_RESAMPLES
) -> list[dict[str, Any]]:
    """A row a share of labels: mean, standard deviation over seeds of each system, and the gain over each other.

    A gain pairs the seeds that both systems have; its interval resamples the test patients for the seeds' mean.
    """
    rows = []
    for fraction in sorted({run["fraction"] for run in runs}, reverse=True):
        here = [run for run in runs if run["fraction"] == fraction]
        row = {"fraction": fraction, "skipped": sum("skipped" in run for run in here)}
        row |= {f"num_{what}": _mean(run[f"num_{what}"] for run in here) for what in ("patients", "positives")}
        values = {s: {r["seed"]: r["auroc"] for r in here if r["system"] == s and "auroc" in r} for s in SYSTEMS}
        for system, by_seed in values.items():
            steps = _mean(r["best_step"] for r in here if r["system"] == system and "auroc" in r)
            row[system] = {**_spread(by_seed.values()), "values": list(by_seed.values()), "best_step": steps}
        for other in ("scratch", "lstm"):
            seeds = sorted(values["pretrained"].keys() & values[other].keys())
            names = [[run_name(s, fraction, seed) for seed in seeds] for s in ("pretrained", other)]
            pairs = [[np.load(scores / f"{name}.npy") for name in of_system] for of_system in names]
            gains = [values["pretrained"][seed] - values[other][seed] for seed in seeds]
            row[f"gain_over_{other}"] = _spread(gains) | _interval(pairs, test, num_resamples)
        rows.append(row)
    return rows


def _mean(values) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _spread(values) -> dict[str, Any]:
    values = list(values)
    return {"mean": _mean(values), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None, "n": len(values)}


def _interval(pairs: list[list[np.ndarray]], test: Labels, num_resamples: int) -> dict[str, float | None]:
    """Of the difference of two systems' means over seeds; `pairs` has their test scores, seed by seed."""
    if not pairs[0]:
        return {"low": None, "high": None}
    metric, stacked = metrics_for(test.kind)[METRICS[test.kind]], []
    for system in pairs:
        known = [known_rows(test.kind, test.values, scores, test.mask, test.subject_ids) for scores in system]
        labels, _, subjects = known[0]
        stacked.append(np.stack([scores for _, scores, _ in known], axis=1))

    def mean_over_seeds(labels, scores, weights):
        return np.mean([metric(labels, scores[:, seed], weights) for seed in range(scores.shape[1])], axis=0)

    drawn = paired_difference({"gain": mean_over_seeds}, labels, *stacked, subjects, num_resamples=num_resamples)
    ends = {"low": drawn["gain"].low, "high": drawn["gain"].high}
    return {end: value if np.isfinite(value) else None for end, value in ends.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The summary as aligned text: means and standard deviations, gains with intervals."""
    gains = [f"gain over {other}" for other in ("scratch", "lstm")]
    lines = [f"{'labels':>7}{'patients':>10}{'positives':>11}" + "".join(f"{s:>21}" for s in SYSTEMS.values())]
    lines[0] += "".join(f"{gain:>33}" for gain in gains)
    for row in rows:
        line = f"{row['fraction']:>7.3g}{row['num_patients']:>10.0f}{row['num_positives']:>11.0f}"
        line += "".join(f"{_plus_minus(row[system]):>21}" for system in SYSTEMS)
        for other in ("scratch", "lstm"):
            gain = row[f"gain_over_{other}"]
            ends = "" if gain["low"] is None else f" [{gain['low']:+.3f}, {gain['high']:+.3f}]"
            line += f"{_plus_minus(gain, '+') + ends:>33}"
        lines.append(line + (f"   ({row['skipped']} skipped)" if row["skipped"] else ""))
    return "\n".join(lines)


def _plus_minus(figures: dict[str, Any], sign: str = "") -> str:
    if figures["mean"] is None:
        return "-"
    return f"{figures['mean']:{sign}.3f}" + ("" if figures["sd"] is None else f" ± {figures['sd']:.3f}")


def draw(path: Path, rows: list[dict[str, Any]], title: str, metric: str) -> None:
    """Mean over seeds against the share of labels, with a band of one standard deviation and a dot a seed."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for (system, label), colour, dash in zip(SYSTEMS.items(), COLOURS, DASHES, strict=False):
        kept = [row for row in rows if row[system]["mean"] is not None]
        shares, means = ([row["fraction"] for row in kept], np.array([row[system]["mean"] for row in kept]))
        spread = np.array([row[system]["sd"] or 0.0 for row in kept])
        axes.plot(shares, means, color=colour, linestyle=dash, marker="o", label=label)
        axes.fill_between(shares, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
        for row in kept:
            dots = row[system]["values"]
            axes.plot([row["fraction"]] * len(dots), dots, ".", color=colour, alpha=0.5, markersize=4)
    axes.set_xscale("log")
    axes.set_xticks([r["fraction"] for r in rows], [f"{r['fraction']:.3g}\n({r['num_patients']:.0f})" for r in rows])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="share of labels (train patients)", ylabel=f"test {metric}", title=title)
    axes.grid(color="#E0E0E0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    with replaced(path) as partial, partial.open("wb") as file:
        FigureCanvasAgg(figure).print_png(file)
