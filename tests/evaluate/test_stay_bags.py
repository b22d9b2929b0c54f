"""What baselines see of a stay: figures worked out by hand, nothing behind the mask, odd windows."""

from dataclasses import replace

import numpy as np
import pytest

from ehrjax.evaluate.bags import DENSE_NAMES
from ehrjax.evaluate.stay_bags import RECENT_SHARES, stay_features
from tests.stays import NOTE_DIM, NUM_STATICS, NUM_SUMMARIES, NUM_TIMES, NUM_VARIABLES, make_stays

NUM_DENSE = len(DENSE_NAMES) + NUM_STATICS - 1 + NUM_SUMMARIES + NOTE_DIM
SUMMARIES = ("mean", "std", "least", "greatest", "first", "last", "since")


def summary(features, name, variable):
    place = NUM_DENSE + SUMMARIES.index(name) * NUM_VARIABLES + variable
    return features.dense[:, place]


def test_no_rows():
    features = stay_features(make_stays([3]), np.zeros(0, int))
    assert features.counts.shape == (0, NUM_VARIABLES) and len(features.dense) == 0


def test_a_window_without_measurements_has_zeros_and_no_nan():
    features = stay_features(make_stays([0, 4]))
    assert np.isfinite(features.dense).all()
    assert not features.counts[0].toarray().any()
    assert not features.dense[0, NUM_DENSE:].any()


def test_stays_without_a_grid():
    stays = make_stays([2, 3])
    gone = {name: getattr(stays, name)[:, :0] for name in ("values", "observed", "hours_since", "time_mask")}
    features = stay_features(replace(stays, **gone))
    assert features.dense.shape == (2, NUM_DENSE) and features.counts.shape == (2, NUM_VARIABLES)


def test_figures_by_hand():
    stays = make_stays([4])
    stays.observed[0] = False
    stays.observed[0, :3, 0] = [True, False, True]
    stays.values[0, :4, 0] = [1.0, 1.0, 4.0, 4.0]
    stays.hours_since[0, 3, 0] = 1.5
    features = stay_features(stays)
    assert features.counts.toarray().tolist() == [[2, 0, 0]]
    assert [part.toarray()[0, 0] for part in features.recent] == [1, 1] and RECENT_SHARES == (4, 2)
    assert features.dense[0, 1:5].tolist() == [2, 2, 4, 1]
    found = {name: summary(features, name, 0)[0] for name in SUMMARIES}
    expected = {"mean": 2.5, "std": 1.5, "least": 1, "greatest": 4, "first": 1, "last": 4, "since": np.log1p(1.5)}
    assert found == pytest.approx(expected)


def test_what_is_behind_the_mask_does_not_count():
    stays = make_stays([2, NUM_TIMES, 1])
    behind = ~stays.time_mask[:, :, None]
    other = replace(stays, observed=stays.observed | behind, values=np.where(behind, 9, stays.values))
    a, b = stay_features(stays), stay_features(other)
    np.testing.assert_array_equal(a.dense, b.dense)
    assert (a.counts != b.counts).nnz == 0


def test_rows_are_chosen_in_their_order():
    stays = make_stays([2, 5, 0, 3])
    rows = np.array([3, 1])
    np.testing.assert_array_equal(stay_features(stays, rows).dense, stay_features(stays).dense[rows])
