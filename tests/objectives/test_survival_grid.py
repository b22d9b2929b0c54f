"""The time grid and Cox's baseline: fitted on the rows that they are given, robust to few events and ties."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from ehrjax.objectives.survival_grid import TimeGrid, fit_breslow, fit_time_grid


def test_edges_that_do_not_rise_from_zero_are_refused():
    for edges in ((0.0,), (1.0, 2.0), (0.0, 2.0, 2.0), (0.0, 3.0, 2.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="must rise from 0"):
            TimeGrid(edges)


def test_grid_is_hashable_and_survives_json():
    grid = fit_time_grid([0.1, 7.3, 9.9, 12.7], [1, 1, 2, 1], horizon_days=1095.75, num_intervals=3)
    back = TimeGrid(**json.loads(json.dumps(asdict(grid))))
    assert back == grid and hash(back) == hash(grid) and back.num_intervals == 3


@pytest.mark.parametrize(
    ("times", "events", "edges"),
    [
        ([], [], (0, 100)),
        ([5.0, 9.0], [0, 0], (0, 100)),
        ([5.0, 150.0], [0, 1], (0, 100)),  # the only event is after the horizon
        ([7.0], [1], (0, 7, 100)),
        ([0.0, 0.0, 100.0, 100.0], [1, 1, 1, 1], (0, 100)),
        ([3.0] * 9 + [50.0], [1] * 10, (0, 3, 100)),
        ([float("nan"), 40.0], [1, 1], (0, 40, 100)),
        ([10.0, 20.0, 30.0, 40.0, 5.0], [1, 2, 1, 1, 0], (0, 10, 20, 30, 100)),
    ],
)
def test_grid_holds_quantiles_of_event_times_or_fewer(times, events, edges):
    assert fit_time_grid(times, events, horizon_days=100, num_intervals=4).edges == edges


def test_grid_gives_intervals_equally_many_events_of_the_rows_it_was_given():
    times = np.random.default_rng(0).exponential(30, 2000)
    train = np.arange(2000) < 1000
    events = np.ones(2000, int)
    grid = fit_time_grid(times[train], events[train], horizon_days=90, num_intervals=6)
    counts = np.histogram(times[train], grid.edges)[0]
    assert counts.max() <= 1.05 * counts.min()
    times[~train] *= 9
    assert fit_time_grid(times[train], events[train], horizon_days=90, num_intervals=6) == grid
    assert fit_time_grid(times, events, horizon_days=90, num_intervals=6) != grid


def test_breslow_without_events_and_without_rows():
    baseline = fit_breslow(np.array([3.0, 4.0]), np.zeros(2), np.zeros((2, 2)))
    assert (baseline.incidence_at(np.zeros((5, 2)), [1.0, 9.0]) == np.zeros((5, 2, 2))).all()
    baseline = fit_breslow(np.array([3.0, 4.0]), np.array([1, 1]), np.zeros(2))
    assert baseline.incidence_at(np.zeros((0, 1)), [1.0, 9.0]).shape == (0, 1, 2)


def test_breslow_by_hand_and_with_competing_causes():
    times, events = np.array([2.0, 2.0, 5.0, 6.0]), np.array([1, 0, 2, 1])
    risk = np.log([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]])
    baseline = fit_breslow(times, events, risk)
    np.testing.assert_allclose(
        baseline.cumulative_hazard_at([1, 2, 5.5, 9]), [[0, 0], [0.1, 0], [0.1, 0.5], [0.35, 0.5]]
    )
    found = baseline.incidence_at(np.zeros((1, 2)), [1.0, 2.0, 5.0, 100.0])[0]
    first, second, third = 1 - np.exp(-0.1), np.exp(-0.1) * (1 - np.exp(-0.5)), np.exp(-0.6) * (1 - np.exp(-0.25))
    np.testing.assert_allclose(found, [[0, first, first, first + third], [0, 0, second, second]])


def test_breslow_of_one_cause_is_one_minus_survival_and_takes_extreme_risks():
    rng = np.random.default_rng(0)
    times, events, risk = rng.exponential(60, 60).round(), rng.integers(0, 2, 60), rng.normal(size=(60, 1))
    baseline = fit_breslow(times, events, risk)
    found = baseline.incidence_at(risk, [20.0, 80.0])[:, 0]
    stepwise = baseline._replace(
        log_increments=np.pad(baseline.log_increments, ((0, 0), (0, 1)), constant_values=-np.inf)
    )
    by_steps = stepwise.incidence_at(np.pad(risk, ((0, 0), (0, 1))), [20.0, 80.0])
    np.testing.assert_allclose(by_steps[:, 0], found, rtol=1e-9)
    assert (by_steps[:, 1] == 0).all()  # a cause that never struck
    hazards = baseline.cumulative_hazard_at([20.0, 80.0])[:, 0]
    np.testing.assert_allclose(found, 1 - np.exp(-hazards * np.exp(risk)), rtol=1e-9)
    extreme = np.concatenate([risk * 1e4, risk * -1e4], axis=1)
    found = fit_breslow(times, events, extreme).incidence_at(extreme, [20.0])
    assert np.isfinite(found).all() and (found >= 0).all() and (found.sum(axis=1) <= 1 + 1e-12).all()
    found = fit_breslow(times, events, extreme[:, 1]).incidence_at(extreme[:, 1], [20.0])
    assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
