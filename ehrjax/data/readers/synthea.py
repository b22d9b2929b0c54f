"""Synthea CSV folders, 2017 and modern schemas, plain or gzipped, as event batches.

`patients` must be there; encounters, conditions, observations, medications, procedures, immunizations, allergies,
careplans and devices are read where present. Identifiers become 63-bit hashes, so folders can be pooled.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ehrjax.data.events import (
    BIRTH_CODE,
    DEATH_CODE,
    ENCOUNTER_END_PREFIX,
    ENCOUNTER_PREFIX,
    STATIC_TIME,
    EventBatch,
    EventStream,
)
from ehrjax.data.readers import columns as columns_lib
from ehrjax.data.readers.clinical import DAY, Encounters, SortedIds, answers, build_codes, code_at, segment
from ehrjax.data.readers.tables import Block, EventPart, Field, Table, find_table, read_table

_HOUR = DAY // 24
_SUFFIXES = (".csv", ".csv.gz")

_PATIENT_FIELDS = (
    Field("id", ("ID",)),
    Field("birth", ("BIRTHDATE", "BIRTH_DATE")),
    Field("death", ("DEATHDATE", "DEATH_DATE"), required=False),
    Field("gender", ("GENDER", "SEX"), required=False),
    Field("race", ("RACE",), required=False),
    Field("ethnicity", ("ETHNICITY",), required=False),
)
_ENCOUNTER_FIELDS = (
    Field("id", ("ID",)),
    Field("start", ("START", "DATE")),
    Field("stop", ("STOP",), required=False),
    Field("patient", ("PATIENT",)),
    Field("class", ("ENCOUNTERCLASS", "CLASS"), required=False),
    Field("code", ("CODE",), required=False),
    Field("description", ("DESCRIPTION",), required=False, is_free_text=True),
)
_CLINICAL_FIELDS = (
    Field("time", ("START", "DATE")),
    Field("patient", ("PATIENT",)),
    Field("encounter", ("ENCOUNTER",), required=False),
    Field("code", ("CODE",)),
    Field("description", ("DESCRIPTION",), required=False, is_free_text=True),
)
_SYSTEM_FIELD = Field("system", ("SYSTEM", "SYSTEM1"), required=False)
_OBSERVATION_FIELDS = (
    *_CLINICAL_FIELDS,
    Field("category", ("CATEGORY",), required=False),
    Field("value", ("VALUE",), required=False),
)

# table -> type and code system; observations, which hold values, are read apart
_CLINICAL_TABLES = {
    "conditions": ("DIAGNOSIS", "SNOMED"),
    "medications": ("MEDICATION", "RXNORM"),
    "procedures": ("PROCEDURE", "SNOMED"),
    "immunizations": ("IMMUNIZATION", "CVX"),
    "allergies": ("ALLERGY", "SNOMED"),
    "careplans": ("CAREPLAN", "SNOMED"),
    "devices": ("DEVICE", "SNOMED"),
}
# fmt: off
# Vital signs by LOINC code, for files without a CATEGORY column.
VITAL_LOINC = frozenset((
    "8302-2", "29463-7", "39156-5", "8462-4", "8480-6", "8867-4", "9279-1", "8310-5", "2708-6", "59408-5", "72514-3",
    "8331-1", "59576-9", "77606-2", "8289-1",
))
# Class of an encounter by its SNOMED code, for the 2017 schema, which has no ENCOUNTERCLASS.
_CODES_OF_CLASS = {
    "emergency": ("50849002", "183460006"),
    "inpatient": ("183452005", "34285007", "32485007", "56876005"),
    "outpatient": ("170258001", "185349003", "371883000", "270427003", "316744009"),
    "ambulatory": (
        "170837001", "170838006", "184347001", "185345009", "185347001", "266707007", "308646001", "424441002",
        "424619006",
    ),
    "wellness": ("162673000",),
    "home": ("210098006",),
}
# fmt: on
_CLASS_OF_CODE = {code: name for name, codes in _CODES_OF_CLASS.items() for code in codes}
_SEX = {"MALE": "M", "FEMALE": "F"}


def read_synthea(path: str | Path, *, label: str | None = None) -> EventStream:
    """Stream a Synthea folder (or its `csv` subfolder) as event batches, patients first.

    `label` (default: the folder's name) begins the file names in reports. Raises FileNotFoundError or ValueError for a
    missing folder, a folder without patients, a missing column or an unreadable file.
    """
    folder = Path(path)
    label = label or folder.resolve().name
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"{folder} {what}; give the folder that holds Synthea's patients.csv")
    for inner, name in ((folder, label), (folder / "csv", f"{label}/csv")):
        if inner.is_dir() and find_table(inner, "patients", _SUFFIXES) is not None:
            return _read_folder(inner, name)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
    raise FileNotFoundError(f"{folder}: no patients.csv or patients.csv.gz in it; found {found}")


def _read_folder(folder: Path, label: str) -> EventStream:
    def blocks(stem: str, fields: Sequence[Field]) -> Iterator[Block]:
        path = find_table(folder, stem, _SUFFIXES)
        return iter(()) if path is None else read_table(Table(path, f"{label}/{path.name}"), fields)

    known = _Known()
    for block in blocks("patients", _PATIENT_FIELDS):
        yield _patient_events(block, known)
    for block in blocks("encounters", _ENCOUNTER_FIELDS):
        yield _encounter_events(block, known)
    for stem, (kind, system) in _CLINICAL_TABLES.items():
        for block in blocks(stem, (*_CLINICAL_FIELDS, _SYSTEM_FIELD)):
            yield _clinical_events(block, kind, system, known)
    for block in blocks("observations", _OBSERVATION_FIELDS):
        yield _observation_events(block, known)


class _Known:
    """What later tables need of earlier ones."""

    def __init__(self):
        self.patients = SortedIds()
        self.described: set[str] = set()  # codes whose human name has been given
        self.stays: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # encounter ids, starts, stops

    @functools.cached_property
    def encounters(self) -> Encounters:
        """All encounters read; asked for once they all are."""
        columns = [np.concatenate(column) for column in zip(*self.stays, strict=True)]
        self.stays.clear()
        return Encounters(*(columns or [np.zeros(0, np.int64)] * 3))


class _Rows(NamedTuple):
    """What all clinical tables share."""

    subject_id: np.ndarray
    visit_id: np.ndarray
    time: np.ndarray


def _patient_events(block: Block, known: _Known) -> EventBatch:
    subject = block.hashed_ids("id", reason="no_patient")
    birth = block.times("birth", required=False)
    death = block.times("death", required=False)
    _, first = np.unique(np.where(block.keep, subject, -1 - np.arange(len(block))), return_index=True)
    is_first = np.zeros(len(block), bool)
    is_first[first] = True
    block.reject("duplicate_patient", ~is_first | (known.patients.position(subject) >= 0))
    static = np.full(len(block), STATIC_TIME)
    parts = [code_at(birth, BIRTH_CODE), code_at(death, DEATH_CODE)]
    for name in ("gender", "race", "ethnicity"):
        index, texts = block.texts(name)
        shown = [_SEX.get(t.upper(), t.upper()) if name == "gender" else segment(t.lower()) for t in texts]
        parts.append(EventPart(static, index, [f"{name.upper()}//{text}" for text in shown]))
    batch = block.events(subject, parts)
    known.patients.ids = np.union1d(known.patients.ids, subject[block.keep])
    return batch


def _encounter_events(block: Block, known: _Known) -> EventBatch:
    visit = block.hashed_ids("id", reason="missing_visit_id")
    subject = _known_subject(block, known)
    start = block.times("start")
    stop = block.times("stop", required=False)
    has_stop = stop != STATIC_TIME
    # A stop given as a day lasts until its end.
    last = stop + np.where(block.is_date_only("stop"), DAY - 1, 0)
    block.reject("ends_before_start", has_stop & (last < start))
    stop = np.where(has_stop, np.maximum(stop, start), STATIC_TIME)
    kind, tuples = columns_lib.combine([block.texts("class"), block.texts("code")])
    classes = [segment(name.lower()) or _CLASS_OF_CODE.get(code, "unknown") for name, code in tuples]
    types = [f"ENCOUNTER_TYPE//SNOMED//{code}" if code else "" for _, code in tuples]
    has_type = np.array([bool(name) for name in types], bool)
    parts = [
        EventPart(start, kind, [ENCOUNTER_PREFIX + name for name in classes], visit_id=visit),
        EventPart(start, np.where(has_type[kind], kind, -1), types, visit_id=visit),
        EventPart(stop, np.where(has_stop, kind, -1), [ENCOUNTER_END_PREFIX + c for c in classes], visit_id=visit),
    ]
    batch = block.events(subject, parts, descriptions=_descriptions(block, kind, types, known.described))
    known.stays.append((visit[block.keep], start[block.keep], stop[block.keep]))
    return batch


def _clinical_events(block: Block, kind: str, system: str, known: _Known) -> EventBatch:
    rows = _read_rows(block, known)
    index, codes = build_codes(
        block,
        ("code", "system"),
        lambda code, name: f"{kind}//{'RXNORM' if 'rxnorm' in name.lower() else system}//{code}" if code else "",
    )
    part = EventPart(rows.time, index, codes, visit_id=rows.visit_id)
    descriptions = _descriptions(block, index, codes, known.described)
    return block.events(rows.subject_id, [part], descriptions=descriptions)


def _observation_events(block: Block, known: _Known) -> EventBatch:
    rows = _read_rows(block, known)
    code, names = block.texts("code")
    category, categories = block.texts("category")
    is_vital = np.array([name.lower() == "vital-signs" for name in [*categories, ""]], bool)[category]
    index = np.where(code >= 0, 2 * code + is_vital, np.int32(-1))
    codes = [_observation_code(name, vital) for name in names for vital in (False, True)]
    descriptions = _descriptions(block, index, codes, known.described)
    value = block.columns["value"]
    numbers = columns_lib.parse_numbers(value.values)
    answer, texts = answers(value, numbers=numbers)
    told = np.flatnonzero((answer >= 0) & (index >= 0))  # few rows: only these need a code of their own
    fused, pairs = columns_lib.combine([(index[told], codes), (answer[told], texts)])
    index[told] = len(codes) + fused
    codes += [f"{code}//{text}" for code, text in pairs]
    part = EventPart(rows.time, index, codes, value.take(numbers, np.nan), rows.visit_id)
    return block.events(rows.subject_id, [part], descriptions=descriptions)


def _read_rows(block: Block, known: _Known) -> _Rows:
    subject = _known_subject(block, known)
    time = block.times("time")
    visit = block.hashed_ids("encounter")
    is_day = block.is_date_only("time")
    if is_day.any():
        time = np.where(is_day, _within_encounter(time, visit, known.encounters), time)
    return _Rows(subject, visit, time)


def _known_subject(block: Block, known: _Known) -> np.ndarray:
    column = block.columns["patient"]
    ids = columns_lib.hash_values(column.values)
    block.reject("no_patient", ~column.take(ids >= 0, False))
    block.reject("unknown_patient", column.take(known.patients.position(ids) < 0, True))
    return column.take(ids, -1)


def _within_encounter(day: np.ndarray, visit: np.ndarray, encounters: Encounters) -> np.ndarray:
    """Time of an event known by its day, given its encounter: the moment of the encounter nearest to that midnight.

    Synthea writes such days in local time and encounters in UTC, so the day may be the one before or after. Midnight
    itself would put a diagnosis before the encounter that made it, or after one that had ended. Where the encounter
    does not touch the day in any time zone (UTC-12 to UTC+14), midnight stays.
    """
    if not len(encounters.ids):
        return day
    at = encounters.position(visit)
    start, stop = encounters.start[at], np.maximum(encounters.start[at], encounters.end[at])  # no end: STATIC_TIME
    touches = (at >= 0) & (day != STATIC_TIME)
    touches &= (start < day + 36 * _HOUR) & (stop >= day - 14 * _HOUR)
    return np.where(touches, np.clip(day, start, stop), day)


@functools.cache
def _observation_code(code: str, is_vital: bool) -> str:
    is_loinc = re.fullmatch(r"[A-Z]?\d+-\d+", code) is not None
    # Causes of death are SNOMED; quality-of-life scores (QALY, DALY, QOLS) are the generator's own.
    system = "LOINC" if is_loinc else "SNOMED" if code.isdigit() else "SYNTHEA"
    return f"{'VITAL' if is_vital or code in VITAL_LOINC else 'LAB'}//{system}//{code}"


def _descriptions(block: Block, index: np.ndarray, codes: Sequence[str], described: set[str]) -> dict[str, str]:
    """Human names of the codes that no block before has named; the first name counts."""
    is_new = np.array([code not in described for code in codes] + [False], bool)
    rows = np.flatnonzero(is_new[index])
    if not len(rows):
        return {}
    name, names = block.texts("description")
    _, pairs = columns_lib.combine([(index[rows], [str(i) for i in range(len(codes))]), (name[rows], names)])
    found = {codes[int(i)]: text for i, text in reversed(pairs) if text and codes[int(i)]}
    described.update(found)
    return found
