"""Packing: every example whole, once, in a row with room, and what it holds unchanged."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrjax.data import packing
from ehrjax.data.batching import VisitBatches
from ehrjax.data.packing import first_fit, pack_visits
from tests.sequences import make_sequences


def test_nothing_to_pack_gives_no_rows():
    assert first_fit((np.zeros(0, int),), (5,)).tolist() == []


def test_largest_first_into_the_earliest_row_with_room():
    assert first_fit((np.array([3, 5, 2, 1, 2]),), (5,)).tolist() == [1, 0, 1, 2, 2]


def test_all_sizes_must_fit_and_what_is_too_large_stands_alone():
    visits, codes = np.array([4, 1, 1, 2]), np.array([9, 1, 3, 1])
    assert first_fit((visits, codes), (5, 4)).tolist() == [0, 2, 1, 1]


def test_chunks_are_packed_among_themselves_and_stay_nearly_full(monkeypatch):
    lengths = np.clip(np.random.default_rng(0).lognormal(2.65, 0.9, 3000).astype(int), 1, 50)
    monkeypatch.setattr(packing, "CHUNK_ITEMS", 1000)
    rows = first_fit((lengths, 6 * lengths), (50, 375))
    assert np.bincount(rows, lengths).max() <= 50
    assert all(set(rows[:1000]).isdisjoint(part) for part in (rows[1000:2000], rows[2000:]))
    assert lengths.sum() / (50 * (rows.max() + 1)) > 0.97


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.sampled_from(["patient", "visit"]))
def test_each_example_is_in_one_row_as_it_was(lengths, level):
    sequences = make_sequences(lengths, level=level, num_labels=2)
    packed, members, offsets = pack_visits(sequences, level=level)
    assert sorted(members.tolist()) == list(range(len(lengths)))
    assert np.diff(packed.example_offsets).max() <= max(lengths)
    for row in range(len(offsets) - 1):
        at = packed.example_offsets[row]
        for segment, example in enumerate(members[offsets[row] : offsets[row + 1]], start=1):
            here = slice(at, at + lengths[example])
            own = slice(sequences.example_offsets[example], sequences.example_offsets[example + 1])
            np.testing.assert_array_equal(packed.segment_ids[here], segment)
            for name in ("ages", "gap_days"):
                np.testing.assert_array_equal(getattr(packed, name)[here], getattr(sequences, name)[own])
            for v, w in zip(range(own.start, own.stop), range(here.start, here.stop), strict=True):
                codes = sequences.codes[sequences.visit_offsets[v] : sequences.visit_offsets[v + 1]]
                shown = packed.codes[packed.visit_offsets[w] : packed.visit_offsets[w + 1]]
                np.testing.assert_array_equal(shown, codes)
            if level == "visit":
                np.testing.assert_array_equal(packed.labels[here], sequences.labels[own])
                assert packed.label_mask[here].all()
            else:
                np.testing.assert_array_equal(packed.labels[here][-1], sequences.labels[example])
                assert packed.label_mask[here][:, 0].tolist() == [False] * (lengths[example] - 1) + [True]
            at = here.stop


def test_rows_of_a_skewed_data_set_are_nearly_full():
    lengths = np.clip(np.random.default_rng(0).lognormal(2, 1, 500).astype(int), 1, 50)
    packed = pack_visits(make_sequences(lengths))
    batches = VisitBatches(packed.sequences, batch_size=8, num_buckets=1, level="visit")
    assert batches.padding_fraction < 0.1
    assert VisitBatches(make_sequences(lengths), batch_size=8, num_buckets=1).padding_fraction > 0.5


def test_batches_of_rows_name_their_segments_and_examples():
    packed = pack_visits(make_sequences([3, 1, 2]))
    batch = VisitBatches(packed.sequences, batch_size=4, num_buckets=1, level="visit").batch_at(0)
    order = np.argsort(batch.example_ids)
    assert batch.segment_ids[order].tolist() == [[1, 1, 1], [1, 1, 2]]
    assert packed.examples_of(batch.example_ids[order]).tolist() == [0, 2, 1]
    assert packed.examples_of(np.array([-1, 1])).tolist() == [2, 1]


def test_padding_visits_have_no_segment():
    packed = pack_visits(make_sequences([3, 2]))
    batch = VisitBatches(packed.sequences, batch_size=2, num_buckets=1, level="visit").batch_at(0)
    np.testing.assert_array_equal(batch.segment_ids > 0, batch.visit_mask)


def test_unpacked_batches_have_no_segments():
    assert VisitBatches(make_sequences([3, 2]), batch_size=2).batch_at(0).segment_ids is None


def test_level_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="level='day'"):
        pack_visits(make_sequences([1]), level="day")
