"""Batches: nothing lost, nothing twice, a pure function of the step, few shapes."""

import jax
import numpy as np
import pytest

from ehrjax.data.batching import VisitBatches
from tests.sequences import make_sequences

LENGTHS = np.random.default_rng(1).integers(1, 30, 53)


def decode(batch):
    """example id -> list of visits, each a list of codes, read back from the padded arrays."""
    decoded = {}
    for row in np.flatnonzero(batch.example_mask):
        num_visits = batch.visit_mask[row].sum()
        visits = [batch.codes[row][batch.code_visits[row] == visit].tolist() for visit in range(num_visits)]
        decoded[int(batch.example_ids[row])] = visits
    return decoded


def reference(sequences):
    """The same, read from the CSR arrays one visit at a time."""
    decoded = {}
    for example in range(len(sequences.subject_ids)):
        visits = range(sequences.example_offsets[example], sequences.example_offsets[example + 1])
        offsets = sequences.visit_offsets
        decoded[example] = [sequences.codes[offsets[v] : offsets[v + 1]].tolist() for v in visits]
    return decoded


def test_patient_without_visits_is_refused_by_name():
    with pytest.raises(ValueError, match="subject 101 has no visits"):
        VisitBatches(make_sequences([2, 0, 1]), batch_size=2)


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        VisitBatches(make_sequences(np.zeros(0, int)), batch_size=2)


def test_visit_of_fifty_thousand_codes_is_refused_by_name():
    sequences = make_sequences([1, 1])
    huge = sequences._replace(codes=np.full(50_001, 5, np.int32), visit_offsets=np.array([0, 1, 50_001]))
    with pytest.raises(ValueError, match=r"subject 101 has a visit of 50000 codes, over max_codes=1024"):
        VisitBatches(huge, batch_size=2)


def test_labels_of_the_wrong_level_are_refused():
    with pytest.raises(ValueError, match="needs 5 rows of labels, one a visit; there are 2"):
        VisitBatches(make_sequences([2, 3]), batch_size=2, level="visit")


def test_single_patient_whose_visits_hold_no_codes():
    batches = VisitBatches(make_sequences([3], max_codes=0), batch_size=8)
    batch = batches.batch_at(0)
    assert batches.shapes == [(3, 1)]
    assert batch.visit_mask.all() and (batch.code_visits == -1).all() and batch.example_mask.tolist() == [True]


def test_every_example_once_an_epoch_with_its_own_codes():
    sequences = make_sequences(LENGTHS)
    batches = VisitBatches(sequences, batch_size=8, seed=3)
    expected = reference(sequences)
    for epoch in (0, 5):
        seen = {}
        for step in range(batches.num_batches_per_epoch):
            decoded = decode(batches.batch_at(epoch * batches.num_batches_per_epoch + step))
            assert not seen.keys() & decoded.keys()
            seen.update(decoded)
        assert seen == expected


def test_batch_is_a_pure_function_of_seed_and_step():
    sequences = make_sequences(LENGTHS)
    one, other = (VisitBatches(sequences, batch_size=8, seed=3) for _ in range(2))
    steps = [30, 2, 9, 2, 16]
    forward = {step: one.batch_at(step) for step in sorted(steps)}
    for step in steps:  # another order, with epochs visited back and forth
        jax.tree.map(np.testing.assert_array_equal, other.batch_at(step), forward[step])
    assert other.batch_at(2).example_ids.tolist() != other.batch_at(9).example_ids.tolist()
    different = VisitBatches(sequences, batch_size=8, seed=4)
    assert any(different.batch_at(s).example_ids.tolist() != one.batch_at(s).example_ids.tolist() for s in range(7))


def test_batches_hold_patients_of_similar_length():
    batches = VisitBatches(make_sequences(LENGTHS), batch_size=8)
    plain = 1 - LENGTHS.sum() / (len(LENGTHS) * LENGTHS.max())
    assert 0 < batches.padding_fraction < 0.6 * plain
    shapes = {(b.visit_mask.shape[1], b.codes.shape[1]) for b in map(batches.batch_at, range(70))}
    assert shapes <= set(batches.shapes) and len(batches.shapes) <= 7


def test_few_patients_with_very_many_codes_do_not_widen_the_other_batches():
    sequences = make_sequences([3] * 100, max_codes=4)
    sizes = np.diff(sequences.visit_offsets)
    sizes[30] = 500
    codes = np.full(sizes.sum(), 6, np.int32)
    heavy = sequences._replace(codes=codes, visit_offsets=np.concatenate([[0], np.cumsum(sizes)]))
    batches = VisitBatches(heavy, batch_size=10)
    widths = sorted(batches.batch_at(step).codes.shape[1] for step in range(10))
    assert widths[:9] == [batches.shapes[0][1]] * 9 and widths[0] <= 12 and widths[9] >= 500


def test_eval_batches_cover_each_example_once_by_length():
    sequences = make_sequences(LENGTHS)
    batches = list(VisitBatches(sequences, batch_size=8).eval_batches())
    ids = np.concatenate([batch.example_ids[batch.example_mask] for batch in batches])
    labels = np.concatenate([batch.labels[batch.example_mask] for batch in batches])
    np.testing.assert_array_equal(np.sort(ids), np.arange(len(LENGTHS)))
    np.testing.assert_array_equal(labels, sequences.labels[ids])
    slots = [batch.visit_mask.size for batch in batches]
    assert sum(slots) < max(slots) * len(slots)
    padding = batches[-1]
    assert (~padding.example_mask).sum() == 8 - len(LENGTHS) % 8
    assert not padding.label_mask[~padding.example_mask].any() and not padding.visit_mask[~padding.example_mask].any()


def test_visit_labels_ages_and_gaps_lie_on_their_visits():
    sequences = make_sequences(LENGTHS, level="visit", num_labels=2)
    batch = VisitBatches(sequences, batch_size=8, level="visit").batch_at(0)
    assert (batch.label_mask == batch.visit_mask[..., None]).all()
    for row, example in enumerate(batch.example_ids):
        visits = slice(sequences.example_offsets[example], sequences.example_offsets[example + 1])
        count = LENGTHS[example]
        np.testing.assert_array_equal(batch.labels[row, :count], sequences.labels[visits])
        np.testing.assert_array_equal(batch.ages[row, :count], sequences.ages[visits])
        np.testing.assert_array_equal(batch.gap_days[row, :count], sequences.gap_days[visits])
