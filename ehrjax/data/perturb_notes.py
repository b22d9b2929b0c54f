"""Notes as they might have gone on: everything after a patient's time removed, or replaced and added to."""

from dataclasses import replace

import numpy as np

from ehrjax.data.events import NO_VISIT
from ehrjax.data.notes import Notes
from ehrjax.data.perturb import CHANGES

_SECOND = 1_000_000
_LATER_SECONDS = 30 * 86_400  # new times lie within so many seconds after the patient's time
_ADDED = 2  # notes a patient


def change_notes_after(
    notes: Notes, subject_ids: np.ndarray, times: np.ndarray, *, change: str, seed: int = 0
) -> Notes:
    """The same notes of these patients only, those later than the own time (seconds, one a patient) changed.

    "removed": none of them is there. "replaced": they have other texts and other times (still later), and each patient
    has two more. Texts are those that the notes have, so vectors of texts stay what they are. Raises ValueError for an
    unknown `change`.
    """
    if change not in CHANGES:
        raise ValueError(f"change={change!r} is not known: use {' or '.join(CHANGES)}.")
    order = np.argsort(subject_ids)
    ids, cuts = np.asarray(subject_ids, np.int64)[order], np.asarray(times, np.int64)[order] * _SECOND
    place = np.minimum(np.searchsorted(ids, notes.subject_ids), max(len(ids) - 1, 0))
    is_theirs = np.isin(notes.subject_ids, ids)
    cut = cuts[place] if len(ids) else np.zeros(len(notes), np.int64)
    is_later = is_theirs & (notes.times > cut)
    if change == "removed":
        return _with_columns(notes, is_theirs & ~is_later)
    rng = np.random.default_rng(seed)
    kept = _with_columns(notes, is_theirs)
    later, cut = is_later[is_theirs], cut[is_theirs]
    num_texts = len(notes.texts)
    added = np.repeat(np.arange(len(ids)), _ADDED if num_texts else 0)
    return replace(
        kept,
        subject_ids=np.append(kept.subject_ids, ids[added]),
        times=np.append(np.where(later, cut + _wait(rng, len(cut)), kept.times), cuts[added] + _wait(rng, len(added))),
        visit_ids=np.append(kept.visit_ids, np.full(len(added), NO_VISIT)),
        text_ids=np.append(
            np.where(later, rng.integers(0, max(num_texts, 1), len(cut)), kept.text_ids),
            rng.integers(0, max(num_texts, 1), len(added)),
        ),
    )


def _with_columns(notes: Notes, keep: np.ndarray) -> Notes:
    columns = ("subject_ids", "times", "visit_ids", "text_ids")
    return replace(notes, **{column: getattr(notes, column)[keep] for column in columns})


def _wait(rng: np.random.Generator, count: int) -> np.ndarray:
    """Microseconds, at least one."""
    return rng.integers(1, _LATER_SECONDS * _SECOND, count)
