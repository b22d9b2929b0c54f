"""Incidence curves by predicted risk and their figures, with the odd cases."""

import json

import numpy as np
import pyarrow.parquet as pq

from ehrjax.evaluate.predict import write_predictions
from ehrjax.evaluate.survival_plots import curves_by_risk, survival_plots
from ehrjax.metrics.summary import Horizons
from ehrjax.metrics.survival_curves import kaplan_meier

HORIZONS = Horizons(("relapse", "death"), (10.0, 20.0))
RNG = np.random.default_rng(0)
LABELS = np.stack([RNG.integers(1, 21, 90), RNG.integers(0, 3, 90)], axis=1).astype(np.float32)
SCORES = np.sort(RNG.random((90, 4)), axis=1).astype(np.float32)


def test_curves_of_thirds_hold_all_rows_and_what_was_observed():
    found = json.loads(json.dumps(curves_by_risk(LABELS, SCORES, HORIZONS)))
    assert found["cause"] == "relapse" and found["horizons"] == [10.0, 20.0]
    assert sum(curve["num_rows"] for curve in found["curves"].values()) == 90 and len(found["curves"]) == 3
    rows = SCORES[:, 1] <= np.quantile(SCORES[:, 1], 1 / 3)
    lowest = found["curves"]["lowest third"]
    assert lowest["num_rows"] == rows.sum() == 30
    np.testing.assert_allclose(lowest["predicted"], SCORES[rows, :2].mean(axis=0), rtol=1e-5)
    assert lowest["observed"][0] == 0.0 and lowest["observed"] == sorted(lowest["observed"])


def test_one_cause_is_what_kaplan_and_meier_leave_over():
    labels = np.minimum(LABELS, [[30, 1]])
    found = curves_by_risk(labels, np.full((90, 1), 0.2), Horizons(("death",), (20.0,)))
    (curve,) = found["curves"].values()  # equal predictions are one group
    survival = kaplan_meier(labels[:, 0], labels[:, 1].astype(int)).at(np.array(curve["days"]))
    np.testing.assert_allclose(curve["observed"], 1 - survival, atol=1e-9)


def test_figures_are_drawn_even_without_events(tmp_path):
    for labels in (LABELS, LABELS * [[1, 0]]):
        curves = curves_by_risk(labels, SCORES, HORIZONS)
        paths = survival_plots(tmp_path, "relapse", labels, SCORES, HORIZONS, curves)
        assert [path.name for path in paths] == ["relapse_incidence.png", "relapse_calibration.png"]
        assert all(path.stat().st_size > 5000 for path in paths)


def test_predictions_keep_days_events_and_incidences(tmp_path):
    mask = np.ones((90, 2), bool)
    mask[3] = False
    path, names = tmp_path / "relapse.parquet", [f"{c} by {d:g} days" for c in HORIZONS.causes for d in HORIZONS.days]
    ids = {"subject_ids": np.arange(90), "times": np.zeros(90, int)}
    write_predictions(path, "survival", **ids, labels=LABELS, scores=SCORES, mask=mask, names=names)
    table = pq.read_table(path)
    assert table["days_value"].to_pylist()[3] is None and table["event_value"].null_count == 1
    np.testing.assert_allclose(table["predicted_incidences"].to_pylist(), SCORES, rtol=1e-6)
    assert json.loads(table.schema.metadata[b"names"])[2] == "death by 10 days"
