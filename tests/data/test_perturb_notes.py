"""Later notes removed or replaced: earlier ones stay as they are, and a join up to the index time cannot tell."""

import numpy as np
import pytest

from ehrjax.data.notes import make_notes, notes_until
from ehrjax.data.perturb import CHANGES
from ehrjax.data.perturb_notes import change_notes_after

SECOND = 1_000_000
SUBJECTS, TIMES = np.array([1, 1, 1, 2, 3]), np.array([10, 20, 30, 20, 5])
NOTES = make_notes(SUBJECTS, TIMES * SECOND, ["a", "b", "c", "a", "d"])


def rows_of(notes, subject):
    chosen = notes.subject_ids == subject
    return list(zip((notes.times[chosen] // SECOND).tolist(), notes.text_of(np.flatnonzero(chosen)), strict=True))


def test_removed_leaves_earlier_notes_of_these_patients_only():
    changed = change_notes_after(NOTES, np.array([2, 1]), np.array([19, 20]), change="removed")
    assert rows_of(changed, 1) == [(10, "a"), (20, "b")] and rows_of(changed, 2) == [] and rows_of(changed, 3) == []


def test_replaced_changes_and_adds_later_notes():
    changed = change_notes_after(NOTES, np.array([1, 2]), np.array([20, 20]), change="replaced")
    assert rows_of(changed, 1)[:2] == [(10, "a"), (20, "b")] and rows_of(changed, 2)[:1] == [(20, "a")]
    assert len(rows_of(changed, 1)) == 5 and len(rows_of(changed, 2)) == 3
    later = changed.times[~np.isin(changed.times, [10 * SECOND, 20 * SECOND])]
    assert (later > 20 * SECOND).all() and changed.texts is NOTES.texts


@pytest.mark.parametrize("change", CHANGES)
def test_a_join_up_to_the_index_time_is_the_same(change):
    ids, cuts = np.array([1, 2]), np.array([20, 20])
    changed = change_notes_after(NOTES, ids, cuts, change=change)
    shown = []
    for notes in (NOTES, changed):
        join = notes_until(notes, ids, cuts)
        shown.append((join.offsets.tolist(), notes.text_of(join.rows)))
    assert shown[0] == shown[1] == ([0, 2, 3], ["a", "b", "a"])
    late = [notes_until(notes, ids, cuts + 100 * 86_400).offsets[-1] for notes in (NOTES, changed)]
    assert late[0] != late[1], "a join that looks ahead can tell"


def test_no_patients_no_notes_and_an_unknown_change():
    nobody = np.zeros(0, np.int64)
    assert len(change_notes_after(NOTES, nobody, nobody, change="replaced")) == 0
    empty = make_notes(nobody, nobody, [])
    assert len(change_notes_after(empty, np.array([1]), np.array([5]), change="replaced")) == 0
    with pytest.raises(ValueError, match="change='shuffled' is not known"):
        change_notes_after(NOTES, SUBJECTS[:1], TIMES[:1], change="shuffled")
