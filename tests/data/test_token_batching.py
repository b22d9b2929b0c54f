"""Token batches: the exact layout, nothing lost or twice, masks and targets as asked for, a function of the step."""

import jax
import numpy as np
import pytest

from ehrjax.data import token_batching
from ehrjax.data.masking import draw_eval_mask
from ehrjax.data.token_batching import TokenBatches, count_tokens
from ehrjax.types import VisitSequences
from tests.sequences import VOCAB_SIZE, make_sequences
from tests.tokens import make_token_batch, make_token_batches, pad_token_batch

LENGTHS = np.random.default_rng(1).integers(1, 30, 53)


def hand_written():
    """Three sequences; the visits of the first hold codes 7 7 8, none, and 9 1."""
    return VisitSequences(
        codes=np.array([7, 7, 8, 9, 1, 6, 5], np.int32),
        visit_offsets=np.array([0, 3, 3, 5, 6, 7]),
        example_offsets=np.array([0, 3, 4, 5]),
        ages=np.array([0.0, 0.99, 1.0, 64.5, 30.0], np.float32),
        gap_days=np.array([0.0, 361.0, 4.0, 0.0, 0.0], np.float32),
        subject_ids=np.array([11, 12, 13]),
        times=np.zeros(3, np.int64),
        labels=np.array([[1.0], [2.0], [3.0]], np.float32),
        label_mask=np.array([[True], [False], [True]]),
    )


def decode(batch):
    """example id -> visits as (age, gap, codes), read back from the rows; checks how the tokens of a row lie."""
    decoded = {}
    for row in np.flatnonzero(batch.example_mask):
        for segment, example in enumerate(batch.example_ids[row][batch.example_ids[row] >= 0], start=1):
            columns = np.flatnonzero(batch.segment_ids[row] == segment)
            tokens = batch.tokens[row][columns]
            assert (np.diff(columns) == 1).all()
            assert batch.positions[row][columns].tolist() == list(range(len(columns)))
            assert tokens[0] == 3 and tokens[-1] == 4
            visits = []
            for v in np.flatnonzero(batch.visit_mask[row] & (batch.visit_segments[row] == segment)):
                held = np.flatnonzero(batch.code_visits[row] == v)
                assert batch.tokens[row][batch.visit_ends[row, v]] == 4
                before = batch.visit_ends[row, v - 1] if visits else columns[0]
                assert held.tolist() == list(range(before + 1, batch.visit_ends[row, v]))
                assert (batch.visit_ids[row][held] == len(visits) + 1).all()
                age = batch.visit_ages[row, v]
                assert (batch.ages[row][held] == int(age) + 1).all()
                visits.append((float(age), float(batch.visit_gap_days[row, v]), batch.tokens[row][held].tolist()))
            decoded[int(example)] = visits
    return decoded


def reference(sequences):
    """The same, read from the CSR arrays one visit at a time."""
    decoded = {}
    for example in range(len(sequences.subject_ids)):
        visits = range(sequences.example_offsets[example], sequences.example_offsets[example + 1])
        decoded[example] = [
            (
                float(sequences.ages[v]),
                float(sequences.gap_days[v]),
                sequences.codes[sequences.visit_offsets[v] : sequences.visit_offsets[v + 1]].tolist(),
            )
            for v in visits
        ]
    return decoded


# Edge cases and refusals


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        TokenBatches(make_sequences(np.zeros(0, int)), row_tokens=9, batch_size=2)


def test_patient_without_visits_is_refused_by_name():
    with pytest.raises(ValueError, match=r"subject 101 has no visits \(1 such"):
        TokenBatches(make_sequences([2, 0, 1]), row_tokens=99, batch_size=2)


def test_sequence_longer_than_a_row_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"subject 11 has 9 tokens, over row_tokens=8 \(1 such.*cut_windows or truncate"
    ):
        TokenBatches(hand_written(), row_tokens=8, batch_size=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "day"}, "level='day'"),
        ({"level": "visit"}, "needs 5 rows of labels, one a visit; there are 3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_buckets": 0}, "num_buckets=0"),
        ({"num_buckets": 5}, "num_buckets=5 is too many for row_tokens=9"),
        ({"mask_rate": 0.15}, "vocab_size=None has no codes"),
        ({"mask_rate": 1.5, "vocab_size": 20}, "mask_rate=1.5"),
        ({"mask_rate": 0.1, "vocab_size": 20, "eval_mask": np.zeros(7, bool)}, "give one of them"),
        ({"eval_mask": np.zeros(5, bool)}, "eval_mask has 5 values of type bool: it needs 7"),
        ({"is_fresh": np.zeros(7, bool)}, "is_fresh has 7 values of type bool: it needs 5"),
        ({"is_fresh": np.zeros(5, int)}, "is_fresh has 5 values of type int64"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TokenBatches(hand_written(), **{"row_tokens": 9, "batch_size": 2} | options)


def test_single_patient_whose_visits_hold_no_codes():
    sequences = make_sequences([3], max_codes=0)
    options = {"mask_rate": 0.5, "vocab_size": 9, "is_fresh": np.ones(3, bool)}
    batches = TokenBatches(sequences, row_tokens=6, batch_size=8, **options)
    batch = batches.batch_at(0)
    assert batches.shapes == [(1, 6, 3, 1)]
    assert batch.tokens.tolist() == [[3, 4, 4, 4, 0, 0]]
    assert batch.visit_ends.tolist() == [[1, 2, 3]]
    assert not batch.masked.mask.any() and not batch.next_visits.codes.any()
    assert batch.next_visits.visits.tolist() == [[False, True, True]]
    chosen = TokenBatches(sequences, row_tokens=6, batch_size=8, eval_mask=np.zeros(0, bool))
    assert chosen.batch_at(0).masked.mask.tolist() == [[False]]


# Layout


def test_exact_layout_of_rows_written_by_hand():
    eval_mask = np.array([True, True, False, False, True, False, True])
    is_fresh = np.array([True, True, True, True, False])
    batches = TokenBatches(hand_written(), row_tokens=10, batch_size=4, eval_mask=eval_mask, is_fresh=is_fresh)
    assert batches.shapes == [(2, 10, 3, 2)]
    (batch,) = batches.eval_batches()
    assert batch.tokens.tolist() == [[3, 7, 7, 8, 4, 4, 9, 1, 4, 0], [3, 6, 4, 3, 5, 4, 0, 0, 0, 0]]
    assert batch.ages.tolist() == [[0, 1, 1, 1, 0, 0, 2, 2, 0, 0], [0, 65, 0, 0, 31, 0, 0, 0, 0, 0]]
    assert batch.visit_ids.tolist() == [[0, 1, 1, 1, 0, 0, 3, 3, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 0], [0, 1, 2, 0, 1, 2, 0, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1] * 9 + [0], [1, 1, 1, 2, 2, 2, 0, 0, 0, 0]]
    assert batch.code_visits.tolist() == [
        [-1, 0, 0, 0, -1, -1, 2, 2, -1, -1],
        [-1, 0, -1, -1, 1, -1, -1, -1, -1, -1],
    ]
    assert batch.visit_ends.tolist() == [[4, 5, 8], [2, 5, 0]]
    assert batch.visit_mask.tolist() == [[True, True, True], [True, True, False]]
    assert batch.visit_segments.tolist() == [[1, 1, 1], [1, 2, 0]]
    np.testing.assert_array_equal(batch.visit_ages, np.float32([[0.0, 0.99, 1.0], [64.5, 30.0, 0.0]]))
    assert batch.visit_gap_days.tolist() == [[0.0, 361.0, 4.0], [0.0, 0.0, 0.0]]
    assert batch.labels.tolist() == [[[1.0], [0.0]], [[2.0], [3.0]]]
    assert batch.label_mask.tolist() == [[[True], [False]], [[False], [True]]]
    assert batch.example_mask.tolist() == [True, True]
    assert batch.example_ids.tolist() == [[0, -1], [1, 2]]
    # The 1 at the end of the first sequence is [UNK].
    assert batch.masked.positions.tolist() == [[1, 2], [4, 0]]
    assert batch.masked.shown.tolist() == [[2, 2], [2, 0]]
    assert batch.masked.mask.tolist() == [[True, True], [True, False]]
    assert batch.next_visits.visits.tolist() == [[False, True, True], [False, False, False]]
    assert [np.flatnonzero(row).tolist() for row in batch.next_visits.codes] == [[6], []]


def test_dtypes_are_the_same_whatever_lies_underneath():
    small, large = (
        make_token_batch([3, 2], row_tokens=row_tokens, mask_rate=0.2, is_fresh=True) for row_tokens in (40, 40_000)
    )
    assert jax.tree.map(lambda a: a.dtype, small) == jax.tree.map(lambda a: a.dtype, large)
    integers = (small.tokens, small.ages, small.positions, small.visit_ends, small.example_ids, small.masked.positions)
    assert {a.dtype.name for a in integers} == {"int32"}
    assert small.visit_ages.dtype == small.visit_gap_days.dtype == np.float32
    assert large.tokens.shape == (1, 40_000)
    assert decode(large) == decode(small)


def test_row_of_more_tokens_than_small_integers_count():
    sequences = make_sequences([1])
    num_codes = 33_000
    long = sequences._replace(codes=np.full(num_codes, 6, np.int32), visit_offsets=np.array([0, num_codes]))
    batch = TokenBatches(long, row_tokens=num_codes + 2, batch_size=1).batch_at(0)
    assert batch.positions.tolist() == [list(range(num_codes + 2))]
    assert batch.visit_ends.tolist() == [[num_codes + 1]]


@pytest.mark.parametrize("num_buckets", [1, 3])
@pytest.mark.parametrize("chunk", [50, 4_000_000])
def test_every_sequence_once_an_epoch_with_its_own_visits(monkeypatch, num_buckets, chunk):
    monkeypatch.setattr(token_batching, "_CHUNK_TOKENS", chunk)
    sequences = make_sequences(LENGTHS)
    batches = TokenBatches(sequences, row_tokens=128, batch_size=3, seed=3, num_buckets=num_buckets)
    expected = reference(sequences)
    for epoch in (0, 5):
        seen = {}
        for step in range(batches.num_batches_per_epoch):
            batch = batches.batch_at(epoch * batches.num_batches_per_epoch + step)
            decoded = decode(batch)
            assert not seen.keys() & decoded.keys()
            assert sorted(batches.examples_of(batch).tolist()) == sorted(decoded)
            seen.update(decoded)
        assert seen == expected
    evaluated = [decode(batch) for batch in batches.eval_batches()]
    assert sum(len(part) for part in evaluated) == len(LENGTHS) == batches.num_examples
    assert {key: value for part in evaluated for key, value in part.items()} == expected


def test_padding_is_empty():
    batches = make_token_batches(LENGTHS, row_tokens=150, batch_size=4, is_fresh=True)
    for batch in batches.eval_batches():
        padding = batch.segment_ids == 0
        for name in ("tokens", "ages", "visit_ids", "positions"):
            assert not getattr(batch, name)[padding].any()
        assert (batch.code_visits[padding] == -1).all()
        for name in ("visit_ends", "visit_segments", "visit_ages", "visit_gap_days"):
            assert not getattr(batch, name)[~batch.visit_mask].any()
        np.testing.assert_array_equal(batch.visit_segments > 0, batch.visit_mask)
        np.testing.assert_array_equal(batch.label_mask[..., 0], batch.example_ids >= 0)
        np.testing.assert_array_equal(batch.example_mask, (batch.example_ids >= 0).any(axis=1))
        assert (
            not (batch.next_visits.codes & padding).any() and not (batch.next_visits.visits & ~batch.visit_mask).any()
        )
    assert not batch.example_mask.all()  # the last batch is not full


# Shapes, order and padding


def test_shapes_are_static_and_listed():
    for options in ({"mask_rate": 0.15}, {"is_fresh": True, "num_buckets": 3}):
        batches = make_token_batches(LENGTHS, row_tokens=128, batch_size=2, **options)
        seen = set()
        for batch in [*batches.eval_batches(), *map(batches.batch_at, range(3 * batches.num_batches_per_epoch))]:
            seen.add((*batch.tokens.shape, batch.visit_mask.shape[1], batch.example_ids.shape[1]))
            if batch.masked:
                assert batch.masked.mask.shape == (2, 20)
        assert seen == set(batches.shapes)


def test_buckets_hold_each_sequence_in_the_shortest_row_and_keep_tokens_a_batch():
    batches = make_token_batches([30] * 20 + [1] * 100 + [14] * 20, row_tokens=128, batch_size=2, num_buckets=3)
    assert [rows * tokens for rows, tokens, _, _ in batches.shapes] == [256, 256, 256]
    sizes = count_tokens(batches.sequences)
    for batch in batches.eval_batches():
        num_tokens = sizes[batches.examples_of(batch)]
        assert num_tokens.max() <= batch.tokens.shape[1]
        assert batch.tokens.shape[1] == 32 or num_tokens.min() > batch.tokens.shape[1] // 2
    assert batches.batch_size == 2


def test_batches_of_all_row_lengths_are_mixed():
    batches = make_token_batches([30] * 20 + [1] * 100 + [14] * 20, row_tokens=128, batch_size=1, num_buckets=3)
    widths = [batches.batch_at(step).tokens.shape[1] for step in range(batches.num_batches_per_epoch)]
    assert widths != sorted(widths, reverse=True) and set(widths) == {128, 64, 32}


def test_buckets_without_sequences_are_left_out():
    batches = make_token_batches([1, 1], row_tokens=64, batch_size=2, num_buckets=3)
    assert [shape[1] for shape in batches.shapes] == [16]
    assert decode(batches.batch_at(0)) == reference(batches.sequences)


def test_rows_are_nearly_full():
    lengths = np.clip(np.random.default_rng(0).lognormal(2, 1, 500).astype(int), 1, 50)
    batches = make_token_batches(lengths, row_tokens=256, batch_size=4)
    assert 0 < batches.padding_fraction < 0.05
    slots = sum(batch.tokens.size for batch in map(batches.batch_at, range(batches.num_batches_per_epoch)))
    np.testing.assert_allclose(1 - batches.padding_fraction, count_tokens(batches.sequences).sum() / slots)


def test_batch_is_a_pure_function_of_seed_and_step():
    one, other = (make_token_batches(LENGTHS, row_tokens=128, batch_size=3, mask_rate=0.15) for _ in range(2))
    steps = [30, 2, 9, 2, 16]
    forward = {step: one.batch_at(step) for step in sorted(steps)}
    for step in steps:  # another order, with epochs visited back and forth
        jax.tree.map(np.testing.assert_array_equal, other.batch_at(step), forward[step])
    assert other.batch_at(2).example_ids.tolist() != other.batch_at(9).example_ids.tolist()
    different = TokenBatches(one.sequences, row_tokens=128, batch_size=3, seed=4)
    assert any(different.batch_at(s).example_ids.tolist() != one.batch_at(s).example_ids.tolist() for s in range(5))


def test_order_of_rows_is_drawn_afresh_each_epoch():
    batches = make_token_batches(LENGTHS, row_tokens=128, batch_size=3)
    orders = []
    for epoch in range(2):
        steps = range(epoch * batches.num_batches_per_epoch, (epoch + 1) * batches.num_batches_per_epoch)
        orders.append([ids for step in steps for ids in batches.batch_at(step).example_ids[:, 0].tolist()])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])


# Labels


def test_labels_of_sequences_lie_on_their_slots():
    batches = make_token_batches(LENGTHS, num_labels=2, row_tokens=128, batch_size=3)
    for batch in batches.eval_batches():
        real = batch.example_ids >= 0
        np.testing.assert_array_equal(batch.labels[real], batches.sequences.labels[batch.example_ids[real]])
        assert (batch.label_mask == real[..., None]).all()


def test_labels_of_visits_lie_on_their_visits():
    sequences = make_sequences(LENGTHS, level="visit", num_labels=2)
    sequences = sequences._replace(labels=np.arange(sequences.labels.size).reshape(-1, 2))
    sequences.label_mask[::3, 1] = False
    batch = TokenBatches(sequences, row_tokens=128, batch_size=3, level="visit").batch_at(0)
    assert batch.labels.shape == (*batch.visit_mask.shape, 2)
    assert batch.labels.dtype == sequences.labels.dtype
    assert not batch.label_mask[~batch.visit_mask].any()
    for row in range(3):
        ids = batch.example_ids[row][batch.example_ids[row] >= 0]
        visits = [v for e in ids for v in range(sequences.example_offsets[e], sequences.example_offsets[e + 1])]
        np.testing.assert_array_equal(batch.labels[row, : len(visits)], sequences.labels[visits])
        np.testing.assert_array_equal(batch.label_mask[row, : len(visits)], sequences.label_mask[visits])


def test_no_label_columns():
    batch = make_token_batch([2, 3], num_labels=0)
    assert batch.labels.shape == batch.label_mask.shape == (*batch.example_ids.shape, 0)


# Masks


def test_masks_are_drawn_afresh_each_step_of_codes_only():
    batches = make_token_batches([9], mask_rate=0.3)
    seen = set()
    for step in range(30):
        batch = batches.batch_at(step)
        positions = batch.masked.positions[batch.masked.mask]
        assert (batch.tokens[0, positions] >= 5).all()
        assert len(positions) == np.round(0.3 * (batch.code_visits >= 0).sum())
        seen.add(tuple(positions))
    assert len(seen) > 25


def test_masks_of_evaluation_batches_stay_the_same():
    batches = make_token_batches(LENGTHS, row_tokens=128, batch_size=3, mask_rate=0.15)
    for one, other in zip(batches.eval_batches(), batches.eval_batches(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("num_buckets", [1, 2])
def test_fixed_masks_are_those_given_in_every_batch(num_buckets):
    sequences = make_sequences(LENGTHS)
    chosen = draw_eval_mask(sequences, mask_rate=0.2, seed=0)
    batches = TokenBatches(sequences, row_tokens=128, batch_size=3, eval_mask=chosen, num_buckets=num_buckets)
    bounds = sequences.visit_offsets[sequences.example_offsets]
    for batch in [*batches.eval_batches(), *map(batches.batch_at, range(batches.num_batches_per_epoch))]:
        masked = batch.masked
        assert (masked.shown[masked.mask] == 2).all()
        for row in np.flatnonzero(batch.example_mask):
            ids = batch.example_ids[row][batch.example_ids[row] >= 0]
            expected = [flag for e in ids for flag in chosen[bounds[e] : bounds[e + 1]]]
            is_masked = np.isin(np.arange(128)[: batch.tokens.shape[1]], masked.positions[row][masked.mask[row]])
            assert is_masked[batch.code_visits[row] >= 0].tolist() == expected
            assert is_masked.sum() == sum(expected)


# Next visits


def test_targets_of_next_visits_equal_loops():
    sequences = make_sequences(LENGTHS, max_codes=6)
    codes = np.random.default_rng(0).integers(0, 9, len(sequences.codes)).astype(np.int32)  # many repeats, some special
    is_fresh = np.random.default_rng(1).random(len(sequences.ages)) < 0.6
    sequences = sequences._replace(codes=codes)
    batches = TokenBatches(sequences, row_tokens=160, batch_size=3, is_fresh=is_fresh)
    for batch in batches.eval_batches():
        for row in np.flatnonzero(batch.example_mask):
            column = 0
            for example in batch.example_ids[row][batch.example_ids[row] >= 0]:
                first = sequences.example_offsets[example]
                for visit in range(first, sequences.example_offsets[example + 1]):
                    is_target = bool(is_fresh[visit]) and visit > first
                    assert batch.next_visits.visits[row, column] == is_target
                    held, seen = np.flatnonzero(batch.code_visits[row] == column), set()
                    for at in held:
                        code = int(batch.tokens[row, at])
                        assert batch.next_visits.codes[row, at] == (is_target and code >= 5 and code not in seen)
                        seen.add(code)
                    column += 1
            assert not batch.next_visits.codes[row][batch.code_visits[row] < 0].any()


def test_without_options_there_are_no_masks_and_no_targets():
    batch = make_token_batch([2, 3])
    assert batch.masked is None and batch.next_visits is None


# What other tests use


@pytest.mark.parametrize("level", ["patient", "visit"])
def test_padded_batch_holds_the_same(level):
    batch = make_token_batch([2, 5, 1], level=level, mask_rate=0.2, is_fresh=True, row_tokens=24)
    padded = pad_token_batch(batch, rows=2, tokens=3, visits=4, slots=1, masked=2, level=level)
    assert decode(padded) == decode(batch)
    assert padded.tokens.shape == (batch.tokens.shape[0] + 2, 27)
    axis = 4 if level == "visit" else 1
    assert padded.labels.shape == (batch.labels.shape[0] + 2, batch.labels.shape[1] + axis, 1)
    for mask in ("visit_mask", "label_mask", "example_mask"):
        assert getattr(padded, mask).sum() == getattr(batch, mask).sum()
    assert padded.masked.mask.sum() == batch.masked.mask.sum() and batch.tokens.max() < VOCAB_SIZE


def test_two_value_bins_of_one_code_are_one_target():
    sequences = make_sequences([2])._replace(
        codes=np.array([5, 6, 7, 6], np.int32), visit_offsets=np.array([0, 0, 4]), example_offsets=np.array([0, 2])
    )
    code_tokens = np.arange(VOCAB_SIZE)
    code_tokens[6] = 5
    options = {"row_tokens": 10, "batch_size": 1, "is_fresh": np.ones(2, bool)}
    apart, joined = (
        next(TokenBatches(sequences, code_tokens=tokens, **options).eval_batches()) for tokens in (None, code_tokens)
    )
    assert apart.tokens[0, apart.next_visits.codes[0]].tolist() == [5, 6, 7]
    assert joined.tokens[0, joined.next_visits.codes[0]].tolist() == [5, 7]
    np.testing.assert_array_equal(apart.tokens, joined.tokens)
