"""Several patients in one row, so that a row is full whatever the lengths of its patients.

Beside speed, packed batches mix patients of all lengths. Batches of patients of like length do not: a record's length
tells of what came after most of its index times, so with labels at every visit the steps pulled to and fro between
lengths, and validation loss with them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from ehrjax.data.timeline import expand
from ehrjax.types import VisitSequences

ROOMY = 1.25  # codes that fit into a row, over those of an average row
CHUNK_ITEMS = 4096  # packed among themselves: bounds the time, and leaves enough to choose from


class PackedVisits(NamedTuple):
    """Rows of one or more examples. Row r holds `members[offsets[r]:offsets[r + 1]]` (numbers of examples)."""

    sequences: VisitSequences  # one "example" a row, labels at visits, `segment_ids` set
    members: Int[np.ndarray, "E"]
    offsets: Int[np.ndarray, "rows+1"]

    def examples_of(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
        """The examples in these rows (negative rows are padding)."""
        rows = np.asarray(rows)
        rows = rows[rows >= 0]
        return self.members[expand(self.offsets[rows], np.diff(self.offsets)[rows])[0]]


def pack_visits(sequences: VisitSequences, *, level: str = "patient") -> PackedVisits:
    """Pack whole examples, longest first, into the first row with room for their visits and codes.

    A row has room for as many visits as the longest example, and for `ROOMY` times the codes that such a row holds on
    average; an example of more codes has a row of its own. Patient-level labels move to the example's last visit.
    """
    if level not in ("patient", "visit"):
        raise ValueError(f"level={level!r} is not known: use 'patient' or 'visit'.")
    num_visits = np.diff(sequences.example_offsets)
    num_codes = np.diff(sequences.visit_offsets[sequences.example_offsets])
    room_visits = int(num_visits.max(initial=1))
    room_codes = ROOMY * room_visits * num_codes.sum() / max(num_visits.sum(), 1)
    row = first_fit((num_visits, num_codes), (room_visits, int(room_codes)))
    members = np.lexsort((-num_visits, row))
    offsets = np.append(0, np.cumsum(np.bincount(row)))
    visits, owner = expand(sequences.example_offsets[members], num_visits[members])
    codes_each = np.diff(sequences.visit_offsets)[visits]
    codes, _ = expand(sequences.visit_offsets[visits], codes_each)
    if level == "visit":
        labels, mask = sequences.labels[visits], sequences.label_mask[visits]
    else:
        is_last = np.append(owner[1:] != owner[:-1], True)
        labels, mask = sequences.labels[members][owner], sequences.label_mask[members][owner] & is_last[:, None]
    row_ends = np.append(0, np.cumsum(num_visits[members]))[offsets]
    first = members[offsets[:-1]]
    packed = VisitSequences(
        codes=sequences.codes[codes],
        visit_offsets=np.append(0, np.cumsum(codes_each)),
        example_offsets=row_ends,
        ages=sequences.ages[visits],
        gap_days=sequences.gap_days[visits],
        subject_ids=sequences.subject_ids[first],
        times=sequences.times[first],
        labels=labels,
        label_mask=mask,
        segment_ids=(owner - np.repeat(offsets[:-1], np.diff(row_ends)) + 1).astype(np.int32),
    )
    return PackedVisits(packed, members, offsets)


def first_fit(sizes: Sequence[Int[np.ndarray, "n"]], room: Sequence[int]) -> Int[np.ndarray, "n"]:
    """Row of each item: largest first (by the first of `sizes`), into the earliest row with room for all its sizes.

    Items are packed `CHUNK_ITEMS` at a time. An item larger than `room` gets a row of its own.
    """
    wanted = np.stack([np.asarray(size, np.int64) for size in sizes])
    rows, num_rows = np.empty(wanted.shape[1], np.int64), 0
    for start in range(0, wanted.shape[1], CHUNK_ITEMS):
        chunk = slice(start, start + CHUNK_ITEMS)
        rows[chunk] = num_rows + _first_fit(wanted[:, chunk], np.array(room))
        num_rows = rows[chunk].max() + 1
    return rows


def _first_fit(wanted: Int[np.ndarray, "k n"], room: Int[np.ndarray, "k"]) -> Int[np.ndarray, "n"]:
    rows, num_rows = np.empty(wanted.shape[1], np.int64), 0
    left = np.empty(wanted.shape, np.int64)
    for item in np.lexsort((-wanted[-1], -wanted[0])):
        size = wanted[:, item]
        fits = (left[:, :num_rows] >= size[:, None]).all(axis=0)
        row = int(fits.argmax()) if fits.any() else num_rows
        if row == num_rows:
            left[:, row] = room
            num_rows += 1
        left[:, row] -= size
        rows[item] = row
    return rows
