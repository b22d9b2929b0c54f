"""MIMIC-IV (hosp/ and icu/ as distributed, .csv or .csv.gz) -> event batches.

Needed are hosp/patients and hosp/admissions; every other table is read where present. An event carries the time at
which it was known, never an earlier one:

- Diagnoses (`DIAGNOSIS//ICD9CM//4139`) and DRGs are assigned after the stay: discharge time.
- Results (labs, microbiology, ICU charting, outputs): the later of charttime and storetime, or the one there is.
- Acts (prescriptions, administrations, infusions, ICU procedures, transfers): the time they begin. Infusions carry
  their rate, or the amount of a bolus; an infusion's amount and a procedure's duration are known only later.
- Dates without a time (procedures_icd, hcpcsevents, omr): the end of that day, or the discharge of that day.

Birth is 1 January of anchor_year - anchor_age, so ages are up to a year too high (and patients above 89 are all 91).
Death is admissions.deathtime where known, else the end of the day `dod`; a stay that ended in death ends no earlier.
Admissions are `ENCOUNTER//inpatient`, but the three kinds of observation stay that no admission follows are
`ENCOUNTER//observation`; emergency department stays without admission (transfers without hadm_id) are
`ENCOUNTER//emergency`. datetimeevents, ingredientevents, poe, pharmacy and emar_detail are not read.
"""

from collections.abc import Iterator
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
from ehrjax.data.readers.clinical import DAY, Encounters, SortedIds, build_codes, code_at, end_of_day, segment
from ehrjax.data.readers.mimic4_tables import event_tables, read_events
from ehrjax.data.readers.tables import Block, EventPart, Field, Table, find_table, read_table

_OBSERVATION = {"EU OBSERVATION", "AMBULATORY OBSERVATION", "DIRECT OBSERVATION"}
_RACES = {"WHITE": "white", "PORTUGUESE": "white", "BLACK": "black", "ASIAN": "asian", "AMERICAN INDIAN": "native",
          "NATIVE HAWAIIAN": "hawaiian", "OTHER": "other", "MULTIPLE": "other"}  # fmt: skip
_ADMISSION_FIELDS = (
    *(Field(name, (name,)) for name in ("subject_id", "hadm_id", "admittime", "dischtime", "admission_type")),
    *(Field(name, (name,), False) for name in ("deathtime", "edregtime", "edouttime", "insurance", "marital_status")),
    *(Field(name, (name,), False) for name in ("admission_location", "discharge_location")),
    Field("race", ("race", "ethnicity"), False),
)


class _Hospital(NamedTuple):
    """What is known of all admissions before the tables are read."""

    stays: Encounters
    death: dict[int, int]  # subject -> deathtime
    race_rows: np.ndarray  # rows of admissions that state a patient's race first, sorted


def read_mimic4(path: str | Path, *, label: str | None = None) -> EventStream:
    """Events of the MIMIC-IV folder at `path`, patients first.

    `label` names the data set in `EventBatch.file` (default: the folder's name). Raises FileNotFoundError where there
    is no folder, patients or admissions table, and ValueError naming the file for a missing column or unreadable file.
    """
    root = Path(path).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder: give the folder that holds hosp/ and icu/.")
    label = label or root.name
    patients, admissions = (_find(root, label, f"hosp/{name}") for name in ("patients", "admissions"))
    for table, name in ((patients, "patients"), (admissions, "admissions")):
        if table is None:
            found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"{root}: no hosp/{name}.csv.gz or .csv (found {found}): is this MIMIC-IV?")
    hospital = _read_hospital(admissions)
    known = SortedIds()
    yield from _read_patients(patients, known, hospital)
    if not len(known.ids):
        raise ValueError(f"{patients.file}: no patient in it: there is nothing to read.")
    yield from _read_admissions(admissions, known, hospital)

    def find(stem: str) -> Table | None:
        return _find(root, label, stem)

    for spec in event_tables(find):
        table = find(spec.file)
        if table is not None:
            yield from read_events(table, spec, known, hospital.stays, find)


def _find(root: Path, label: str, stem: str) -> Table | None:
    """A table in its module's folder, or in `root` where the modules were merged or one module is given alone."""
    folder, _, name = stem.partition("/")
    for place in (root / folder, root):
        file = find_table(place, name) if place.is_dir() else None
        if file is not None:
            return Table(file, f"{label}/{file.relative_to(root).as_posix()}")
    return None


def _read_hospital(table: Table) -> _Hospital:
    """First pass over admissions: when stays end, who died when, and where race is stated."""
    names = ("hadm", "admit", "discharge", "subject", "death", "row", "has_race")
    columns = {name: [] for name in names}
    for block in read_table(table, _ADMISSION_FIELDS):
        hadm, admit, discharge, death = _admission_times(block)
        race, _ = build_codes(block, ["race"], _race_code)
        found = (hadm, admit, discharge, block.ints("subject_id"), death, block.row, race >= 0)
        for name, values in zip(names, found, strict=True):
            columns[name].append(values[block.keep])
    a = {name: np.concatenate(pieces) if pieces else np.empty(0, np.int64) for name, pieces in columns.items()}
    died = np.flatnonzero(a["death"] != STATIC_TIME)
    died = died[np.argsort(-a["death"][died], kind="stable")]  # the earliest is written last
    death = dict(zip(a["subject"][died].tolist(), a["death"][died].tolist(), strict=True))
    stated = np.flatnonzero(a["has_race"])
    stated = stated[np.lexsort((a["row"][stated], a["admit"][stated], a["subject"][stated]))]
    first = stated[np.unique(a["subject"][stated], return_index=True)[1]]
    return _Hospital(Encounters(a["hadm"], a["admit"], a["discharge"]), death, np.sort(a["row"][first]))


def _admission_times(block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Encounter, admission, discharge, death; STATIC_TIME where missing. Both passes reject the same rows.

    A stay that ended in death ends with it: dischtime may be that day's midnight, and would tell of a death to come.
    """
    ids = block.ints("hadm_id", reason="no_encounter")
    admit = block.times("admittime")
    discharge, death = (block.times(name, required=False) for name in ("dischtime", "deathtime"))
    block.reject("ends_before_start", (discharge != STATIC_TIME) & (discharge < admit))
    died, _ = build_codes(block, ["discharge_location"], lambda text: text if text.upper() == "DIED" else "")
    death = np.where((died >= 0) & (death == STATIC_TIME), discharge, death)
    discharge = np.where(discharge == STATIC_TIME, STATIC_TIME, np.maximum(discharge, death))
    return ids, admit, discharge, death


def _read_patients(table: Table, known: SortedIds, hospital: _Hospital) -> Iterator[EventBatch]:
    names = ("subject_id", "gender", "anchor_age", "anchor_year")
    fields = [*(Field(name, (name,)) for name in names), Field("dod", ("dod",), required=False)]
    for block in read_table(table, fields):
        ids = known.add_patients(block, "subject_id")
        death = end_of_day(block.times("dod", required=False))
        in_hospital = [hospital.death.get(i, STATIC_TIME) for i in ids.tolist()]
        death = np.where(np.array(in_hospital) != STATIC_TIME, in_hospital, death)
        birth = _birth(block.numbers("anchor_year") - block.numbers("anchor_age"))
        gender, genders = build_codes(block, ["gender"], lambda g: g and f"GENDER//{g.upper()}")
        static = np.full(len(block), STATIC_TIME)
        parts = [code_at(birth, BIRTH_CODE), EventPart(static, gender, genders), code_at(death, DEATH_CODE)]
        yield block.events(ids, parts)


def _birth(year: np.ndarray) -> np.ndarray:
    is_known = np.isfinite(year)
    years = np.where(is_known, year - 1970, 0).astype("datetime64[Y]")
    return np.where(is_known, years.astype("datetime64[D]").astype(np.int64) * DAY, STATIC_TIME)


def _read_admissions(table: Table, known: SortedIds, hospital: _Hospital) -> Iterator[EventBatch]:
    for block in read_table(table, _ADMISSION_FIELDS):
        subject = known.patients(block, "subject_id")
        visit, admit, discharge, _ = _admission_times(block)

        def part(time, column, build, block=block, visit=visit):
            code, codes = build_codes(block, [column], build)
            return EventPart(time, np.where(time == STATIC_TIME, np.int32(-1), code), codes, visit_id=visit)

        states = np.isin(block.row, hospital.race_rows)
        race, races = build_codes(block, ["race"], _race_code)
        parts = [
            part(admit, "admission_type", lambda kind: ENCOUNTER_PREFIX + _class(kind)),
            part(discharge, "admission_type", lambda kind: ENCOUNTER_END_PREFIX + _class(kind)),
            part(admit, "admission_type", _prefixed("ADMISSION_TYPE")),
            part(admit, "admission_location", _prefixed("ADMISSION_LOCATION")),
            part(admit, "insurance", _prefixed("INSURANCE")),
            part(admit, "marital_status", _prefixed("MARITAL_STATUS")),
            part(discharge, "discharge_location", _prefixed("DISCHARGE")),
            code_at(block.times("edregtime", required=False), "ED_REGISTRATION", visit),
            code_at(block.times("edouttime", required=False), "ED_OUT", visit),
            EventPart(np.full(len(block), STATIC_TIME), np.where(states, race, np.int32(-1)), races),
        ]
        yield block.events(subject, parts)


def _class(admission_type: str) -> str:
    return "observation" if admission_type.upper() in _OBSERVATION else "inpatient"


def _prefixed(prefix: str):
    return lambda text: text and f"{prefix}//{segment(text)}"


def _race_code(race: str) -> str:
    """The main group, named as in the other sources; "" where race is unknown, declined or not obtained."""
    if race.upper().startswith(("HISPANIC", "SOUTH AMERICAN")):
        return "ETHNICITY//hispanic"
    return next((f"RACE//{name}" for start, name in _RACES.items() if race.upper().startswith(start)), "")
