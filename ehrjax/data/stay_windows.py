"""Label rows to windows of hospital stays: what was measured and noted up to each index time, and nothing later.

A window reaches back so many hours from its index time, but not beyond the latest admission by then: an earlier stay
tells little, and how long this one has lasted tells something.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ehrjax.data.cutoff import whole_of
from ehrjax.data.labels import Labels
from ehrjax.data.note_scaler import NoteScaler
from ehrjax.data.notes import NoteJoin, Notes, Stays, notes_until, recent_vectors
from ehrjax.data.shards import NULL_TIME
from ehrjax.data.stay_batching import StayWindows
from ehrjax.data.tasks import ADMISSION_CODES, DISCHARGE_CODES, INPATIENT_CLASSES, match_codes
from ehrjax.data.timeline import NEVER, SortedTimes, Timeline, events_of_codes, find_stays
from ehrjax.data.variables import ICU_VARIABLES, VITALS, Variable, load_variables, map_codes
from ehrjax.data.vital_summaries import QuantileTransform, summarize
from ehrjax.data.vitals import Measurements, Scaler, Statics, collect_measurements, collect_statics, to_grid

VARIABLE_SETS = {"vitals": VITALS, "icu": ICU_VARIABLES}
NOTE_HALF_LIFE_HOURS = 24.0  # of a note's weight in the mean vector of a window
STAY_CLASSES = (*INPATIENT_CLASSES, "ENCOUNTER//icu*")
STAY_STARTS = (*STAY_CLASSES, *ADMISSION_CODES)


class NoteVectors(NamedTuple):
    """Notes with a vector for each distinct text of theirs."""

    notes: Notes
    vectors: Float[np.ndarray, "num_texts D"]


@dataclass(frozen=True)
class WindowSettings:
    """What a window holds. `mapping` is the user's file of `load_variables`, None where there is none.

    With `summaries`, values are normal scores of their ranks, and statistics of each variable over the window and its
    last hours stand beside them (`vital_summaries`).
    """

    variables: tuple[Variable, ...]
    window_hours: float
    bin_hours: float
    mapping: str | None = None
    summaries: bool = False

    @property
    def num_bins(self) -> int:
        """Time points of a window."""
        return max(1, math.ceil(self.window_hours / self.bin_hours - 1e-9))


def window_settings(
    variables: Sequence[str],
    *,
    window_hours: float,
    bin_hours: float,
    mapping: str | None = None,
    summaries: bool = False,
) -> WindowSettings:
    """Settings with variables by name, or by the name of one of `VARIABLE_SETS`.

    Raises ValueError for an unknown variable and for hours that are not positive, FileNotFoundError for the mapping.
    """
    for name, hours in (("window_hours", window_hours), ("bin_hours", bin_hours)):
        if not (hours > 0 and math.isfinite(hours)):
            raise ValueError(f"{name}={hours} must be above 0 hours and finite.")
    if isinstance(variables, str):
        raise ValueError(f"variables={variables!r} must be a tuple of names, such as ('vitals',).")
    names = [one for name in variables for one in VARIABLE_SETS.get(name, (name,))]
    return WindowSettings(load_variables(names, mapping), window_hours, bin_hours, mapping, summaries)


class Collected(NamedTuple):
    """What a store has for label rows: not yet scaled, so that a scaler can be fitted on it."""

    labels: Labels
    measurements: Measurements
    statics: Statics
    starts: np.ndarray  # int64 [N], seconds: of each row's stay, NULL_TIME where no admission is recorded


def collect(store, labels: Labels, settings: WindowSettings) -> Collected:
    """Measurements and statics of label rows up to each row's index time.

    Raises ValueError naming a subject that is not in the store, or where no code of the store measures any variable.
    """
    if not (map_codes(settings.variables, store.codes).variable >= 0).any():
        raise ValueError(
            f"none of the store's {len(store.codes)} codes measures {settings.variables[0].name} or another of the "
            f"{len(settings.variables)} variables: name the codes in a mapping file (stays.mapping)."
        )
    starts = stay_starts(store, labels.subject_ids, labels.times)
    measurements = collect_measurements(
        store,
        labels.subject_ids,
        labels.times,
        settings.variables,
        window_hours=settings.window_hours,
        starts=starts,
    )
    statics = collect_statics(store, labels.subject_ids, labels.times, path=settings.mapping)
    return Collected(labels, measurements, statics, starts)


@dataclass(frozen=True)
class WindowScaler:
    """What train's windows decide: means and deviations, and with `WindowSettings.summaries` the ranks as well.

    `notes` is None where it was fitted without notes: their vectors then stay as they are.
    """

    scaler: Scaler
    ranks: QuantileTransform | None = None  # of measurements
    summaries: QuantileTransform | None = None
    notes: NoteScaler | None = None

    @property
    def files(self) -> dict[str, Scaler | QuantileTransform | NoteScaler]:
        """The parts, each with a `save(path)`, by the file name that `load` looks for."""
        parts = {
            "scaler.json": self.scaler,
            "ranks.npz": self.ranks,
            "summaries.npz": self.summaries,
            "notes.npz": self.notes,
        }
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def load(cls, folder: str | Path, settings: WindowSettings, *, reads_notes: bool = False) -> "WindowScaler":
        """From a folder of `files`. Raises FileNotFoundError, or ValueError naming the file."""
        folder, names = Path(folder), ("ranks.npz", "summaries.npz") if settings.summaries else ()
        ranks = {name.removesuffix(".npz"): QuantileTransform.load(folder / name) for name in names}
        notes = NoteScaler.load(folder / "notes.npz") if reads_notes else None
        return cls(Scaler.load(folder / "scaler.json"), **ranks, notes=notes)

    def __eq__(self, other: object) -> bool:
        if (
            not isinstance(other, WindowScaler)
            or (self.scaler, self.notes) != (other.scaler, other.notes)
            or self.files.keys() != other.files.keys()
        ):
            return False
        pairs = ((self.ranks, other.ranks), (self.summaries, other.summaries))
        return all(
            a.names == b.names and np.array_equal(a.quantiles, b.quantiles, equal_nan=True) for a, b in pairs if a
        )


def fit_scaler(train: Collected, settings: WindowSettings, notes: NoteVectors | None = None) -> WindowScaler:
    """What scales windows, fitted on these label rows: train's. Raises ValueError where there are none."""
    rows, measurements, ranks, summaries = np.arange(len(train.labels.times)), train.measurements, None, None
    if settings.summaries:
        summaries = QuantileTransform.fit_summaries(summarize(measurements), rows)
        ranks = QuantileTransform.fit_measurements(measurements, rows)
        measurements = ranks.encode_measurements(measurements)
    of_notes = None if notes is None else NoteScaler.fit(*_note_vectors(train, notes))
    return WindowScaler(Scaler.fit(measurements, train.statics, rows), ranks, summaries, of_notes)


def make_windows(
    found: Collected, settings: WindowSettings, scaler: WindowScaler, notes: NoteVectors | None = None
) -> StayWindows:
    """One window a label row, in the rows' order, with the weighted mean of the vectors of its stay's notes so far.

    A note weighs half as much as one written `NOTE_HALF_LIFE_HOURS` later. Without `notes` the width is 0.
    """
    labels, measurements = found.labels, found.measurements
    if scaler.ranks is not None:
        measurements = scaler.ranks.encode_measurements(measurements)
    bins = {"bin_hours": settings.bin_hours, "num_bins": settings.num_bins}
    grid = to_grid(measurements, found.statics, scaler.scaler, **bins)
    summaries = np.zeros((len(labels.times), 0), np.float32)
    if scaler.summaries is not None:
        summaries = scaler.summaries.encode_summaries(summarize(found.measurements))
    vectors, has_notes = np.zeros((len(labels.times), 0), np.float32), np.zeros(len(labels.times), bool)
    if notes is not None:
        vectors, has_notes = _note_vectors(found, notes)
        vectors = vectors if scaler.notes is None else scaler.notes.scale(vectors, has_notes)
    return StayWindows(
        subject_ids=labels.subject_ids,
        times=labels.times,
        values=grid.values,
        observed=grid.observed,
        hours_since=grid.hours_since,
        time_mask=grid.time_mask,
        statics=grid.statics,
        summaries=summaries,
        notes=vectors,
        has_vitals=grid.has_vitals,
        has_notes=has_notes,
        labels=labels.values,
        label_mask=labels.mask,
    )


def _note_vectors(found: Collected, notes: NoteVectors) -> tuple[Float[np.ndarray, "N D"], Bool[np.ndarray, "N"]]:
    """Of each label row's stay up to its index time, not yet scaled, and which rows have any."""
    join = _join_notes(found, notes.notes)
    return recent_vectors(join, notes.notes, notes.vectors, half_life_hours=NOTE_HALF_LIFE_HOURS)


def _join_notes(found: Collected, notes: Notes) -> NoteJoin:
    labels = found.labels
    stays = Stays(found.starts, labels.times, np.full(len(labels.times), -1))
    return notes_until(notes, labels.subject_ids, labels.times, stays=stays)


def count_notes(store, found: Collected, notes: Notes) -> dict[str, int]:
    """How many notes the rows' patients have, how many a row reads, and how many others come after a discharge.

    Those came when no stay was open any more. The rest are of an open stay, but too late for its last index time (or
    the stay has none), or from before the first stay.
    """
    of_patients = np.flatnonzero(np.isin(notes.subject_ids, found.labels.subject_ids))
    read = np.unique(_join_notes(found, notes).rows)
    unread = np.setdiff1d(of_patients, read)
    after = _is_after_discharge(store, notes.subject_ids[unread], notes.times[unread] // 1_000_000)
    return {"notes": len(of_patients), "read": len(read), "after_discharge": int(after.sum())}


def _is_after_discharge(store, subject_ids: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Whether a patient has had a stay by each time (seconds), and all that began by then have ended before it."""
    codes, is_after = [str(code) for code in store.codes], np.zeros(len(times), bool)
    masks = [match_codes(patterns, codes) for patterns in (STAY_CLASSES, ADMISSION_CODES, DISCHARGE_CODES)]
    for shard in whole_of(store).shards:  # a cut-off ends no stay
        chosen = np.flatnonzero(np.isin(subject_ids, shard.subject_ids))
        patients = np.searchsorted(shard.subject_ids, subject_ids[chosen])
        rows, starts, ends = find_stays(shard, Timeline.of(shard), *masks)
        begun = SortedTimes(rows, starts).count_until(patients, times[chosen])
        has_end = ends != NEVER
        ended = SortedTimes(rows[has_end], ends[has_end]).count_until(patients, times[chosen] - 1)
        is_after[chosen] = (begun > 0) & (begun == ended)
    return is_after


def stay_starts(store, subject_ids: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Each row's latest admission by its time, of any hospital or intensive care stay (int64 seconds, or NULL_TIME)."""
    is_start = match_codes(STAY_STARTS, [str(code) for code in store.codes])
    starts = np.full(len(times), NULL_TIME)
    for shard in store.shards:
        rows = np.flatnonzero(np.isin(subject_ids, shard.subject_ids))
        patients = np.searchsorted(shard.subject_ids, subject_ids[rows])
        admissions = SortedTimes(*events_of_codes(shard, is_start, Timeline.of(shard).visit_rows))
        starts[rows] = admissions.last_until(patients, times[rows])
    return starts
