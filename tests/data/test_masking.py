"""Masks: codes only, as many as asked for, shown as BERT shows them; at evaluation the same whoever else is there."""

import numpy as np
import pytest

from ehrjax.data.masking import draw_eval_mask, draw_masked, mask_chosen, num_mask_slots
from tests.sequences import make_sequences

VOCAB_SIZE = 1000


def draw(tokens, seed=0, **options):
    options = {"mask_rate": 0.15, "vocab_size": VOCAB_SIZE} | options
    return draw_masked(np.asarray(tokens, np.int32), np.random.default_rng(seed), **options)


def some_tokens(rows=4, columns=64, seed=0):
    """Rows with special tokens, [UNK] and padding among the codes."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCAB_SIZE, (rows, columns)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.3] = rng.integers(0, 5)
    tokens[:, :2] = [1, 3]
    return tokens


# Edge cases


def test_rows_without_codes_have_no_masks():
    masked = draw([[3, 4, 0, 0], [3, 1, 4, 0], [3, 2, 4, 4]])
    assert masked.positions.shape == masked.shown.shape == masked.mask.shape == (3, 1)
    assert not masked.mask.any() and not masked.positions.any() and not masked.shown.any()


def test_row_of_one_code_has_it_masked():
    masked = draw([[3, 4, 9, 4]], mask_rate=0.01)
    assert masked.mask.tolist() == [[True]] and masked.positions.tolist() == [[2]]


def test_everything_can_be_masked():
    masked = draw([[3, 7, 8, 9, 4], [3, 7, 4, 0, 0]], mask_rate=1.0)
    assert masked.positions.tolist() == [[1, 2, 3, 0, 0], [1, 0, 0, 0, 0]]
    assert masked.mask.sum(axis=1).tolist() == [3, 1]


@pytest.mark.parametrize("mask_rate", [0.0, -0.1, 1.1, float("nan")])
def test_rates_that_are_no_rates_are_refused(mask_rate):
    with pytest.raises(ValueError, match="mask_rate"):
        draw([[3, 7, 4]], mask_rate=mask_rate)
    with pytest.raises(ValueError, match="mask_rate"):
        draw_eval_mask(make_sequences([1]), mask_rate=mask_rate, seed=0)


def test_vocabulary_without_codes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=5 has no codes"):
        draw([[3, 7, 4]], vocab_size=5)


# Training


def test_exact_number_of_codes_in_ascending_order_without_repeats():
    tokens = some_tokens(rows=50)
    for mask_rate in (0.15, 0.5):
        masked = draw(tokens, mask_rate=mask_rate)
        assert masked.positions.shape[1] == num_mask_slots(64, mask_rate)
        for row in range(len(tokens)):
            positions = masked.positions[row][masked.mask[row]]
            assert len(positions) == np.round(mask_rate * (tokens[row] >= 5).sum())
            assert (np.diff(positions) > 0).all()
            assert (tokens[row][positions] >= 5).all()
            assert not masked.mask[row][len(positions) :].any()


def test_every_code_is_chosen_alike():
    tokens = np.array([[3, 7, 7, 4, 8, 9, 1, 10, 4, 0]])
    counts = np.zeros(10)
    for seed in range(2000):
        masked = draw(tokens, seed, mask_rate=0.4)
        counts[masked.positions[masked.mask]] += 1
    assert counts.sum() == 2 * 2000
    assert (counts[tokens[0] < 5] == 0).all()
    np.testing.assert_allclose(counts[tokens[0] >= 5] / 2000, 0.4, atol=0.05)


def test_eighty_percent_mask_ten_percent_random_ten_percent_themselves():
    tokens = np.full((200, 500), 42, np.int32)
    masked = draw(tokens, mask_rate=0.5)
    shown = masked.shown[masked.mask]
    assert len(shown) == 50_000
    is_random = (shown != 2) & (shown != 42)
    np.testing.assert_allclose((shown == 2).mean(), 0.8, atol=0.01)
    np.testing.assert_allclose(is_random.mean(), 0.1, atol=0.01)
    np.testing.assert_allclose((shown == 42).mean(), 0.1, atol=0.01)
    assert shown[is_random].min() == 5 and shown[is_random].max() == VOCAB_SIZE - 1
    np.testing.assert_allclose(shown[is_random].mean(), (5 + VOCAB_SIZE - 1) / 2, rtol=0.05)


def test_same_generator_same_masks_and_another_other_masks():
    tokens = some_tokens()
    for one, other in zip(draw(tokens, 3), draw(tokens, 3), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (draw(tokens, 3).positions != draw(tokens, 4).positions).any()


# Evaluation


def test_chosen_codes_show_the_mask_token():
    masked = mask_chosen(np.array([[False, True, True], [False, False, False]]), 4)
    assert masked.positions.tolist() == [[1, 2, 0, 0], [0, 0, 0, 0]]
    assert masked.shown.tolist() == [[2, 2, 0, 0], [0, 0, 0, 0]]
    assert masked.mask.tolist() == [[True, True, False, False], [False] * 4]


def subset(sequences, examples):
    """The sequences of these examples, by loops."""
    codes, visits_each, codes_each = [], [], []
    for example in examples:
        visits = range(sequences.example_offsets[example], sequences.example_offsets[example + 1])
        visits_each.append(len(visits))
        for v in visits:
            own = sequences.codes[sequences.visit_offsets[v] : sequences.visit_offsets[v + 1]]
            codes += own.tolist()
            codes_each.append(len(own))
    return sequences._replace(
        codes=np.array(codes, np.int32),
        visit_offsets=np.append(0, np.cumsum(codes_each)),
        example_offsets=np.append(0, np.cumsum(visits_each)),
        subject_ids=sequences.subject_ids[list(examples)],
    )


def by_subject(sequences, flags):
    bounds = sequences.visit_offsets[sequences.example_offsets]
    return {int(s): flags[bounds[e] : bounds[e + 1]].tolist() for e, s in enumerate(sequences.subject_ids)}


def test_evaluation_masks_do_not_depend_on_other_patients():
    sequences = make_sequences([5, 3, 0, 9, 2])
    everyone = by_subject(sequences, draw_eval_mask(sequences, mask_rate=0.4, seed=1))
    few = subset(sequences, [3, 0])
    for subject, flags in by_subject(few, draw_eval_mask(few, mask_rate=0.4, seed=1)).items():
        assert flags == everyone[subject]
    assert sum(everyone[103]) > 0


def test_evaluation_masks_have_the_rate_spare_special_tokens_and_follow_the_seed():
    sequences = make_sequences([2] * 20_000)
    specials = np.random.default_rng(0).random(len(sequences.codes)) < 0.5
    sequences = sequences._replace(codes=np.where(specials, 1, sequences.codes))
    flags = draw_eval_mask(sequences, mask_rate=0.15, seed=0)
    assert flags.dtype == bool and not flags[specials].any()
    np.testing.assert_allclose(flags[~specials].mean(), 0.15, atol=0.01)
    other = draw_eval_mask(sequences, mask_rate=0.15, seed=1)
    np.testing.assert_allclose((flags & other)[~specials].mean(), 0.15**2, atol=0.005)
    more = draw_eval_mask(sequences, mask_rate=0.3, seed=0)
    assert (more | ~flags).all() and more.sum() > flags.sum()


def test_no_patients_have_no_evaluation_masks():
    assert draw_eval_mask(make_sequences(np.zeros(0, int)), mask_rate=0.5, seed=0).shape == (0,)
