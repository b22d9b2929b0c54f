"""True probabilities of deterioration in simulated stays, exact (in single precision) under their generative model.

A forward filter carries P(state, record so far) through the hours of a stay: it is multiplied by the likelihood of what
the hour recorded, by the chance that the stay goes on, and by the transitions. At an index time K hours after admission
it holds the hours before K and no more, and P(deterioration within the horizon | record) is the mean of
`simulate_stay_chain.risk_ahead` under it. Four forms, one column each:

- `vitals`: given every vital sign so far, and which ones were not taken;
- `notes`: given the statements of every note so far (the words say nothing beyond them);
- `both`: given both;
- `latent`: at the true state.

That a stay is still going on after K hours, and whether its vital signs are charted at all, is known to all four.
The record is that of the whole stay: a model that reads the last 24 hours only has a little less.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ehrjax.data import simulate_stay_chain as chain
from ehrjax.data.simulate_stay_notes import TOPICS, statement_tables

HORIZON_HOURS = 24
FIRST_INDEX_HOUR, INDEX_EVERY_HOURS = 12, 6
MAX_HOURS = 336  # every stay ends by then; no index time is so late that its horizon would reach beyond
RECORDS = {"vitals": (True, False), "notes": (False, True), "both": (True, True)}  # name -> reads vitals, reads notes


class StayRecord(NamedTuple):
    """What n stays recorded. Hour h of stay i is row `offsets[i] + h` of the columns by hour."""

    offsets: np.ndarray  # int64 [n + 1]
    state: np.ndarray  # int16 [hours], never recorded: for `latent` only
    vitals: np.ndarray  # int16 [hours, 6], row of each vital sign's table: 0 = not taken
    has_vitals: np.ndarray  # bool [n], whether vital signs are charted
    note_row: np.ndarray  # int64 [notes], the hour (a row) that a note was written in; at most one an hour
    note_kind: np.ndarray  # int8 [notes]
    statements: np.ndarray  # int8 [notes, topics]


class IndexRows(NamedTuple):
    """Index times: stay (int64 [m]) and hours since its admission (int64 [m]), by stay, then hour."""

    stay: np.ndarray
    hour: np.ndarray


def index_rows(num_hours: np.ndarray) -> IndexRows:
    """Every `INDEX_EVERY_HOURS` from `FIRST_INDEX_HOUR` on, while a stay of so many hours (int [n]) goes on."""
    hours = np.arange(FIRST_INDEX_HOUR, MAX_HOURS - HORIZON_HOURS + 1, INDEX_EVERY_HOURS)
    stay, at = np.nonzero(hours < np.asarray(num_hours)[:, None])
    return IndexRows(stay, hours[at])


def oracle_probabilities(record: StayRecord, index: IndexRows) -> dict[str, np.ndarray]:
    """P(deterioration within `HORIZON_HOURS`) at each index row by each form, float32 [m] each."""
    risk = chain.risk_ahead(HORIZON_HOURS).astype(np.float32)
    onward = _onward()
    result = {name: np.empty(len(index.stay), np.float32) for name in RECORDS}
    active = np.flatnonzero(np.diff(record.offsets) > 0)
    belief = {name: np.tile(chain.entry_distribution().astype(np.float32), (len(active), 1)) for name in RECORDS}
    for hour in range(int(index.hour.max(initial=-1)) + 1):
        asked = np.flatnonzero(index.hour == hour)
        at = np.searchsorted(active, index.stay[asked])
        seen = _Hour(record, active, record.offsets[active] + hour)
        goes_on = np.diff(record.offsets)[active] > hour + 1
        for name, reads in RECORDS.items():
            result[name][asked] = belief[name][at] @ risk
            weighted = seen.weigh(belief[name], *reads)[goes_on]
            after = np.concatenate(
                [part @ move for part, move in zip(np.split(weighted, 2, 1), onward, strict=True)], 1
            )
            belief[name] = after / after.sum(1, keepdims=True)
        active = active[goes_on]
    latent = risk[record.state[record.offsets[index.stay] + index.hour]]
    return {**result, "latent": latent}


def _onward() -> tuple[np.ndarray, np.ndarray]:
    """P(the stay goes on, next state | state) within each constitution, which nobody leaves."""
    worse, discharged = chain.hazards()
    moves = ((1 - worse - discharged)[:, None] * chain.transitions()).astype(np.float32)
    half = chain.NUM_STATES // 2
    return moves[:half, :half], moves[half:, half:]


@lru_cache(maxsize=1)
def _vital_likelihoods() -> tuple[np.ndarray, ...]:
    """`vital_tables`, each row over its largest: six tails at once stay within single precision."""
    tables = (table.probability for table in chain.vital_tables().values())
    return tuple((table / np.maximum(table.max(1, keepdims=True), 1e-300)).astype(np.float32) for table in tables)


class _Hour:
    """Likelihood of what one hour shows of some stays (rows), by state."""

    def __init__(self, record: StayRecord, stays: np.ndarray, rows: np.ndarray):
        self.charted = np.flatnonzero(record.has_vitals[stays])
        observed = record.vitals[rows[self.charted]]
        self.vitals = np.ones((len(observed), chain.NUM_STATES), np.float32)
        for column, table in zip(observed.T, _vital_likelihoods(), strict=True):
            self.vitals *= table[column]
        first, last = np.searchsorted(record.note_row, rows), np.searchsorted(record.note_row, rows, side="right")
        self.noted = np.flatnonzero(last > first)
        notes = first[self.noted]
        tables = statement_tables().astype(np.float32)
        self.notes = np.ones((len(notes), chain.NUM_STATES), np.float32)
        for topic in range(len(TOPICS)):
            self.notes *= tables[record.note_kind[notes], topic, record.statements[notes, topic]]

    def weigh(self, belief: np.ndarray, reads_vitals: bool, reads_notes: bool) -> np.ndarray:
        """`belief` [rows, NUM_STATES] times the likelihood of what is read, in place."""
        if reads_vitals:
            belief[self.charted] *= self.vitals
        if reads_notes:
            belief[self.noted] *= self.notes
        return belief
