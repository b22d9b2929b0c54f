"""Windows and truncation: whole visits, the latest kept, each visit fresh once with enough of its past."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrjax.data.token_batching import count_tokens
from ehrjax.data.windows import cut_windows, take_examples, truncate
from tests.sequences import make_sequences

LENGTHS = st.lists(st.integers(0, 12), min_size=0, max_size=6)
MAX_TOKENS = st.integers(3, 30)


def visits_of(sequences, example):
    return range(sequences.example_offsets[example], sequences.example_offsets[example + 1])


def codes_of(sequences, visit):
    return sequences.codes[sequences.visit_offsets[visit] : sequences.visit_offsets[visit + 1]].tolist()


def sizes_of(sequences, example, max_tokens):
    """Tokens of each visit, as many of its codes as fit beside [CLS] and [SEP]."""
    return [min(len(codes_of(sequences, v)), max_tokens - 2) + 1 for v in visits_of(sequences, example)]


def expected_visits(sequences, visits, max_tokens):
    """What a sequence of these visits holds: age, gap (0 for the first) and codes of each."""
    gaps = [0.0 if v == visits[0] else float(sequences.gap_days[v]) for v in visits]
    return [
        (float(sequences.ages[v]), gap, codes_of(sequences, v)[: max_tokens - 2])
        for v, gap in zip(visits, gaps, strict=True)
    ]


def found_visits(sequences, example):
    return [
        (float(sequences.ages[v]), float(sequences.gap_days[v]), codes_of(sequences, v))
        for v in visits_of(sequences, example)
    ]


def labelled(lengths, level, seed=0):
    """Random sequences whose labels are numbered, so that each can be told from the others."""
    sequences = make_sequences(lengths, level=level, num_labels=1, seed=seed)
    return sequences._replace(labels=np.arange(len(sequences.labels), dtype=np.float32)[:, None])


# Edge cases


@pytest.mark.parametrize("cut", [cut_windows, truncate])
def test_no_examples_and_examples_without_visits(cut):
    for lengths in ([], [0, 2, 0]):
        sequences = make_sequences(np.array(lengths, int), num_labels=0)
        result = cut(sequences, max_tokens=40)
        result = result.sequences if cut is cut_windows else result
        assert np.diff(result.example_offsets).tolist() == lengths
        np.testing.assert_array_equal(result.codes, sequences.codes)


@pytest.mark.parametrize("cut", [cut_windows, truncate])
def test_room_for_no_code_and_unknown_levels_are_refused(cut):
    sequences = make_sequences([2], num_labels=0)
    with pytest.raises(ValueError, match="max_tokens=2 must be at least 3"):
        cut(sequences, max_tokens=2)
    with pytest.raises(ValueError, match="level='day'"):
        cut(sequences, max_tokens=9, level="day")


def test_labels_of_patients_are_refused_by_windows():
    with pytest.raises(ValueError, match=r"2 labels a patient would count once a window: use truncate"):
        cut_windows(make_sequences([2], num_labels=2), max_tokens=9)


def test_visit_too_long_alone_keeps_its_first_codes():
    sequences = make_sequences([1, 3], num_labels=0)
    sizes = [9, 2, 9, 1]
    codes = np.arange(5, 5 + sum(sizes), dtype=np.int32)
    sequences = sequences._replace(codes=codes, visit_offsets=np.append(0, np.cumsum(sizes)))
    short = truncate(sequences, max_tokens=6)
    assert [codes_of(short, v) for v in range(2)] == [[5, 6, 7, 8], [25]]
    windows = cut_windows(sequences, max_tokens=6)
    shown = [[codes_of(windows.sequences, v) for v in visits_of(windows.sequences, w)] for w in range(4)]
    assert shown == [[[5, 6, 7, 8]], [[14, 15]], [[16, 17, 18, 19]], [[25]]]
    assert windows.example_index.tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(sequences.codes[windows.code_index], windows.sequences.codes)


# Truncation


def test_exactly_full_sequence_is_left_whole_and_one_token_less_drops_the_oldest_visit():
    sequences = make_sequences([4], num_labels=0)
    num_tokens = int(count_tokens(sequences)[0])
    assert np.diff(truncate(sequences, max_tokens=num_tokens).example_offsets).tolist() == [4]
    shorter = truncate(sequences, max_tokens=num_tokens - 1)
    assert found_visits(shorter, 0) == expected_visits(sequences, [1, 2, 3], 99)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, MAX_TOKENS, st.sampled_from(["patient", "visit"]), st.integers(0, 99))
def test_truncation_keeps_the_latest_visits_that_fit(lengths, max_tokens, level, seed):
    sequences = labelled(np.array(lengths, int), level, seed)
    short = truncate(sequences, max_tokens=max_tokens, level=level)
    label_rows = []
    for example in range(len(lengths)):
        visits, sizes = list(visits_of(sequences, example)), sizes_of(sequences, example, max_tokens)
        while 1 + sum(sizes) > max_tokens:
            visits, sizes = visits[1:], sizes[1:]
        assert found_visits(short, example) == expected_visits(sequences, visits, max_tokens)
        label_rows += visits if level == "visit" else [example]
    assert short.labels[:, 0].tolist() == label_rows
    assert short.label_mask.shape == short.labels.shape and short.label_mask.all()
    np.testing.assert_array_equal(short.subject_ids, sequences.subject_ids)


# Windows


def expected_windows(sizes, max_tokens):
    """(start, first fresh visit, end) of each window of a record, by loops."""
    windows, start, fresh = [], 0, 0
    while True:
        end = start
        while end < len(sizes) and 1 + sum(sizes[start : end + 1]) <= max_tokens:
            end += 1
        windows.append((start, fresh, end))
        if end == len(sizes):
            return windows
        start = fresh = end
        while (
            start > 0
            and sum(sizes[start - 1 : fresh]) <= max_tokens // 2
            and 1 + sum(sizes[start - 1 : fresh + 1]) <= max_tokens
        ):
            start -= 1


@settings(max_examples=100, deadline=None)
@given(LENGTHS, MAX_TOKENS, st.integers(0, 99))
def test_windows_equal_loops_over_records(lengths, max_tokens, seed):
    sequences = labelled(np.array(lengths, int), "visit", seed)
    windows = cut_windows(sequences, max_tokens=max_tokens, level="visit")
    cut, number, label_rows, code_rows = windows.sequences, 0, [], []
    for example in range(len(lengths)):
        first = sequences.example_offsets[example]
        for start, fresh, end in expected_windows(sizes_of(sequences, example, max_tokens), max_tokens):
            visits = list(range(first + start, first + end))
            assert found_visits(cut, number) == expected_visits(sequences, visits, max_tokens)
            assert windows.is_fresh[visits_of(cut, number)].tolist() == [v >= first + fresh for v in visits]
            assert windows.example_index[number] == example
            label_rows += visits
            for v in visits:
                code_rows += range(sequences.visit_offsets[v], sequences.visit_offsets[v + 1])[: max_tokens - 2]
            number += 1
    assert number == len(cut.subject_ids) == len(windows.example_index)
    assert windows.code_index.tolist() == code_rows
    assert cut.labels[:, 0].tolist() == label_rows
    assert cut.label_mask[:, 0].tolist() == windows.is_fresh.tolist()
    np.testing.assert_array_equal(cut.subject_ids, sequences.subject_ids[windows.example_index])


@settings(max_examples=100, deadline=None)
@given(LENGTHS, MAX_TOKENS, st.integers(0, 99))
def test_each_visit_is_fresh_once_in_windows_that_fit(lengths, max_tokens, seed):
    sequences = labelled(np.array(lengths, int), "visit", seed)
    windows = cut_windows(sequences, max_tokens=max_tokens, level="visit")
    assert (count_tokens(windows.sequences) <= max_tokens).all()
    fresh = windows.sequences.labels[windows.is_fresh, 0]
    assert fresh.tolist() == list(range(sum(lengths)))
    if len(lengths) and count_tokens(sequences).max() <= max_tokens:
        assert windows.example_index.tolist() == list(range(len(lengths)))


def test_later_windows_show_about_half_a_window_of_past():
    sequences = make_sequences([400], num_labels=0)
    windows = cut_windows(sequences, max_tokens=100)
    sizes = np.diff(windows.sequences.visit_offsets) + 1
    offsets = windows.sequences.example_offsets
    for window in range(1, len(offsets) - 1):
        visits = slice(offsets[window], offsets[window + 1])
        past = sizes[visits][~windows.is_fresh[visits]].sum()
        assert 45 < past <= 50
    assert len(windows.example_index) < 2.3 * sizes[windows.is_fresh].sum() / 100


def test_flags_of_codes_travel_to_the_window_where_they_are_fresh():
    sequences = make_sequences([20, 3], num_labels=0)
    windows = cut_windows(sequences, max_tokens=15)
    flags = np.random.default_rng(0).random(len(sequences.codes)) < 0.3
    moved = windows.fresh_codes(flags)
    assert len(moved) > len(flags)
    np.testing.assert_array_equal(windows.code_index[moved], np.flatnonzero(flags))


def test_taken_examples_are_those_examples():
    sequences = labelled([2, 0, 3, 1], "patient")
    taken = take_examples(sequences, np.array([2, 1]))
    for place, example in enumerate((2, 1)):
        assert found_visits(taken, place) == expected_visits(sequences, visits_of(sequences, example), 10_000)
        assert taken.subject_ids[place] == sequences.subject_ids[example]
        np.testing.assert_array_equal(taken.labels[place], sequences.labels[example])
    assert len(take_examples(sequences, np.zeros(0, np.int64)).subject_ids) == 0
