"""Packed rows of random token sequences for the tests of models and objectives."""

import numpy as np

from ehrjax.data.token_batching import TokenBatches, count_tokens
from tests.sequences import VOCAB_SIZE, make_sequences

JUNK = 7  # in padding, where a mask covers it


def make_token_batches(
    visits_each, *, level="patient", num_labels=1, seed=0, max_codes=4, row_tokens=None, batch_size=None, **options
):
    """TokenBatches of random sequences with so many visits each (`make_sequences`; ids below `VOCAB_SIZE`).

    `row_tokens` defaults to the longest sequence, `batch_size` to all rows; `options` go to `TokenBatches`.
    """
    sequences = make_sequences(visits_each, level=level, num_labels=num_labels, seed=seed, max_codes=max_codes)
    if row_tokens is None:
        row_tokens = int(count_tokens(sequences).max())
    if options.get("mask_rate"):
        options.setdefault("vocab_size", VOCAB_SIZE)
    if options.get("is_fresh") is True:
        options["is_fresh"] = np.ones(len(sequences.ages), bool)
    batch_size = batch_size or len(sequences.subject_ids)
    return TokenBatches(sequences, row_tokens=row_tokens, batch_size=batch_size, seed=seed, level=level, **options)


def make_token_batch(visits_each, **options):
    """The first evaluation batch of `make_token_batches`; `is_fresh=True` makes every visit a target."""
    return next(make_token_batches(visits_each, **options).eval_batches())


def pad_token_batch(batch, *, rows=0, tokens=0, visits=0, slots=0, masked=0, level="patient"):
    """The batch with so many more empty rows, tokens, visits, sequence slots and masked slots.

    Padding holds junk where a mask covers it. `level` says what the labels belong to.
    """

    def pad(array, columns, value=0):
        widths = [(0, rows), (0, columns)] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, widths[: array.ndim], constant_values=value)

    labels = visits if level == "visit" else slots
    return batch._replace(
        tokens=pad(batch.tokens, tokens),
        ages=pad(batch.ages, tokens, JUNK),
        visit_ids=pad(batch.visit_ids, tokens, JUNK),
        positions=pad(batch.positions, tokens),
        segment_ids=pad(batch.segment_ids, tokens),
        code_visits=pad(batch.code_visits, tokens, -1),
        visit_ends=pad(batch.visit_ends, visits),
        visit_mask=pad(batch.visit_mask, visits),
        visit_segments=pad(batch.visit_segments, visits),
        visit_ages=pad(batch.visit_ages, visits, 55.0),
        visit_gap_days=pad(batch.visit_gap_days, visits, 3.0),
        labels=pad(batch.labels, labels, 1),
        label_mask=pad(batch.label_mask, labels),
        example_mask=np.pad(batch.example_mask, (0, rows)),
        example_ids=pad(batch.example_ids, slots, -1),
        masked=batch.masked
        and type(batch.masked)(
            pad(batch.masked.positions, masked), pad(batch.masked.shown, masked, JUNK), pad(batch.masked.mask, masked)
        ),
        next_visits=batch.next_visits
        and type(batch.next_visits)(pad(batch.next_visits.codes, tokens), pad(batch.next_visits.visits, visits)),
    )
