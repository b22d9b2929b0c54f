"""Visit sequences: what is visible at the index time, in which order, and nothing of what comes after."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrjax.data import sequences as sequences_lib
from ehrjax.data.cohorts import make_labels
from ehrjax.data.events import type_ranks
from ehrjax.data.labels import Labels
from ehrjax.data.sequences import (
    build_patient_sequences,
    build_visit_level_sequences,
    build_visit_sequences,
    drop_without_visits,
)
from ehrjax.data.tasks import TASKS
from ehrjax.data.vocab import SPECIAL_TOKENS, Vocabulary, fit_vocabulary
from ehrjax.evaluate.bags import bag_of_codes
from tests.data.helpers import make_store, seconds
from tests.data.histories import DAY, day, histories, patients_of, visit


def vocabulary_of(store):
    return Vocabulary((*SPECIAL_TOKENS, *(str(code) for code in store.codes)))


def labels_at(*rows):
    """One binary label at each (subject, ISO time)."""
    ids, times = np.array([r[0] for r in rows], np.int64), np.array([seconds(r[1]) for r in rows])
    values = (np.arange(len(rows))[:, None] % 2).astype(np.float32)
    return Labels("t", "binary", ("t",), ids, times, values, np.ones(values.shape, bool), times, {"kept": len(rows)})


def words(sequences, vocab):
    """Each example as a list of visits, each a list of token names."""
    codes = [vocab.tokens[c] for c in sequences.codes]
    visits = [codes[a:b] for a, b in zip(sequences.visit_offsets[:-1], sequences.visit_offsets[1:], strict=True)]
    return [visits[a:b] for a, b in zip(sequences.example_offsets[:-1], sequences.example_offsets[1:], strict=True)]


def visits_at(store, *rows, **options):
    vocab = vocabulary_of(store)
    return words(build_visit_sequences(store, vocab, labels_at(*rows), **options), vocab)


# Edge cases


def test_row_before_the_first_visit_is_refused_by_name_and_can_be_dropped(tmp_path):
    store = make_store(tmp_path, visit(7, 1, 5, 5, ("A", 5)) + visit(8, 1, 1, 1, ("A", 1)))
    labels = labels_at((8, day(2)), (7, day(4)), (99, day(9)), (7, day(5)))
    with pytest.raises(ValueError, match=r"subject 7 has no visit by its index time 2020-01-05T00:00:00 \(2 of 4"):
        build_visit_sequences(store, vocabulary_of(store), labels)
    kept = drop_without_visits(store, labels)
    assert kept.subject_ids.tolist() == [8, 7]
    assert kept.values[:, 0].tolist() == [0, 1]
    assert kept.flow == {"kept": 2, "no_record": 2}
    assert len(build_visit_sequences(store, vocabulary_of(store), kept).subject_ids) == 2


def test_patient_with_static_codes_only_is_refused(tmp_path):
    store = make_store(tmp_path, [(1, None, "GENDER//F", None, None), *visit(2, 1, 0, 0)])
    with pytest.raises(ValueError, match="subject 1 has no visit"):
        build_visit_sequences(store, vocabulary_of(store), labels_at((1, day(9))))


@pytest.mark.parametrize("option", ["max_visits", "max_codes"])
def test_room_for_nothing_is_refused(tmp_path, option):
    store = make_store(tmp_path, visit(1, 1, 0, 0))
    with pytest.raises(ValueError, match=f"{option}=0"):
        build_visit_sequences(store, vocabulary_of(store), labels_at((1, day(9))), **{option: 0})


def test_visit_begun_but_without_any_event_yet_is_not_there(tmp_path):
    """Starts are rounded down to the second, events up: for a moment the visit has begun and nothing is known of it."""
    events = [*visit(1, 1, 0, 0, ("A", 0)), (1, day(3) + ".500000", "ENCOUNTER//x", None, 2), (1, day(5), "B", None, 2)]
    store = make_store(tmp_path, events)
    first = ["A", "ENCOUNTER//ambulatory"]
    assert visits_at(store, (1, day(3))) == [[first]]
    assert visits_at(store, (1, day(3 + 1 / DAY))) == [[first, ["ENCOUNTER//x"]]]


def test_visit_of_fifty_thousand_codes_keeps_the_first_in_order(tmp_path):
    start = np.datetime64(day(0))
    events = [(1, str(start + np.timedelta64(i, "s")), "LAB//L//1", None, 1) for i in range(50_000)]
    events += [(1, day(0.5), "DIAGNOSIS//D//1", None, 1), (1, day(0), "MEDICATION//M//1", None, 1)]
    store = make_store(tmp_path, events)
    assert visits_at(store, (1, day(2)), max_codes=4) == [[["DIAGNOSIS//D//1", *["LAB//L//1"] * 3]]]
    whole = build_visit_sequences(store, vocabulary_of(store), labels_at((1, day(2))), max_codes=100_000)
    assert len(whole.codes) == 50_002


def test_label_of_no_row_gives_no_example(tmp_path):
    store = make_store(tmp_path, visit(1, 1, 0, 0))
    sequences = build_visit_sequences(store, vocabulary_of(store), labels_at((1, day(1))).take(np.zeros(0, int)))
    assert len(sequences.subject_ids) == len(sequences.codes) == 0
    assert bag_of_codes(sequences, 9).counts.shape == (0, 9)


# What is visible


def test_event_at_t_is_used_and_a_moment_later_is_not(tmp_path):
    events = [(1, day(0), "A", None, 1), (1, day(1), "AT", None, 1)]
    events += [(1, day(1) + ".000001", "MICROSECOND", None, 1), (1, day(1 + 1 / DAY), "SECOND", None, 1)]
    store = make_store(tmp_path, events)
    assert visits_at(store, (1, day(1))) == [[["A", "AT"]]]
    assert visits_at(store, (1, day(1 + 1 / DAY))) == [[["A", "AT", "MICROSECOND", "SECOND"]]]


def test_visit_begun_by_t_shows_only_what_is_recorded_by_t(tmp_path):
    events = visit(1, 1, 0, 9, ("EARLY", 1), ("LATE", 5), kind="inpatient") + visit(1, 2, 2, 2, ("B", 2))
    store = make_store(tmp_path, events)
    seen = visits_at(store, (1, day(2)))
    assert seen == [[["ENCOUNTER//inpatient", "EARLY"], ["B", "ENCOUNTER//ambulatory"]]]


def test_event_recorded_before_its_visit_waits_for_the_visit(tmp_path):
    store = make_store(tmp_path, visit(1, 1, 0, 0) + visit(1, 2, 10, 11, ("OLD", 2)))
    assert visits_at(store, (1, day(5))) == [[["ENCOUNTER//ambulatory"]]]
    assert visits_at(store, (1, day(10)))[0][1] == ["OLD", "ENCOUNTER//ambulatory"]


def test_codes_come_by_type_and_static_codes_join_the_first_kept_visit(tmp_path):
    names = ["Z//other", "MEDICATION//M", "PROCEDURE//P", "VITAL//V", "LAB//L", "DIAGNOSIS//D"]
    events = [(1, day(0), name, None, 1) for name in names] + visit(1, 2, 5, 5)
    events += [(1, None, "GENDER//F", None, None), (1, None, "RACE//x", None, None)]
    store = make_store(tmp_path, events)
    ordered = ["DIAGNOSIS//D", "LAB//L", "VITAL//V", "PROCEDURE//P", "MEDICATION//M"]
    static = ["GENDER//F", "RACE//x"]
    last = "ENCOUNTER//ambulatory"
    assert visits_at(store, (1, day(9))) == [[[*ordered, *static, "Z//other"], [last]]]
    assert visits_at(store, (1, day(9)), max_visits=1) == [[[*static, last]]]


def test_repeated_codes_stay(tmp_path):
    store = make_store(tmp_path, [(1, day(0), "A", None, 1), (1, day(0.5), "A", None, 1)])
    assert visits_at(store, (1, day(9))) == [[["A", "A"]]]


def test_oldest_visits_go_first_and_gaps_start_anew(tmp_path):
    events = [e for n in range(6) for e in visit(1, n, n * n, n * n, (f"A{n}", n * n))]
    events.append((1, str(np.datetime64(day(0)) - np.timedelta64(365 * 40 + 10, "D")), "MEDS_BIRTH", None, None))
    store = make_store(tmp_path, events)
    sequences = build_visit_sequences(store, vocabulary_of(store), labels_at((1, day(20))), max_visits=3)
    assert [v[0] for v in words(sequences, vocabulary_of(store))[0]] == ["A2", "A3", "A4"]
    assert sequences.gap_days.tolist() == [0, 5, 7]
    np.testing.assert_allclose(sequences.ages, 40 + np.array([4, 9, 16]) / 365.25, atol=1e-5)
    assert sequences.ages.dtype == sequences.gap_days.dtype == np.float32


def test_unknown_birth_gives_age_zero(tmp_path):
    store = make_store(tmp_path, visit(1, 1, 0, 0))
    assert build_visit_sequences(store, vocabulary_of(store), labels_at((1, day(1)))).ages.tolist() == [0]


def test_values_become_bins(tmp_path):
    events = [(1, day(i), "LAB//L", float(i), None) for i in range(8)]
    store = make_store(tmp_path, events)
    vocab = fit_vocabulary(store, np.array([1]), min_count=1, value_bins=2)
    sequences = build_visit_sequences(store, vocab, labels_at((1, day(4))))
    assert words(sequences, vocab) == [[["LAB//L//Q1"]] * 4 + [["LAB//L//Q2"]]]


@pytest.mark.parametrize("chunk", [1, 4_000_000])
def test_examples_keep_the_order_of_the_labels(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(sequences_lib, "_CHUNK_EVENTS", chunk)
    events = [e for s in range(9) for n in range(3) for e in visit(s, n, n, n, (f"A{s}-{n}", n))]
    store = make_store(tmp_path, events, num_shards=3)
    rows = [(5, day(1)), (2, day(0)), (5, day(2)), (8, day(1)), (0, day(0))]
    seen = [[v[0] for v in example] for example in visits_at(store, *rows)]
    assert seen == [["A5-0", "A5-1"], ["A2-0"], ["A5-0", "A5-1", "A5-2"], ["A8-0", "A8-1"], ["A0-0"]]
    sequences = build_visit_sequences(store, vocabulary_of(store), labels_at(*rows))
    assert sequences.subject_ids.tolist() == [5, 2, 5, 8, 0]
    assert sequences.labels[:, 0].tolist() == [0, 1, 0, 1, 0]


# No look ahead


def same(a, b, fields):
    for field in fields:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))


@pytest.mark.parametrize("future", ["removed", "changed"])
def test_the_future_of_the_index_time_changes_nothing(tmp_path, future):
    past = [*visit(1, 1, 0, 1, ("A", 0)), (1, None, "GENDER//F", None, None)]
    past += [(1, day(2), "ENCOUNTER//inpatient", None, 2), (1, day(3), "B", 1.0, 2)]
    one = [*past, (1, day(4), "B", 9.0, 2), *visit(1, 3, 5, 6, ("A", 5)), (1, day(7), "MEDS_DEATH", None, None)]
    two = past if future == "removed" else [*past, (1, day(3.5), "Z", 4.0, 2), *visit(1, 4, 3.2, 8, ("Z", 3.2))]
    both = [make_store(tmp_path / name, events) for name, events in (("one", one), ("two", two))]
    tokens = sorted({str(code) for store in both for code in store.codes})
    vocab = Vocabulary((*SPECIAL_TOKENS, *tokens, "B//Q1", "B//Q2"), {"B": (5.0,)})
    first, second = (build_visit_sequences(store, vocab, labels_at((1, day(3)))) for store in both)
    assert len(words(first, vocab)[0]) == 2
    same(first, second, first._fields)
    assert (bag_of_codes(first, len(vocab)).counts != bag_of_codes(second, len(vocab)).counts).nnz == 0


def reference_sequence(store, patient, time, max_visits, max_codes):
    """Visits (start, tokens) visible at `time`, by loops."""
    _, _, _, visits, static = patient
    seen = []
    for start, _, _, events in visits:
        tokens = [code for code, at in events if at <= time and start <= time]
        if tokens:
            seen.append((start, tokens))
    seen = seen[-max_visits:]
    if seen:
        merged = static + seen[0][1]
        rank = dict(zip(merged, type_ranks(merged), strict=True))
        seen[0] = (seen[0][0], sorted(merged, key=lambda code: rank[code]))  # stable
    return [(start, tokens[:max_codes]) for start, tokens in seen]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(histories(), st.lists(st.integers(-1, 14), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 4))
def test_sequences_equal_loops_over_patients(events, days, max_visits, max_codes):
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), events, num_shards=2)
        patients = {patient[0]: patient for patient in patients_of(store)}
        rows = [(subject, day(d)) for d in days for subject in patients]
        expected = [reference_sequence(store, patients[s], seconds(time), max_visits, max_codes) for s, time in rows]
        keep = [i for i, visits in enumerate(expected) if visits]
        labels = drop_without_visits(store, labels_at(*rows))
        assert labels.subject_ids.tolist() == [rows[i][0] for i in keep]
        vocab = vocabulary_of(store)
        sequences = build_visit_sequences(store, vocab, labels, max_visits=max_visits, max_codes=max_codes)
        assert words(sequences, vocab) == [[tokens for _, tokens in expected[i]] for i in keep]
        starts = [[start for start, _ in expected[i]] for i in keep]
        gaps = [np.diff(s, prepend=s[0]) / DAY for s in starts]
        np.testing.assert_array_equal(sequences.gap_days, np.concatenate([*gaps, []]))


# Labels at every visit


def every_visit(store, outcome="next_class", **options):
    """Label rows at the end of every visit."""
    task = replace(TASKS["next_visit_class"], outcome=outcome, max_rows_per_patient=None, **options)
    return make_labels(store, task, train_subjects=store.subject_ids)


def test_each_visit_bears_the_row_of_its_index_time(tmp_path):
    events = [e for n in range(4) for e in visit(1, n, n, n, (f"DIAGNOSIS//{n % 2}", n))]
    store = make_store(tmp_path, events + visit(2, 1, 0, 0, ("DIAGNOSIS//7", 0)))
    labels = every_visit(store, "next_codes", num_codes=2)
    sequences = build_visit_level_sequences(store, vocabulary_of(store), labels)
    assert labels.names == ("DIAGNOSIS//0", "DIAGNOSIS//1")
    assert sequences.subject_ids.tolist() == [1]  # subject 2 has no next visit
    assert sequences.labels.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert sequences.label_mask.all()
    assert sequences.times.tolist() == [seconds(day(2))]
    assert len(words(sequences, vocabulary_of(store))[0]) == 3  # nothing after the last label


def test_rows_in_the_middle_of_what_the_visits_show_have_no_place(tmp_path):
    """Visit 1 lasts until day 6: on days 2 and 5 a model has read but a part of it."""
    events = visit(1, 1, 0, 6, ("A", 6), kind="a") + visit(1, 2, 2, 2, kind="b") + visit(1, 3, 7, 8, kind="c")
    events += visit(1, 4, 9, 9, kind="d") + visit(1, 5, 10, 10, kind="e")
    store = make_store(tmp_path, events)
    labels = every_visit(store)
    assert [labels.names[v] for v in labels.values[:, 0]] == ["c", "c", "d", "e"]  # on days 2, 6, 8, 9
    sequences = build_visit_level_sequences(store, vocabulary_of(store), labels)
    shown = zip(sequences.labels[:, 0], sequences.label_mask[:, 0], strict=True)
    assert [labels.names[v] if known else None for v, known in shown] == [None, "c", "d", "e"]


def test_the_latest_of_several_rows_between_two_visits_counts(tmp_path):
    store = make_store(tmp_path, visit(1, 1, 0, 0) + visit(1, 2, 9, 9))
    labels = labels_at((1, day(4)), (1, day(2)))  # values 0 and 1
    sequences = build_visit_level_sequences(store, vocabulary_of(store), labels)
    assert sequences.labels.tolist() == [[0]]
    assert sequences.times.tolist() == [seconds(day(4))]


def test_no_row_with_a_place_gives_no_examples(tmp_path):
    store = make_store(tmp_path, visit(1, 1, 5, 5))
    sequences = build_visit_level_sequences(store, vocabulary_of(store), labels_at((1, day(2)), (9, day(9))))
    assert [len(column) for column in sequences[:9]] == [0, 1, 1, 0, 0, 0, 0, 0, 0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories(), st.integers(1, 4), st.sampled_from([3, 4_000_000]))
def test_the_visits_up_to_a_label_are_what_its_row_shows(events, max_visits, chunk):
    """The sequence up to a labelled visit is the row's own sequence, or its latest half where the record was cut."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences_lib, "_CHUNK_EVENTS", chunk)
        store = make_store(Path(folder), events, num_shards=2)
        vocab = vocabulary_of(store)
        rows = [(int(subject), day(d)) for subject in store.subject_ids for d in range(0, 12, 2)]
        labels = drop_without_visits(store, labels_at(*rows))
        if not len(labels.times):
            return
        labels = labels._replace(values=np.arange(len(labels.times))[:, None])  # a label is its row
        dense = build_visit_level_sequences(store, vocab, labels, max_visits=max_visits)
        rows_shown = build_visit_sequences(store, vocab, labels, max_visits=max_visits)
        expected, dense_words = words(rows_shown, vocab), words(dense, vocab)
        found = {}
        for example, visits in enumerate(dense_words):
            first = dense.example_offsets[example]
            assert len(visits) <= max_visits
            assert dense.label_mask[first + len(visits) - 1].all()  # a sequence ends with a label
            for v in range(len(visits)):
                if dense.label_mask[first + v, 0]:
                    row = int(dense.labels[first + v, 0])
                    assert row not in found
                    assert dense.subject_ids[example] == labels.subject_ids[row]
                    found[row] = visits[: v + 1]
        whole = {p[0]: p for p in patients_of(store)}
        for row, visits in found.items():
            if len(visits) == len(expected[row]):
                assert visits == expected[row]
            else:  # statics stand with a sequence's first visit
                kept = len(visits)
                assert len(expected[row]) == max_visits
                assert kept > max_visits // 2
                assert visits[1:] == expected[row][max_visits - kept + 1 :]
        for row in set(range(len(labels.times))) - set(found):
            assert row in _replaced(labels, found) or _shows_part(whole[labels.subject_ids[row]], labels.times[row])


def _replaced(labels, found):
    """Rows that a later one of the same subject may have replaced."""
    pairs = [(row, other) for other in found for row in range(len(labels.times))]
    same = [(r, o) for r, o in pairs if labels.subject_ids[r] == labels.subject_ids[o]]
    return {r for r, o in same if labels.times[r] < labels.times[o]}


def _shows_part(patient, time):
    """A visit that has begun by `time` goes on after it."""
    return any(start <= time < max([end, *(t for _, t in events)]) for start, end, _, events in patient[3])


# Whole records


def test_whole_records_in_the_order_given_without_label_columns(tmp_path):
    events = visit(1, 1, 0, 1, ("A", 0), ("LATE", 900)) + visit(1, 2, 7, 8, ("B", 7)) + visit(2, 1, 3, 3, ("C", 3))
    events += [(2, None, "GENDER//F", None, None), *visit(3, 1, -40_000, -40_000, ("OLD", -40_000))]
    store = make_store(tmp_path, events, num_shards=2)
    vocab = vocabulary_of(store)
    sequences = build_patient_sequences(store, vocab, np.array([2, 3, 1]))
    shown = words(sequences, vocab)
    last = "ENCOUNTER//ambulatory"
    assert shown == [[["GENDER//F", "C", last]], [[last, "OLD"]], [["A", last, "LATE"], ["B", last]]]
    assert sequences.subject_ids.tolist() == [2, 3, 1]
    assert sequences.times.tolist() == [seconds(day(3)), seconds(day(-40_000)), seconds(day(7))]
    assert sequences.gap_days.tolist() == [0, 0, 0, 7]
    assert sequences.labels.shape == sequences.label_mask.shape == (3, 0)
    assert sequences.label_mask.dtype == bool


def test_patients_without_visits_are_left_out_of_whole_records(tmp_path):
    store = make_store(tmp_path, [(1, None, "GENDER//F", None, None), *visit(2, 1, 0, 0, ("A", 0))])
    vocab = vocabulary_of(store)
    sequences = build_patient_sequences(store, vocab, np.array([1, 2]))
    assert sequences.subject_ids.tolist() == [2]
    assert sequences.times.tolist() == [seconds(day(0))]
    assert len(sequences.example_offsets) == 2 and len(words(sequences, vocab)[0]) == 1
    store = make_store(tmp_path / "statics", [(1, None, "GENDER//F", None, None)])
    nobody = build_patient_sequences(store, vocab, np.array([1]))
    assert [len(column) for column in nobody[:9]] == [0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert len(build_patient_sequences(store, vocab, np.zeros(0, int)).subject_ids) == 0


def test_whole_records_have_all_their_visits(tmp_path):
    store = make_store(tmp_path, [e for n in range(70) for e in visit(1, n, n, n)])
    sequences = build_patient_sequences(store, vocabulary_of(store), np.array([1]))
    assert sequences.example_offsets.tolist() == [0, 70]


def test_subjects_that_the_store_lacks_are_refused(tmp_path):
    store = make_store(tmp_path, visit(2, 1, 0, 0))
    with pytest.raises(ValueError, match=r"subject 9 is not in the store \(2 of 3 such\)"):
        build_patient_sequences(store, vocabulary_of(store), np.array([9, 2, 8]))


@settings(max_examples=30, deadline=None)
@given(histories(), st.integers(1, 4), st.sampled_from([3, 4_000_000]))
def test_whole_records_are_what_a_row_far_in_the_future_shows(events, max_codes, chunk):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences_lib, "_CHUNK_EVENTS", chunk)
        store = make_store(Path(folder), events, num_shards=2)
        vocab = vocabulary_of(store)
        subjects = store.subject_ids[::-1]
        labels = drop_without_visits(store, labels_at(*((int(subject), day(9999)) for subject in subjects)))
        expected = build_visit_sequences(store, vocab, labels, max_visits=1000, max_codes=max_codes)
        sequences = build_patient_sequences(store, vocab, subjects, max_codes=max_codes)
        same(sequences, expected, ["codes", "visit_offsets", "example_offsets", "ages", "gap_days", "subject_ids"])
        latest = {patient[0]: max((visit[0] for visit in patient[3]), default=None) for patient in patients_of(store)}
        assert sequences.times.tolist() == [latest[subject] for subject in sequences.subject_ids]


# Bags


def test_bags_count_tokens(tmp_path):
    events = [(1, day(0), "A", None, 1), (1, day(1), "A", None, 2), (1, day(1), "B", None, 2)]
    store = make_store(tmp_path, events)
    vocab = vocabulary_of(store)
    sequences = build_visit_sequences(store, vocab, labels_at((1, day(0)), (1, day(1))))
    bags = bag_of_codes(sequences, len(vocab)).counts.toarray()
    assert bags[:, 5:].tolist() == [[1, 0], [2, 1]]
    assert (bags[:, :5] == 0).all()
    assert sequences.codes.tolist() == [5, 5, 5, 6]  # the sequences are left as they were
