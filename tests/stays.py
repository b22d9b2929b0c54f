"""Random windows of hospital stays for the tests of batching and models."""

import numpy as np

from ehrjax.data.stay_batching import StayWindows

NUM_TIMES, NUM_VARIABLES, NUM_STATICS, NUM_SUMMARIES, NOTE_DIM = 5, 3, 2, 4, 8


def make_stays(lengths, *, has_notes=None, num_labels=1, seed=0):
    """StayWindows with so many time points each, without vitals where that is 0; labels are 0/1, all counted."""
    rng, lengths = np.random.default_rng(seed), np.asarray(lengths)
    num = len(lengths)
    has_notes = np.ones(num, bool) if has_notes is None else np.asarray(has_notes)
    time_mask = np.arange(NUM_TIMES) < lengths[:, None]
    grid = (num, NUM_TIMES, NUM_VARIABLES)

    def masked(values, mask):
        return np.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, 0).astype(values.dtype)

    return StayWindows(
        subject_ids=np.arange(100, 100 + num),
        times=np.zeros(num, np.int64),
        values=masked(rng.normal(size=grid).astype(np.float32), time_mask),
        observed=masked(rng.random(grid) < 0.6, time_mask),
        hours_since=masked(rng.uniform(0, 30, grid).astype(np.float32), time_mask),
        time_mask=time_mask,
        statics=rng.normal(size=(num, NUM_STATICS)).astype(np.float32),
        summaries=rng.normal(size=(num, NUM_SUMMARIES)).astype(np.float32),
        notes=masked(rng.normal(size=(num, NOTE_DIM)).astype(np.float32), has_notes),
        has_vitals=lengths > 0,
        has_notes=has_notes,
        labels=rng.integers(0, 2, (num, num_labels)).astype(np.float32),
        label_mask=np.ones((num, num_labels), bool),
    )
