"""Baselines of masked codes: nothing hidden, frequencies by hand, and the logistic one against scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ehrjax.evaluate import masked_baselines
from ehrjax.evaluate.masked_baselines import fit_logistic, fit_masked_baselines, fit_same_type, fit_unigram
from tests.evaluate.test_next_visit_baselines import make_records

NUM_CODES = 14
TYPES = ["other"] * 5 + ["diagnosis"] * 4 + ["lab"] * 5


def _paired_records(num_records, seed=0):
    """Visits of one of three kinds, each with codes of its own beside common ones."""
    rng = np.random.default_rng(seed)

    def visit():
        kind = rng.integers(3)
        return [*rng.choice([5 + kind, 8 + kind], rng.integers(1, 4)), *rng.choice([11, 12, 13], rng.integers(0, 3))]

    return make_records(*[[visit() for _ in range(rng.integers(1, 6))] for _ in range(num_records)])


def _mask(records, rate=0.3, seed=0):
    return np.random.default_rng(seed).random(len(records.codes)) < rate


@pytest.mark.parametrize("records", [[], [[[]]], [[[1, 1]], [[], [1]]]])
def test_nothing_to_learn_from_and_nothing_hidden(records):
    empty, some = make_records(*records), make_records([[5, 6], [7]])
    baselines = fit_masked_baselines(empty, empty, TYPES)
    for name, baseline in baselines.items():
        assert [len(part) for part in baseline(empty, np.zeros(len(empty.codes), bool))] == [0, 0], name
        scores = baseline(some, np.array([False, True, True]))
        num_candidates = 4 if name == "same_type" else 9
        assert scores.ranks.tolist() == [1, 2], name  # codes that train lacks are equal: the lower one first
        np.testing.assert_allclose(scores.log_probabilities, -np.log(num_candidates), rtol=1e-6)


def test_frequencies_by_hand():
    train = make_records([[9, 9, 5], [9, 6, 6], [1, 13]])
    records = make_records([[5, 9], [], [6, 13, 1]])
    mask = np.array([True, True, False, True, False])  # hides 5, 9 and 13
    unigram = fit_unigram(train, NUM_CODES)(records, mask)
    assert unigram.ranks.tolist() == [2, 0, 3]
    np.testing.assert_allclose(np.exp(unigram.log_probabilities), np.array([2, 4, 2]) / (7 + 9), rtol=1e-6)
    same_type = fit_same_type(train, TYPES)(records, mask)
    assert same_type.ranks.tolist() == [1, 0, 1]
    np.testing.assert_allclose(np.exp(same_type.log_probabilities), [2 / 7, 4 / 9, 2 / 9], rtol=1e-6)


def test_logistic_finds_what_the_other_codes_tell():
    train, val, test = (_paired_records(n, seed) for seed, n in enumerate((150, 40, 60)))
    mask = _mask(test)
    logistic = fit_logistic(train, val, NUM_CODES, mask_rate=0.3, max_steps=240)(test, mask)
    unigram = fit_unigram(train, NUM_CODES)(test, mask)
    assert -logistic.log_probabilities.mean() < -unigram.log_probabilities.mean() - 0.3
    assert (logistic.ranks < 2).mean() > (unigram.ranks < 2).mean() + 0.1


def test_logistic_is_as_good_as_scikit_learns():
    train, val, test = (_paired_records(n, seed) for seed, n in enumerate((300, 60, 100)))
    mask = _mask(test)
    ours = fit_logistic(train, val, NUM_CODES, mask_rate=0.3, penalties=(1.0,), max_steps=300)(test, mask)

    def rows(records, mask):
        """Counts of the visit's shown codes beside each hidden code."""
        visits = np.repeat(np.arange(len(records.visit_offsets) - 1), np.diff(records.visit_offsets))
        shown = np.zeros((len(records.visit_offsets) - 1, NUM_CODES))
        np.add.at(shown, (visits[~mask], records.codes[~mask]), 1)
        return shown[visits[mask]], records.codes[mask]

    drawn = [rows(train, _mask(train, seed=seed)) for seed in range(10)]
    fitted = LogisticRegression(C=0.3, max_iter=500).fit(*(np.concatenate(parts) for parts in zip(*drawn, strict=True)))
    inputs, targets = rows(test, mask)
    theirs = fitted.predict_log_proba(inputs)[np.arange(len(targets)), np.searchsorted(fitted.classes_, targets)]
    assert ours.log_probabilities.mean() == pytest.approx(theirs.mean(), abs=0.01)
    assert np.corrcoef(ours.log_probabilities, theirs)[0, 1] > 0.97


def test_scores_do_not_depend_on_the_chunks_nor_on_other_records(monkeypatch):
    train, val, test = (_paired_records(n, seed) for seed, n in enumerate((30, 10, 20)))
    logistic, mask = fit_logistic(train, val, NUM_CODES, max_steps=20), _mask(test)
    whole = logistic(test, mask)
    monkeypatch.setattr(masked_baselines, "CHUNK_VALUES", 4 * NUM_CODES)
    for part, of_chunks in zip(whole, logistic(test, mask), strict=True):
        np.testing.assert_allclose(part, of_chunks, rtol=1e-5)
    first = int(test.example_offsets[1])
    num_codes = int(test.visit_offsets[first])
    alone = test._replace(
        codes=test.codes[:num_codes],
        visit_offsets=test.visit_offsets[: first + 1],
        example_offsets=np.array([0, first]),
    )
    some = logistic(alone, mask[:num_codes])
    np.testing.assert_allclose(some.log_probabilities, whole.log_probabilities[: len(some.ranks)], rtol=1e-5)


def test_a_hidden_code_is_not_seen():
    train, val = _paired_records(60, 0), _paired_records(20, 1)
    logistic = fit_logistic(train, val, NUM_CODES, max_steps=40)
    mask = np.array([True, True, False])
    scores = [logistic(make_records([[5, other, 11]]), mask).log_probabilities[0] for other in (6, 8)]
    assert scores[0] == scores[1]
    shown = [logistic(make_records([[5, other, 11]]), ~mask[::-1]).log_probabilities[0] for other in (6, 8)]
    assert shown[0] != shown[1]


def test_the_same_seed_gives_the_same_fit():
    train, val, test = (_paired_records(n, seed) for seed, n in enumerate((20, 10, 10)))
    fits = [fit_logistic(train, val, NUM_CODES, max_steps=12, seed=seed)(test, _mask(test)) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(fits[0].log_probabilities, fits[1].log_probabilities)
    assert (fits[0].log_probabilities != fits[2].log_probabilities).any()


def test_what_cannot_be_hidden_is_refused():
    records = make_records([[5, 1]])
    baselines = (fit_unigram(records, NUM_CODES), fit_logistic(records, records, NUM_CODES, max_steps=4))
    for baseline in baselines:
        with pytest.raises(ValueError, match="token 1 is hidden: hide codes from 5 to 13 only"):
            baseline(records, np.array([False, True]))
        with pytest.raises(ValueError, match=r"mask has shape \(3,\) but codes \(2,\)"):
            baseline(records, np.zeros(3, bool))


def test_associations_count_pairs_of_different_codes_of_a_visit():
    train = make_records([[9, 9, 5], [9, 6], [1, 6], []])
    column = np.full(NUM_CODES, -1)
    column[[9, 1, 6]] = [0, 1, 2]  # codes that are shown; 5 is left out
    found = masked_baselines._associations(train, column, 0)
    visits = [[9, 9, 5], [9, 6], [1, 6]]
    pairs = np.zeros((3, NUM_CODES))
    for visit in visits:
        for i, shown in enumerate(visit):
            for other in visit[:i] + visit[i + 1 :]:
                if column[shown] >= 0 and other >= 5:
                    pairs[column[shown], other] += 1
    expected = pairs.sum(axis=1)[:, None] * pairs.sum(axis=0)[None] / pairs.sum()
    np.testing.assert_allclose(found, np.log((pairs + 1) / (expected + 1))[:, 5:], rtol=1e-5, atol=1e-6)
