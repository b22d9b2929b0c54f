"""Scaling of note vectors: fitted on rows with notes, finite whatever is constant or far away."""

import numpy as np
import pytest

from ehrjax.data.note_scaler import NoteScaler

VECTORS = np.array([[1, 5, 0], [3, 5, 0], [77, 77, 77]], np.float32)
HAS_NOTES = np.array([True, True, False])


def test_rows_without_notes_count_neither_in_the_fit_nor_after():
    scaler = NoteScaler.fit(VECTORS, HAS_NOTES)
    np.testing.assert_array_equal(scaler.scale(VECTORS, HAS_NOTES), [[-1, 0, 0], [1, 0, 0], [0, 0, 0]])
    assert scaler == NoteScaler.fit(VECTORS[:2], HAS_NOTES[:2]) != NoteScaler.fit(VECTORS, np.ones(3, bool))


def test_an_entry_that_train_never_varied_stays_zero_and_the_others_are_bounded():
    scaler = NoteScaler.fit(VECTORS, HAS_NOTES)
    far = np.array([[1e6, 1e6, 1e6]], np.float32)
    np.testing.assert_array_equal(scaler.scale(far, np.ones(1, bool)), [[10, 0, 0]])


@pytest.mark.parametrize("num_rows", [0, 2])
def test_without_any_note_all_is_zero(num_rows):
    vectors, none = VECTORS[:num_rows], np.zeros(num_rows, bool)
    scaled = NoteScaler.fit(vectors, none).scale(VECTORS, np.ones(3, bool))
    np.testing.assert_array_equal(scaled, np.zeros((3, 3)))
    assert scaled.dtype == np.float32


def test_a_scaler_is_read_as_it_was_written(tmp_path):
    scaler = NoteScaler.fit(VECTORS, HAS_NOTES)
    scaler.save(tmp_path / "notes.npz")
    assert NoteScaler.load(tmp_path / "notes.npz") == scaler
    (tmp_path / "notes.npz").write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match=r"notes\.npz: is not a saved scaler of notes .*fit it again"):
        NoteScaler.load(tmp_path / "notes.npz")
    with pytest.raises(FileNotFoundError):
        NoteScaler.load(tmp_path / "absent.npz")


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="have width 2, those that the scaler was fitted on 3: fit it"):
        NoteScaler.fit(VECTORS, HAS_NOTES).scale(VECTORS[:, :2], HAS_NOTES)
