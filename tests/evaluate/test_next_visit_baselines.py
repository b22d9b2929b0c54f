"""Rows of next-visit prediction and counting baselines: records without rows, and equality with plain loops."""

import numpy as np
import pytest

from ehrjax.evaluate import next_visit_baselines
from ehrjax.evaluate.next_visit_baselines import BASELINES, chunks_from_scores, code_frequency, next_visit_targets
from ehrjax.metrics.next_visit import NextVisitChunk, best_f1_threshold, evaluate_next_visit
from ehrjax.types import VisitSequences

NUM_CODES = 12


def make_records(*records):
    """Records as lists of visits, each a list of codes."""
    visits = [visit for record in records for visit in record]
    num_visits = len(visits)
    return VisitSequences(
        codes=np.array([code for visit in visits for code in visit], np.int32),
        visit_offsets=np.r_[0, np.cumsum([len(visit) for visit in visits], dtype=int)],
        example_offsets=np.r_[0, np.cumsum([len(record) for record in records], dtype=int)],
        ages=np.zeros(num_visits, np.float32),
        gap_days=np.zeros(num_visits, np.float32),
        subject_ids=np.arange(len(records)) + 50,
        times=np.zeros(len(records), np.int64),
        labels=np.zeros((len(records), 0), np.float32),
        label_mask=np.zeros((len(records), 0), bool),
    )


def _random_records(num_records=8, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 7, num_records)
    return [[rng.choice([1, *range(5, NUM_CODES)], rng.integers(0, 5)).tolist() for _ in range(n)] for n in sizes]


def _rows_by_loops(records):
    """(visit number, record number, targets, codes of each earlier visit) of every row."""
    first = 0
    for number, record in enumerate(records):
        sets = [{code for code in visit if code >= 5} for visit in record]
        yield from ((first + v, number, sets[v], sets[:v]) for v in range(1, len(sets)) if sets[v])
        first += len(sets)


def _joined(chunks):
    return NextVisitChunk(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


@pytest.mark.parametrize("records", [[], [[[5, 6]]], [[[5], []], [[7], [1]]], [[[], [], []]]])
def test_records_without_a_visit_to_predict_have_no_rows(records):
    targets = next_visit_targets(make_records(*records), NUM_CODES)
    assert len(targets.visits) == 0
    frequency = code_frequency(make_records(*records), NUM_CODES)
    for baseline in BASELINES.values():
        assert list(baseline(targets, frequency)) == []
    assert list(chunks_from_scores(targets, [])) == []
    table = evaluate_next_visit(BASELINES["repeat_last"](targets, frequency), threshold=0.5, num_resamples=2)
    assert table["next_visit_f1"]["value"] is None


def test_rows_targets_and_history_by_hand():
    records = make_records([[5, 5, 1], [], [6, 5, 6]], [[7]], [[], [8]])
    targets = next_visit_targets(records, NUM_CODES)
    assert targets.visits.tolist() == [2, 5] and targets.patients.tolist() == [0, 2]
    chunk = _joined(BASELINES["global_frequency"](targets, np.zeros(NUM_CODES)))
    assert [np.flatnonzero(row).tolist() for row in chunk.targets] == [[5, 6], [8]]
    assert [np.flatnonzero(row).tolist() for row in chunk.history] == [[5], []]
    assert targets.num_before(targets.visits).tolist() == [2, 1]
    np.testing.assert_allclose(code_frequency(records, NUM_CODES)[[1, 5, 6, 7, 8]], np.array([0, 2, 1, 1, 1]) / 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_baselines_equal_plain_loops_whatever_the_chunks(seed, monkeypatch):
    monkeypatch.setattr(next_visit_baselines, "CHUNK_VALUES", 5 * NUM_CODES)
    raw = _random_records(seed=seed)
    records = make_records(*raw)
    targets = next_visit_targets(records, NUM_CODES)
    frequency = code_frequency(make_records(*_random_records(seed=9)), NUM_CODES)
    chunks = {name: _joined(baseline(targets, frequency)) for name, baseline in BASELINES.items()}
    rows = list(_rows_by_loops(raw))
    assert len(rows) == len(targets.visits) > 8
    for k, (visit, record, codes, earlier) in enumerate(rows):
        history = set().union(*earlier)
        assert (targets.visits[k], targets.patients[k]) == (visit, record)
        for name, chunk in chunks.items():
            assert set(np.flatnonzero(chunk.targets[k])) == codes
            assert set(np.flatnonzero(chunk.history[k])) == history
            for c in range(5, NUM_CODES):
                share = np.mean([c in codes for codes in earlier])
                expected = {
                    "global_frequency": frequency[c],
                    "repeat_last": (c in earlier[-1]) + 0.5 * frequency[c],
                    "patient_history": share + 1e-4 * frequency[c],
                }[name]
                assert chunk.scores[k, c] == pytest.approx(expected, abs=1e-6)


def test_repeating_the_last_visit_is_perfect_where_visits_repeat():
    records = make_records(*([[5, 6]] * 4, [[7]] * 3))
    targets = next_visit_targets(records, NUM_CODES)
    frequency = code_frequency(records, NUM_CODES)
    for name, best in (("repeat_last", 1.0), ("patient_history", 1.0), ("global_frequency", 16 / 23)):
        threshold = best_f1_threshold(BASELINES[name](targets, frequency))
        # Frequency alone does best to predict all three codes each time.
        table = evaluate_next_visit(BASELINES[name](targets, frequency), threshold=threshold, num_resamples=0)
        assert table["next_visit_f1"]["value"] == pytest.approx(best), name


def test_scores_of_a_model_find_their_visits():
    records = make_records(*_random_records())
    targets = next_visit_targets(records, NUM_CODES)
    num_visits = len(records.visit_offsets) - 1
    rng = np.random.default_rng(0)
    scores = rng.random((num_visits, NUM_CODES)).astype(np.float32)
    order = rng.permutation(num_visits)  # rows or not: a model may score every visit
    given = [(order[i : i + 4], scores[order[i : i + 4]]) for i in range(0, num_visits, 4)]
    chunk = _joined(chunks_from_scores(targets, given))
    place = [np.flatnonzero((scores == row).all(axis=1))[0] for row in chunk.scores]
    assert sorted(place) == targets.visits.tolist()
    in_order = _joined(BASELINES["repeat_last"](targets, np.zeros(NUM_CODES)))
    back = np.argsort(place)
    for name in ("targets", "history", "patients"):
        np.testing.assert_array_equal(getattr(chunk, name)[back], getattr(in_order, name))


def test_scores_that_lack_or_repeat_a_visit_are_refused():
    targets = next_visit_targets(make_records([[5], [6], [7]]), NUM_CODES)
    scores = np.zeros((2, NUM_CODES), np.float32)
    with pytest.raises(ValueError, match=r"visit 2 has no scores \(1 such\)"):
        list(chunks_from_scores(targets, [(np.array([0, 1]), scores)]))
    with pytest.raises(ValueError, match="visit 1 is predicted twice"):
        list(chunks_from_scores(targets, [(np.array([1, 2]), scores), (np.array([0, 1]), scores)]))
    with pytest.raises(ValueError, match="visit 2 is predicted twice"):
        list(chunks_from_scores(targets, [(np.array([2, 2]), scores)]))
    with pytest.raises(ValueError, match=r"shape \(2, 12\): 1 visits x 12 codes"):
        list(chunks_from_scores(targets, [(np.array([1]), scores)]))
    with pytest.raises(ValueError, match="code 7 is not below vocab_size=7"):
        next_visit_targets(make_records([[5], [7]]), 7)
