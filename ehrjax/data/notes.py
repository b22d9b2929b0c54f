"""Clinical notes: a table on disk with every source row accounted for, joined to index times without looking ahead.

notes/notes.parquet       subject_id, time (UTC), visit_id, text_id, file, row: one row a note
notes/texts.arrow         distinct texts and their content hash, memory-mapped; text_id is the row
notes/quarantine.parquet  file, row, reason of every source row that gave no note
notes/manifest.json       schema version, source, and the counts that `Notes.report` holds
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, Shaped
from scipy import sparse

from ehrjax.data.build import fingerprint, list_files
from ehrjax.data.events import NO_VISIT
from ehrjax.data.ledger import quarantine_table
from ehrjax.data.readers.notes import NoteBatch, read_notes
from ehrjax.data.timeline import SortedTimes, expand
from ehrjax.data.workspace import naming_the_folder, workspace

SCHEMA_VERSION = 1  # raise it when reading makes something else of the same files: notes are then read anew
_HASH_BYTES = 16
_TEXTS = pa.schema([("text", pa.large_string()), ("hash", pa.binary(_HASH_BYTES))])
_SECOND = 1_000_000
_DAWN, _NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True)
class Notes:
    """Notes in the order of their sources. A text that occurs several times is stored, hashed and embedded once."""

    subject_ids: Int[np.ndarray, "num_notes"]
    times: Int[np.ndarray, "num_notes"]  # microseconds since 1970 (UTC) from which on the note may be used
    visit_ids: Int[np.ndarray, "num_notes"]  # the source's encounter, negative where there is none
    text_ids: Int[np.ndarray, "num_notes"]  # row in `texts`
    texts: pa.ChunkedArray  # distinct texts
    hashes: pa.ChunkedArray  # 16 bytes a distinct text: BLAKE2b of its UTF-8
    report: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.times)

    def text_of(self, rows: Int[np.ndarray, "n"]) -> list[str]:
        """Texts of these notes."""
        return self.texts.take(pa.array(self.text_ids[rows])).to_pylist()


class Stays(NamedTuple):
    """The stay that each index row belongs to. Times are int64 seconds, or datetime64 (NaT = unknown)."""

    starts: Shaped[np.ndarray, "M"]
    ends: Shaped[np.ndarray, "M"]
    visit_ids: Int[np.ndarray, "M"]  # negative where the source gives none


class NoteJoin(NamedTuple):
    """Index row m may use the notes `rows[offsets[m]:offsets[m + 1]]`, oldest first."""

    offsets: Int[np.ndarray, "M+1"]
    rows: Int[np.ndarray, "num_pairs"]  # row in Notes
    num_after_discharge: int  # notes that carry the id of one of the stays and a time after its end
    num_unknown_subject: int  # notes of subjects that have no index row


def build_notes(
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    note_codes: Sequence[str] = ("NOTE",),
) -> Notes:
    """Read tables of notes (see `readers.notes.read_notes`) into the folder `out`, or reuse it where nothing changed.

    A note with subject, time, visit and text of an earlier one is quarantined as `duplicate_row`. Memory holds the
    notes' numbers and one batch of texts. Raises ValueError and FileNotFoundError for what is wrong with the source
    and OSError where `out` cannot be written.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    paths, out = [Path(path) for path in paths], Path(out)
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{missing[0]}: no such file or folder: give a table of notes or its folder.")
    if inside := [path for path in paths if out.resolve().is_relative_to(path.resolve())]:
        raise ValueError(f"out={out} lies inside the source {inside[0]}: put the notes elsewhere.")
    settings = {"columns": dict(columns or {}), "note_codes": list(note_codes)}
    files = [(str(path.resolve()), list_files(path)) for path in paths]
    source = {"fingerprint": fingerprint("notes", files), "settings": settings}
    if _read_manifest(out).get("source") == source:
        return open_notes(out)
    with workspace(out) as folder:
        target = folder / "store"
        writer = _Writer(target / "texts.arrow")
        for path in paths:
            for batch in read_notes(path, columns=columns, note_codes=note_codes):
                writer.add(batch)
        report = writer.finish(target)
        if not report["num_notes"]:
            raise ValueError(f"{', '.join(map(str, paths))}: no note in {len(report['files'])} files: {report}.")
        manifest = {"schema_version": SCHEMA_VERSION, "source": source, "report": report}
        (target / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return open_notes(out)


def open_notes(path: str | Path) -> Notes:
    """Notes that `build_notes` wrote; texts stay on disk until they are asked for."""
    path = Path(path)
    manifest = _read_manifest(path)
    if not manifest:
        raise ValueError(f"{path}: holds no notes of schema {SCHEMA_VERSION}: build them with build_notes.")
    table = pq.read_table(path / "notes.parquet")
    texts = pa.ipc.open_file(pa.memory_map(str(path / "texts.arrow"))).read_all()
    times = table["time"].cast(pa.timestamp("us")).cast(pa.int64())
    subject_ids, visit_ids, text_ids = (table[name].to_numpy() for name in ("subject_id", "visit_id", "text_id"))
    return Notes(subject_ids, times.to_numpy(), visit_ids, text_ids, texts["text"], texts["hash"], manifest["report"])


def make_notes(
    subject_ids: Int[np.ndarray, "num_notes"],
    times: Shaped[np.ndarray, "num_notes"],
    texts: Sequence[str],
    visit_ids: Int[np.ndarray, "num_notes"] | None = None,
) -> Notes:
    """Notes from memory; times are int64 microseconds or datetime64. ValueError names a note without time or text."""
    times = np.asarray(times)
    times = _to_microseconds(times, _DAWN) if times.dtype.kind == "M" else times.astype(np.int64)
    visit_ids = np.full(len(times), NO_VISIT) if visit_ids is None else np.asarray(visit_ids, np.int64)
    lengths = {len(subject_ids), len(times), len(texts), len(visit_ids)}
    if len(lengths) > 1:
        raise ValueError(f"subject_ids, times, texts and visit_ids differ in length: {sorted(lengths)}.")
    for i in range(len(times)):
        if times[i] == _DAWN or not texts[i].strip():
            raise ValueError(f"note {i} has no {'time' if times[i] == _DAWN else 'text'}: leave it out.")
    text_ids, distinct = pd.factorize(np.array(texts, object))
    hashes = pa.chunked_array([pa.array([_hash(text) for text in distinct], pa.binary(_HASH_BYTES))])
    column = pa.chunked_array([pa.array(distinct, pa.large_string())])
    return Notes(np.asarray(subject_ids, np.int64), times, visit_ids, text_ids.astype(np.int64), column, hashes)


# Joining


def notes_until(
    notes: Notes,
    subject_ids: Int[np.ndarray, "M"],
    index_times: Shaped[np.ndarray, "M"],
    *,
    window_hours: float | None = None,
    stays: Stays | None = None,
) -> NoteJoin:
    """Notes that each index row may use: of its subject, index - window <= time <= index, and of its stay.

    `index_times` are int64 seconds since 1970, as in `VisitSequences`, or datetime64 of any unit. With `stays`, a note
    belongs to a stay by their ids, or, where one of the two has none, by a time not before the stay's start; either
    way it joins only up to the stay's end. Raises ValueError for lengths that differ and an index without a time.
    """
    index = _to_microseconds(np.asarray(index_times), _DAWN)
    subject_ids = np.asarray(subject_ids)
    if lengths := {len(subject_ids), len(index), *map(len, stays or ())} - {len(index)}:
        raise ValueError(
            f"{len(index)} index times, but {sorted(lengths)[0]} subjects or stays: give one of each a row."
        )
    if (index == _DAWN).any():
        raise ValueError(f"index row {int((index == _DAWN).argmax())} has no time: leave it out.")
    subjects, note_subject = np.unique(notes.subject_ids, return_inverse=True)
    row_subject = np.searchsorted(subjects, subject_ids)
    row_subject[~np.isin(subject_ids, subjects)] = len(subjects)
    first, last, order = _spans(note_subject, notes.times, row_subject, index, window_hours)
    pairs, owner = expand(first, last - first)
    rows = order[pairs]
    num_after = 0
    if stays is not None:
        starts, ends = _to_microseconds(stays.starts, _DAWN), _to_microseconds(stays.ends, _NEVER)
        stays = Stays(starts, ends, np.asarray(stays.visit_ids))
        keep = _is_of_stay(notes, rows, stays, owner)
        rows, owner = rows[keep], owner[keep]
        num_after = _num_after_discharge(notes, stays)
    offsets = np.append(0, np.cumsum(np.bincount(owner, minlength=len(index))))
    return NoteJoin(offsets, rows, num_after, int((~np.isin(notes.subject_ids, subject_ids)).sum()))


def recent_vectors(
    join: NoteJoin, notes: Notes, embeddings: Float[np.ndarray, "num_texts D"], *, half_life_hours: float
) -> tuple[Float[np.ndarray, "M D"], Bool[np.ndarray, "M"]]:
    """Weighted mean vector of each index row's notes (float32; zeros without a note), and which rows have a note.

    A note weighs half as much as one written `half_life_hours` later. `embeddings` has a vector a distinct text.
    """
    rows, counts = join.rows, np.diff(join.offsets)
    has_notes = counts > 0
    latest = np.repeat(notes.times[rows[join.offsets[1:][has_notes] - 1]], counts[has_notes])
    # Of the row's latest note, not of the index time: a sum of weights is then at least 1 however old the notes are.
    age_hours = (latest - notes.times[rows]) / (3600 * _SECOND)
    weights = 0.5 ** (age_hours / half_life_hours)
    if len(rows):
        weights /= np.repeat(np.add.reduceat(weights, join.offsets[:-1][has_notes]), counts[has_notes])
    vectors = sum_rows(join.offsets, notes.text_ids[rows], embeddings, weights.astype(np.float32))
    return vectors.astype(np.float32, copy=False), has_notes


def sum_rows(offsets, rows, values: Shaped[np.ndarray, "n D"], weights=None) -> Shaped[np.ndarray, "M D"]:
    """Sum over each index row's notes of `values[row]`, times its weight [num_pairs] where there are any."""
    if len(rows) and (rows.min() < 0 or rows.max() >= len(values)):
        raise ValueError(f"row {rows.max()} of the notes has no values: there are {len(values)}; give one a note.")
    weights = np.ones(len(rows), values.dtype) if weights is None else weights
    matrix = sparse.csr_matrix((weights, rows, offsets), shape=(len(offsets) - 1, len(values)))
    return np.asarray(matrix @ values)


def _spans(note_subject, times, row_subject, index, window_hours) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each row's notes as a span of `order` (notes by subject and time). Times enter by rank: with microseconds, a
    subject and a time would not fit into the one integer that `SortedTimes` makes of them."""
    distinct, note_rank = np.unique(times, return_inverse=True)
    table = SortedTimes(note_subject, note_rank)
    first_of_subject = np.searchsorted(table.rows, row_subject, side="left")
    last = first_of_subject + table.count_until(row_subject, np.searchsorted(distinct, index, side="right") - 1)
    if window_hours is None:
        return first_of_subject, last, table.order
    start = index - round(window_hours * 3600 * _SECOND)
    before = table.count_until(row_subject, np.searchsorted(distinct, start, side="left") - 1)
    return first_of_subject + before, last, table.order


def _is_of_stay(notes: Notes, rows: np.ndarray, stays: Stays, owner: np.ndarray) -> np.ndarray:
    time, note_visit, stay_visit = notes.times[rows], notes.visit_ids[rows], stays.visit_ids[owner]
    by_time = ((note_visit < 0) | (stay_visit < 0)) & (time >= stays.starts[owner])
    return (by_time | ((note_visit == stay_visit) & (note_visit >= 0))) & (time <= stays.ends[owner])


def _num_after_discharge(notes: Notes, stays: Stays) -> int:
    visits, first = np.unique(stays.visit_ids, return_index=True)
    if not len(visits):
        return 0
    at = np.minimum(np.searchsorted(visits, notes.visit_ids), len(visits) - 1)
    is_given = (visits[at] == notes.visit_ids) & (notes.visit_ids >= 0)
    return int((is_given & (notes.times > stays.ends[first][at])).sum())


def _to_microseconds(times: np.ndarray, missing: int) -> np.ndarray:
    """int64 microseconds of int seconds or datetime64 values; `missing` for NaT. Seconds too far away are cut off."""
    times = np.asarray(times)
    if times.dtype.kind == "M":
        return np.where(np.isnat(times), missing, times.astype("datetime64[us]").astype(np.int64))
    if times.dtype.kind not in "iu":
        raise ValueError(f"times are {times.dtype}: give int64 seconds since 1970, or datetime64.")
    limit = _NEVER // _SECOND
    return np.clip(times.astype(np.int64), -limit, limit) * _SECOND


# Writing


class _Writer:
    """Writes texts as they come and keeps the notes' numbers; `files` and `quarantined` are the ledger of rows."""

    def __init__(self, texts_file: Path):
        self.quarantined: list[tuple[str, str, np.ndarray]] = []
        self._counts: dict[str, dict[str, int]] = {}
        self._first_replaced: dict[str, int] = {}
        self._text_ids: dict[bytes, int] = {}
        self._notes: list[pd.DataFrame] = []
        self._texts = pa.ipc.new_file(str(texts_file), _TEXTS)

    @property
    def files(self) -> list[str]:
        return list(self._counts)

    def add(self, batch: NoteBatch) -> None:
        events = batch.events
        if events.file not in self._counts:
            self._counts[events.file] = {"rows_read": 0, "num_other_events": 0, "num_replaced": 0}
        counts = self._counts[events.file]
        counts["rows_read"] += events.rows_read
        counts["num_other_events"] += batch.num_other_events
        counts["num_replaced"] += len(batch.replaced_rows)
        if len(batch.replaced_rows):
            self._first_replaced.setdefault(events.file, int(batch.replaced_rows[0]))
        self.quarantined += [(events.file, reason, rows) for reason, rows in events.quarantined.items()]
        columns = {"subject_id": events.subject_id, "time": events.time, "visit_id": events.visit_id}
        columns |= {"text_id": self._add_texts(events.codes)[events.code], "row": events.row}
        self._notes.append(pd.DataFrame(columns | {"file": self.files.index(events.file)}))

    def finish(self, folder: Path) -> dict[str, Any]:
        """Write all but the manifest; the account by file and by reason."""
        self._texts.close()
        notes = pd.concat(self._notes, ignore_index=True) if self._notes else _no_notes()
        is_copy = notes.duplicated(["subject_id", "time", "visit_id", "text_id"]).to_numpy()
        for i, file in enumerate(self.files):
            copies = notes["row"].to_numpy()[is_copy & (notes["file"] == i).to_numpy()]
            self.quarantined.append((file, "duplicate_row", copies))
        notes = notes[~is_copy]
        pq.write_table(_to_table(notes, self.files), folder / "notes.parquet")
        if self.files:
            pq.write_table(quarantine_table([], self), folder / "quarantine.parquet")
        return self._report(notes)

    def _add_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Number of each text (int64); texts not met before are written."""
        hashes = [_hash(text) for text in texts]
        num_known = len(self._text_ids)
        ids = np.array([self._text_ids.setdefault(key, len(self._text_ids)) for key in hashes], np.int64)
        fresh, where = np.unique(ids, return_index=True)
        where = where[fresh >= num_known]
        if len(where):
            arrays = [[texts[i] for i in where], [hashes[i] for i in where]]
            columns = [pa.array(values, kind) for values, kind in zip(arrays, _TEXTS.types, strict=True)]
            self._texts.write_batch(pa.record_batch(columns, schema=_TEXTS))
        return ids

    def _report(self, notes: pd.DataFrame) -> dict[str, Any]:
        kept = np.bincount(notes["file"].to_numpy(np.int64), minlength=len(self.files))
        files = []
        for i, name in enumerate(self.files):
            reasons = _count((reason, len(rows)) for file, reason, rows in self.quarantined if file == name)
            counts, lost = self._counts[name], sum(reasons.values())
            if counts["rows_read"] != kept[i] + lost:
                raise AssertionError(f"{name}: {counts['rows_read']} rows read, but {kept[i]} kept and {lost} not.")
            entry = {"file": name, **counts, "rows_kept": int(kept[i]), "rows_quarantined": lost}
            first = {"first_replaced_row": self._first_replaced[name]} if name in self._first_replaced else {}
            files.append({**entry, "rows_by_reason": reasons, **first})
        totals = ("rows_read", "rows_kept", "rows_quarantined", "num_replaced", "num_other_events")
        return {
            "num_notes": len(notes),
            "num_subjects": int(notes["subject_id"].nunique()),
            "num_texts": len(self._text_ids),
            **{name: sum(file[name] for file in files) for name in totals},
            "rows_by_reason": _count(item for file in files for item in file["rows_by_reason"].items()),
            "files": files,
        }


def _count(items: Iterable[tuple[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for name, count in items:
        total[name] = total.get(name, 0) + count
    return {name: total[name] for name in sorted(total) if total[name]}


def _no_notes() -> pd.DataFrame:
    names = ("subject_id", "time", "visit_id", "text_id", "row", "file")
    return pd.DataFrame({name: np.zeros(0, np.int64) for name in names})


def _to_table(notes: pd.DataFrame, files: Sequence[str]) -> pa.Table:
    file = pa.DictionaryArray.from_arrays(pa.array(notes["file"].to_numpy(np.int32)), pa.array(files, pa.string()))
    columns = {name: pa.array(notes[name].to_numpy(np.int64)) for name in ("subject_id", "time", "visit_id", "text_id")}
    columns["time"] = columns["time"].cast(pa.timestamp("us", "UTC"))
    return pa.table(columns | {"file": file, "row": pa.array(notes["row"].to_numpy(np.int64))})


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, or {} where there is none that this version wrote."""
    file = folder / "manifest.json"
    if not file.is_file():
        return {}
    with naming_the_folder(folder):
        try:
            manifest = json.loads(file.read_text())
        except ValueError:
            return {}
    return manifest if manifest.get("schema_version") == SCHEMA_VERSION and "report" in manifest else {}
