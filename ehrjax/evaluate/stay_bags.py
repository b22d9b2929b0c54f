"""What the baselines see of a window of a stay: counts and summaries of exactly what the model is shown."""

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int

from ehrjax.data.stay_batching import StayWindows
from ehrjax.evaluate.bags import Features
from ehrjax.types import Array

_CHUNK_ROWS = 2048
RECENT_SHARES = (4, 2)  # the last quarter and the last half of the window


def stay_features(stays: StayWindows, rows: Int[Array, "n"] | None = None) -> Features:
    """One row a window (of `rows`), K variables as the columns of the counts.

    `counts` are time points with a measurement, `recent` those in the last quarter and half of the window. `dense`
    starts as in `bags.DENSE_NAMES`, with statics[0] for the age, time points for visits, measurements for codes and
    time points since the last measurement for gaps; then the other statics, the summaries, the note vector, and of each
    variable the mean, standard deviation, least, greatest, first and last scaled value, 0 (train's mean) where there is
    none, and the log of hours since.
    """
    rows = np.arange(len(stays.subject_ids)) if rows is None else np.asarray(rows)
    parts = [_features(stays.take(rows[i : i + _CHUNK_ROWS])) for i in range(0, max(len(rows), 1), _CHUNK_ROWS)]
    counts, dense, recent = zip(*parts, strict=True)
    windows = (sp.vstack(part).tocsr() for part in zip(*recent, strict=True))
    return Features(sp.vstack(counts).tocsr(), np.concatenate(dense), tuple(windows))


def _features(stays: StayWindows) -> Features:
    mask = np.asarray(stays.time_mask, bool)
    observed = np.asarray(stays.observed, bool) & mask[:, :, None]
    lengths = mask.sum(axis=1)
    age_of_bin = lengths[:, None] - 1 - np.arange(mask.shape[1])  # time points before the last one
    recent = [observed & (age_of_bin < -(-mask.shape[1] // share))[:, :, None] for share in RECENT_SHARES]
    counts, *late = (sp.csr_matrix(each.sum(axis=1, dtype=np.float32)) for each in (observed, *recent))
    has_any = observed.any(axis=2)
    since = np.where(has_any, age_of_bin, mask.shape[1]).min(axis=1, initial=mask.shape[1])
    statics, summaries, notes = (np.asarray(each) for each in (stays.statics, stays.summaries, stays.notes))
    columns = (
        statics[:, 0] if statics.shape[1] else np.zeros(len(mask)),
        has_any.sum(axis=1),
        observed.sum(axis=(1, 2)),
        lengths,
        since,
    )
    dense = [np.stack(columns, axis=1), statics[:, 1:], summaries, notes, *_of_grid(stays, observed, lengths)]
    return Features(counts, np.concatenate(dense, axis=1).astype(np.float32), tuple(late))


def _of_grid(stays: StayWindows, observed: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Arrays [n, K]."""
    num_times = observed.shape[1]
    if not num_times:
        return []
    values = np.asarray(stays.values)
    count, has_any = observed.sum(axis=1), observed.any(axis=1)
    mean = np.where(observed, values, 0).sum(axis=1) / np.maximum(count, 1)
    spread = np.sqrt(np.where(observed, (values - mean[:, None]) ** 2, 0).sum(axis=1) / np.maximum(count, 1))
    last_bin = np.maximum(lengths - 1, 0)[:, None, None]
    since = np.take_along_axis(np.asarray(stays.hours_since), last_bin, axis=1)[:, 0]
    first_at = observed.argmax(axis=1)[:, None]
    last_at = (num_times - 1 - observed[:, ::-1].argmax(axis=1))[:, None]
    return [
        mean,
        spread,
        np.where(has_any, np.where(observed, values, np.inf).min(axis=1), 0),
        np.where(has_any, np.where(observed, values, -np.inf).max(axis=1), 0),
        np.where(has_any, np.take_along_axis(values, first_at, axis=1)[:, 0], 0),
        np.where(has_any, np.take_along_axis(values, last_at, axis=1)[:, 0], 0),
        np.log1p(np.maximum(since, 0)),
    ]
