"""OMOP CDM 5.3 and 5.4 (CSV or parquet; a folder or a zip) -> event batches.

Read are person (which must be there), visit_occurrence, visit_detail, condition_occurrence, drug_exposure,
procedure_occurrence, device_exposure, measurement, observation, death and concept. How events are coded: see
`omop_concepts`.

- Birth is birth_datetime, else year, month and day; a missing day is the 15th, a missing month 1 July.
- *_datetime is taken where it has a value, else *_date. Midnight means that only the day is known, as the CDM has it:
  an encounter then begins at that midnight and lasts to the end of its last day; an event is placed at the end of its
  day, or of its encounter if that ends on this day, for by then it was known; death is the end of its day.
- Encounter classes are Synthea's names (`ENCOUNTER//inpatient`); an emergency visit with admission (262) is inpatient.
- Intensive care, whether a visit_occurrence or a visit_detail, is `ICU_ADMISSION` at its start and `ICU_DISCHARGE` at
  its end. With the day alone the admission stands at the end of its day, or of the intensive care if that is earlier:
  from midnight on it would tell an index time of that day what may come later. The price: a visit that is intensive
  care from its first hour, dated by days alone, counts as at risk of it until the end of that day. Other rows of
  visit_detail are quarantined.
- value_as_number is the value; where it is missing, the code of value_as_concept_id or a short text of value_as_string
  or value_source_value is fused with the code as last segment.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ehrjax.data.events import (
    BIRTH_CODE,
    DEATH_CODE,
    ENCOUNTER_END_PREFIX,
    ENCOUNTER_PREFIX,
    NO_VISIT,
    STATIC_TIME,
    EventBatch,
    EventStream,
)
from ehrjax.data.readers.clinical import DAY, Encounters, SortedIds, answers, build_codes, code_at, end_of_day
from ehrjax.data.readers.columns import combine
from ehrjax.data.readers.omop_concepts import INTENSIVE_CARE, Coder, Concepts
from ehrjax.data.readers.omop_files import OmopFiles
from ehrjax.data.readers.tables import Block, EventPart, Field, read_table


class _Clinical(NamedTuple):
    """A table of events: `column`_concept_id ..., `start`_date, `start`_datetime."""

    table: str
    column: str
    start: str


_CLINICAL = (
    _Clinical("condition_occurrence", "condition", "condition_start"),
    _Clinical("drug_exposure", "drug", "drug_exposure_start"),
    _Clinical("procedure_occurrence", "procedure", "procedure"),
    _Clinical("device_exposure", "device", "device_exposure_start"),
    _Clinical("measurement", "measurement", "measurement"),
    _Clinical("observation", "observation", "observation"),
)


def read_omop(path: str | Path, *, label: str | None = None) -> EventStream:
    """Events of the OMOP CDM tables in the folder or zip at `path`, persons first.

    `label` names the data set in `EventBatch.file` (default: the name of the folder or zip). Raises FileNotFoundError
    where there is no such place or no person table, and ValueError naming the file for a missing column, an unreadable
    file or zip, and a person table without persons. Warns where there is no concept table.
    """
    with OmopFiles(path, label) as files:
        if not files.has("person"):
            found = ", ".join(files.names[:8]) or "nothing"
            raise FileNotFoundError(f"{path}: no person table (person.csv, .csv.gz or .parquet) in it; found {found}.")
        if not files.has("concept"):
            warnings.warn(
                f"{files.label}: no concept table: codes are OMOP concept ids. Add CONCEPT.csv.", stacklevel=2
            )
        coder = Coder(Concepts(lambda: files.open("concept")))
        held = None  # the last batch waits for the names of all codes
        for batch in _read_tables(files, coder):
            if held is not None:
                yield held
            held = batch
        yield held._replace(descriptions=coder.descriptions())


def _read_tables(files: OmopFiles, coder: Coder) -> EventStream:
    known, stays = SortedIds(), []
    for block in _blocks(files, "person", _PERSON_FIELDS):
        yield _person_events(block, known, coder)
    if not len(known.ids):
        raise ValueError(f"{files.label}: no person in the person table: there is nothing to read.")
    for block in _blocks(files, "visit_occurrence", _VISIT_FIELDS):
        yield _visit_events(block, known, coder, stays)
    encounters = Encounters(*(np.concatenate(c) for c in zip(_NO_STAY, *stays, strict=True)))
    for block in _blocks(files, "visit_detail", _DETAIL_FIELDS):
        yield _detail_events(block, known)
    for spec in _CLINICAL:
        for block in _blocks(files, spec.table, _clinical_fields(spec)):
            yield _clinical_events(block, spec, known, encounters, coder)
    for block in _blocks(files, "death", _DEATH_FIELDS):
        subject = known.patients(block, "person_id")
        time, is_day = _when(block, "death")
        time = np.where(is_day, end_of_day(time), time)
        block.reject("missing_time", time == STATIC_TIME)
        yield block.events(subject, [code_at(time, DEATH_CODE)])


def _blocks(files: OmopFiles, table: str, fields: Sequence[Field]) -> Iterator[Block]:
    for part in files.open(table):
        yield from read_table(part, fields)


def _fields(*names: str, optional: Sequence[str] = (), free_text: Sequence[str] = ()) -> tuple[Field, ...]:
    fields = [Field(name, (name,)) for name in names]
    return (*fields, *(Field(name, (name,), False, name in free_text) for name in optional))


_NO_STAY = (np.empty(0, np.int64),) * 3
_PERSON_FIELDS = _fields(
    "person_id",
    "gender_concept_id",
    "year_of_birth",
    optional=(
        *("month_of_birth", "day_of_birth", "birth_datetime", "gender_source_value"),
        *("race_concept_id", "race_source_value", "ethnicity_concept_id", "ethnicity_source_value"),
    ),
)
_VISIT_FIELDS = _fields(
    *("visit_occurrence_id", "person_id", "visit_concept_id", "visit_start_date"),
    optional=("visit_start_datetime", "visit_end_date", "visit_end_datetime", "visit_source_concept_id"),
)
_DETAIL_FIELDS = _fields(
    *("person_id", "visit_detail_concept_id", "visit_detail_start_date"),
    optional=(
        *("visit_detail_start_datetime", "visit_detail_end_date", "visit_detail_end_datetime"),
        *("visit_detail_source_concept_id", "visit_occurrence_id"),
    ),
)
_DEATH_FIELDS = _fields("person_id", "death_date", optional=("death_datetime",))
_VALUES = ("value_as_number", "value_as_concept_id", "value_as_string", "value_source_value")


def _clinical_fields(spec: _Clinical) -> tuple[Field, ...]:
    source = (f"{spec.column}_source_concept_id", f"{spec.column}_source_value")
    values = _VALUES if spec.table in ("measurement", "observation") else ()
    return _fields(
        *("person_id", f"{spec.column}_concept_id", f"{spec.start}_date"),
        optional=(f"{spec.start}_datetime", "visit_occurrence_id", *source, *values),
        free_text=(source[1], *_VALUES[2:]),
    )


def _person_events(block: Block, known: SortedIds, coder: Coder) -> EventBatch:
    ids = known.add_patients(block, "person_id")
    birth = block.times("birth_datetime", required=False)
    birth = np.where(birth == STATIC_TIME, _birth(block), birth)
    static = np.full(len(block), STATIC_TIME)
    parts = [code_at(birth, BIRTH_CODE)]
    for kind in ("GENDER", "RACE", "ETHNICITY"):
        names = (f"{kind.lower()}_concept_id", f"{kind.lower()}_source_value")
        parts.append(EventPart(static, *build_codes(block, names, lambda *texts, k=kind: coder.personal(k, *texts))))
    return block.events(ids, parts)


def _birth(block: Block) -> np.ndarray:
    """Birth from year, month and day; what is missing is set to the middle of the month, or of the year."""
    year, month, day = (block.ints(f"{name}_of_birth") for name in ("year", "month", "day"))
    has_month, has_day = (month >= 1) & (month <= 12), (day >= 1) & (day <= 31)
    months = (year - 1970) * 12 + np.where(has_month, month, 7) - 1
    first = months.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    days = first + np.where(has_month, np.where(has_day, day, 15), 1) - 1
    return np.where(year > 0, days * DAY, STATIC_TIME)


def _when(block: Block, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Time (STATIC_TIME where missing) and a mask of times known only by their day."""
    time = block.times(f"{name}_datetime", required=False)
    time = np.where(time == STATIC_TIME, block.times(f"{name}_date", required=False), time)
    return time, (time != STATIC_TIME) & (time % DAY == 0)


def _visit_events(block: Block, known: SortedIds, coder: Coder, stays: list) -> EventBatch:
    subject = known.patients(block, "person_id")
    visit = block.ints("visit_occurrence_id", reason="no_encounter")
    start, is_day, end = _span(block, "visit")
    code, classes = build_codes(block, ("visit_concept_id", "visit_source_concept_id"), coder.visit_class)
    ends = np.where(end == STATIC_TIME, np.int32(-1), code)
    stays.append((visit[block.keep], start[block.keep], end[block.keep]))
    return block.events(
        subject,
        [
            EventPart(start, code, [ENCOUNTER_PREFIX + name for name in classes], visit_id=visit),
            EventPart(end, ends, [ENCOUNTER_END_PREFIX + name for name in classes], visit_id=visit),
            *_icu_stays(_is_intensive_care(block, "visit"), start, is_day, end, visit),
        ],
    )


def _detail_events(block: Block, known: SortedIds) -> EventBatch:
    """Intensive care within a visit; of other details the visit tells enough."""
    subject = known.patients(block, "person_id")
    is_icu = _is_intensive_care(block, "visit_detail")
    block.reject("not_intensive_care", ~is_icu)
    start, is_day, end = _span(block, "visit_detail")
    visit = np.maximum(block.ints("visit_occurrence_id"), NO_VISIT)
    return block.events(subject, _icu_stays(is_icu, start, is_day, end, visit))


def _span(block: Block, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start of visits or of details of them, whether it is known by its day only, and end (STATIC_TIME for none)."""
    start, is_day = _when(block, f"{name}_start")
    end, ends_by_day = _when(block, f"{name}_end")
    end = np.where(ends_by_day, end_of_day(end), end)
    block.reject("missing_time", start == STATIC_TIME)
    block.reject("ends_before_start", (end != STATIC_TIME) & (end < start))
    return start, is_day, end


def _is_intensive_care(block: Block, name: str) -> np.ndarray:
    concepts = [block.ints(f"{name}_concept_id"), block.ints(f"{name}_source_concept_id")]
    return np.isin(concepts, INTENSIVE_CARE).any(axis=0)


def _icu_stays(
    is_icu: np.ndarray, start: np.ndarray, is_day: np.ndarray, end: np.ndarray, visit: np.ndarray
) -> list[EventPart]:
    """As in MIMIC-IV, but without the unit, which the concepts do not tell; a day alone is known at its end."""
    latest = np.where(end == STATIC_TIME, end_of_day(start), np.minimum(end_of_day(start), end))
    times = {"ICU_ADMISSION": np.where(is_day, latest, start), "ICU_DISCHARGE": end}
    return [code_at(np.where(is_icu, time, STATIC_TIME), code, visit) for code, time in times.items()]


def _clinical_events(
    block: Block, spec: _Clinical, known: SortedIds, encounters: Encounters, coder: Coder
) -> EventBatch:
    subject = known.patients(block, "person_id")
    visit = np.maximum(block.ints("visit_occurrence_id"), NO_VISIT)
    time, is_day = _when(block, spec.start)
    time = np.where(is_day, encounters.known_by(time, visit), time)
    block.reject("missing_time", time == STATIC_TIME)
    names = (f"{spec.column}_{name}" for name in ("concept_id", "source_concept_id", "source_value"))
    code, codes = build_codes(block, tuple(names), lambda *texts: coder.event(spec.table, *texts))
    value = None
    if spec.table in ("measurement", "observation"):
        code, codes, value = _with_values(block, code, codes, coder)
    return block.events(subject, [EventPart(time, code, codes, value, visit)])


def _with_values(
    block: Block, code: np.ndarray, codes: Sequence[str], coder: Coder
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Values, and codes with the answer fused where there is no number."""
    value = block.numbers("value_as_number")
    for name in ("value_as_string", "value_source_value"):
        value = np.where(np.isnan(value), block.numbers(name), value)
    given = [block.texts("value_as_concept_id"), *(answers(block.columns[name]) for name in _VALUES[2:])]
    given = [(np.where(np.isnan(value), index, np.int32(-1)), texts) for index, texts in given]
    fused, tuples = combine([(code, codes), *given])
    names = [coder.with_answer(*texts) if texts[0] else "" for texts in tuples]
    return np.where(code >= 0, fused, np.int32(-1)), names, value
