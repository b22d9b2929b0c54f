"""Metrics of masked codes: nothing masked, one patient, equality with plain loops and with explicit resampling."""

import numpy as np
import pytest

from ehrjax.metrics.bootstrap import resample_weights
from ehrjax.metrics.masked_codes import evaluate_masked_codes, masked_code_metrics, target_ranks
from ehrjax.metrics.ratios import difference, evaluate_ratios


def _masked(num_codes=200, num_patients=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 15, num_codes), -rng.exponential(2, num_codes), rng.integers(0, num_patients, num_codes) * 3


def test_no_code_is_masked():
    table = evaluate_masked_codes([], [], [])
    assert set(table) == {"mlm_loss", "mlm_accuracy", "mlm_top5_accuracy", "mlm_top10_accuracy"}
    for row in table.values():
        assert row == {"value": None, "low": None, "high": None, "reason": "no code is masked"}


def test_one_patient_has_an_interval_of_no_width():
    table = evaluate_masked_codes([0, 4, 9, 10], np.log([0.5, 0.25, 0.1, 0.1]), [7, 7, 7, 7], num_resamples=20)
    values = {name: row["value"] for name, row in table.items()}
    assert values == pytest.approx(
        {"mlm_loss": np.log(800) / 4, "mlm_accuracy": 0.25, "mlm_top5_accuracy": 0.5, "mlm_top10_accuracy": 0.75}
    )
    assert all(row["low"] == pytest.approx(row["value"]) == row["high"] for row in table.values())


def test_equals_explicit_resampling_of_patients():
    ranks, log_probabilities, patients = _masked()
    table = evaluate_masked_codes(ranks, log_probabilities, patients, num_resamples=60, seed=4)
    distinct = np.unique(patients)
    drawn = np.concatenate(list(resample_weights(distinct, num_resamples=60, seed=4)), axis=1).T.astype(int)
    resampled = {name: [] for name in table}
    for counts in np.vstack([np.ones((1, len(distinct)), int), drawn]):
        codes = np.concatenate([np.flatnonzero(patients == p) for p in np.repeat(distinct, counts)])
        resampled["mlm_loss"].append(-log_probabilities[codes].mean())
        for name, k in (("mlm_accuracy", 1), ("mlm_top5_accuracy", 5), ("mlm_top10_accuracy", 10)):
            resampled[name].append((ranks[codes] < k).mean())
    for name, (value, *others) in resampled.items():
        expected = [value, *np.quantile(others, [0.025, 0.975])]
        np.testing.assert_allclose([table[name][key] for key in ("value", "low", "high")], expected)


def test_the_difference_of_two_systems_is_paired():
    ranks, log_probabilities, patients = _masked()
    ours, num_patients = masked_code_metrics(ranks, log_probabilities, patients)
    theirs, _ = masked_code_metrics(ranks, log_probabilities - 0.3, patients)
    name = "mlm_loss"
    table = evaluate_ratios({name: difference(ours[name], theirs[name])}, num_patients, num_resamples=30)
    assert [table[name][key] for key in ("value", "low", "high")] == pytest.approx([-0.3] * 3)


def test_ranks_put_the_lower_column_first_among_equals():
    scores = np.array([[0.1, 0.5, 0.5, 0.5, 0.9], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert [target_ranks(scores, np.full(2, k)).tolist() for k in range(5)] == [[4, 0], [1, 1], [2, 2], [3, 3], [0, 4]]
    order = np.argsort(-scores, axis=1, kind="stable")
    for k in range(5):
        np.testing.assert_array_equal(target_ranks(scores, np.full(2, k)), np.argwhere(order == k)[:, 1])


@pytest.mark.parametrize(
    ("log_probabilities", "patients", "message"),
    [([-1.0], [1, 2], r"lengths \[2, 1, 2\]"), ([-1.0, np.nan], [1, 2], "masked code 1 is NaN")],
)
def test_what_cannot_be_is_refused(log_probabilities, patients, message):
    with pytest.raises(ValueError, match=message):
        evaluate_masked_codes([0, 1], log_probabilities, patients)
