"""Synthea's CSV tables as Arrow tables, from simulated lives and the content of their visits."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehrjax.data import simulate_chain as chain
from ehrjax.data import simulate_codes as codes
from ehrjax.data import simulate_paths as paths
from ehrjax.data.simulate_random import Draws
from ehrjax.data.simulate_records import CATALOGUES, Content, Rows

RACES = (("white", 0.66), ("black", 0.15), ("asian", 0.10), ("hawaiian", 0.02), ("native", 0.03), ("other", 0.04))
FIRST_NAMES = {"F": ("Ada", "Grace", "Rosalind", "Marie"), "M": ("Alan", "Edsger", "Claude", "John")}
LAST_NAMES = ("Brown", "Garcia", "Johnson", "Kim", "Lopez", "Nguyen", "Patel", "Smith")
CITIES = (("Boston", "Suffolk County", "02115"), ("Worcester", "Worcester County", "01608"),
          ("Springfield", "Hampden County", "01103"), ("Lowell", "Middlesex County", "01852"))  # fmt: skip

HEADERS = {
    "patients": "Id,BIRTHDATE,DEATHDATE,SSN,DRIVERS,PASSPORT,PREFIX,FIRST,MIDDLE,LAST,SUFFIX,MAIDEN,MARITAL,RACE,"
    "ETHNICITY,GENDER,BIRTHPLACE,ADDRESS,CITY,STATE,COUNTY,FIPS,ZIP,LAT,LON,HEALTHCARE_EXPENSES,HEALTHCARE_COVERAGE,INCOME",
    "encounters": "Id,START,STOP,PATIENT,ORGANIZATION,PROVIDER,PAYER,ENCOUNTERCLASS,CODE,DESCRIPTION,"
    "BASE_ENCOUNTER_COST,TOTAL_CLAIM_COST,PAYER_COVERAGE,REASONCODE,REASONDESCRIPTION",
    "conditions": "START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION",
    "observations": "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE",
    "medications": "START,STOP,PATIENT,PAYER,ENCOUNTER,CODE,DESCRIPTION,BASE_COST,PAYER_COVERAGE,DISPENSES,TOTALCOST,"
    "REASONCODE,REASONDESCRIPTION",
    "procedures": "START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION,BASE_COST,REASONCODE,REASONDESCRIPTION",
    "immunizations": "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,BASE_COST",
    "allergies": "START,STOP,PATIENT,ENCOUNTER,CODE,SYSTEM,DESCRIPTION,TYPE,CATEGORY,REACTION1,DESCRIPTION1,SEVERITY1,"
    "REACTION2,DESCRIPTION2,SEVERITY2",
    "careplans": "Id,START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,REASONCODE,REASONDESCRIPTION",
    "devices": "START,STOP,PATIENT,ENCOUNTER,CODE,DESCRIPTION,UDI",
}
_SNOMED = "http://snomed.info/sct"
FIXED = {  # columns that are the same in every row
    "conditions": {"SYSTEM": _SNOMED},
    "procedures": {"SYSTEM": _SNOMED, "BASE_COST": "431.40"},
    "medications": {"BASE_COST": "263.49", "PAYER_COVERAGE": "0.00", "DISPENSES": "1", "TOTALCOST": "263.49"},
    "immunizations": {"BASE_COST": "136.00"},
    "allergies": {"SYSTEM": "SNOMED-CT", "TYPE": "allergy", "CATEGORY": "environment"},
}
# Encounter classes and codes by kind of visit: (class, key of codes.ENCOUNTERS, share).
_CHILD = ("wellness", "child", 1.0)
ENCOUNTER_MIX = {
    paths.ENTRY: (("wellness", "checkup", 1.0),),
    paths.WELLNESS: (("wellness", "checkup", 1.0),),
    paths.FOLLOW_UP: (
        ("ambulatory", "follow_up", 0.55),
        ("outpatient", "check", 0.35),
        ("virtual", "telemedicine", 0.10),
    ),
    paths.ACUTE: (("ambulatory", "symptom", 0.50), ("urgentcare", "urgent", 0.27), ("emergency", "emergency", 0.23)),
    paths.SERIES: (("ambulatory", "therapy", 0.7), ("outpatient", "check", 0.3)),
    paths.CHANGE: (("ambulatory", "problem", 0.7), ("outpatient", "check", 0.3)),
    paths.STEROID: (("urgentcare", "urgent", 0.6), ("emergency", "emergency", 0.4)),
    paths.STAY: (("inpatient", "stay", 0.8), ("inpatient", "intensive", 0.2)),
}
_HOURS = {"emergency": (1.5, 8.0)}  # an encounter's shortest and longest duration; 15 to 75 minutes for the others


class Times(NamedTuple):
    """Start and end of each visit (seconds, int64 [v]), and whether the end of observation cut a stay short."""

    start: np.ndarray
    stop: np.ndarray
    is_cut: np.ndarray


class Encounters(NamedTuple):
    """Row of `ENCOUNTER_KINDS` of each visit, and its times."""

    kind: np.ndarray
    times: Times


ENCOUNTER_KINDS = tuple(dict.fromkeys([_CHILD[:2], *(mix[:2] for mixes in ENCOUNTER_MIX.values() for mix in mixes)]))


def draw_encounters(lives: paths.Paths, seed: int) -> Encounters:
    """Classes and times of all visits; see `simulate_paths` for where in its week a visit may lie."""
    visits, patients = lives.visits, lives.patients
    draws = Draws(seed, patients.number[visits.patient], visits.week)
    kind = _draw_kinds(lives, draws)
    is_stay = visits.kind == paths.STAY
    monday = patients.origin[visits.patient] + visits.week * paths.WEEK
    offset = np.floor(7 * 3600 + draws.uniform("start") * 12 * 3600).astype(np.int64)
    low, high = np.array([_HOURS.get(name, (0.25, 1.25)) for name, _ in ENCOUNTER_KINDS]).T
    hours = low[kind] + (high - low)[kind] * draws.uniform("duration")
    earliest = np.where(visits.stay_weeks > 0, 8 * 3600, offset + 12 * 3600)
    discharge = earliest + (4.9 * paths.DAY - earliest) * draws.uniform("discharge").astype(np.float64) ** 1.4
    end = np.where(is_stay, visits.stay_weeks * paths.WEEK + discharge, offset + hours * 3600)
    stop = monday + np.floor(end).astype(np.int64)
    return Encounters(kind, Times(monday + offset, np.minimum(stop, paths.END - 1), stop >= paths.END))


def _draw_kinds(lives: paths.Paths, draws: Draws) -> np.ndarray:
    visits = lives.visits
    age = (lives.patients.age_weeks[visits.patient] + visits.week) / chain.WEEKS_PER_YEAR
    uniform = draws.uniform("class")
    kind = np.zeros(len(uniform), np.int64)
    for which, mixes in ENCOUNTER_MIX.items():
        here = np.flatnonzero(visits.kind == which)
        numbers = np.array([ENCOUNTER_KINDS.index(mix[:2]) for mix in mixes])
        thresholds = np.cumsum([mix[2] for mix in mixes])[:-1]
        kind[here] = numbers[np.searchsorted(thresholds, uniform[here], side="right")]
    is_child_visit = np.isin(visits.kind, (paths.ENTRY, paths.WELLNESS)) & (age < 18)
    return np.where(is_child_visit, ENCOUNTER_KINDS.index(_CHILD[:2]), kind)


def make_uuids(seed: int, name: str, patients: np.ndarray, counters: np.ndarray) -> pa.Array:
    """UUID-shaped strings, a function of (seed, name, patient, counter)."""
    draws = Draws(seed, patients, counters)
    raw = np.stack([draws.bits(f"{name}/high"), draws.bits(f"{name}/low")], 1).astype(">u8").view(np.uint8)
    raw = np.ascontiguousarray(raw.reshape(len(patients), 16))
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    hexes = np.empty((len(raw), 32), np.uint8)
    hexes[:, 0::2], hexes[:, 1::2] = digits[raw >> 4], digits[raw & 15]
    text = np.full((len(raw), 36), ord("-"), np.uint8)
    for source, target, length in ((0, 0, 8), (8, 9, 4), (12, 14, 4), (16, 19, 4), (20, 24, 12)):
        text[:, target : target + length] = hexes[:, source : source + length]
    return _fixed_width(text)


def _fixed_width(text: np.ndarray) -> pa.Array:
    """A string array of rows of ASCII bytes [n, width]."""
    offsets = np.arange(len(text) + 1, dtype=np.int32) * text.shape[1]
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def format_times(seconds: np.ndarray) -> pa.Array:
    """`2021-01-31T17:31:00Z` of seconds since 1970."""
    days, rest = np.divmod(np.asarray(seconds, np.int64), paths.DAY)
    unique, inverse = np.unique(days, return_inverse=True)
    dates = np.datetime_as_string(unique.astype("datetime64[D]")).astype("S10")
    text = np.empty((len(days), 20), np.uint8)
    text[:, :10] = dates.view(np.uint8).reshape(-1, 10)[inverse]
    text[:, 10], text[:, 13], text[:, 16], text[:, 19] = (ord(c) for c in "T::Z")
    for at, number in ((11, rest // 3600), (14, rest // 60 % 60), (17, rest % 60)):
        text[:, at], text[:, at + 1] = ord("0") + number // 10, ord("0") + number % 10
    return _fixed_width(text)


def make_tables(lives: paths.Paths, content: Content, encounters: Encounters, seed: int) -> dict[str, pa.Table]:
    """All tables of these patients, with Synthea's columns."""
    visits, patients = lives.visits, lives.patients
    patient_ids = make_uuids(seed, "patient", patients.number, np.zeros_like(patients.number))
    visit_ids = make_uuids(seed, "encounter", patients.number[visits.patient], visits.week)
    start, stop = format_times(encounters.times.start), format_times(encounters.times.stop)
    subject = patient_ids.take(pa.array(visits.patient))
    kinds = [(name, *codes.ENCOUNTERS[key]) for name, key in ENCOUNTER_KINDS]
    names, numbers, texts = (pa.array(column).take(pa.array(encounters.kind)) for column in zip(*kinds, strict=True))
    tables = {
        "patients": _patient_table(lives, patient_ids, seed),
        "encounters": _table("encounters", {
            "Id": visit_ids, "START": start, "STOP": stop, "PATIENT": subject, "ENCOUNTERCLASS": names, "CODE": numbers,
            "DESCRIPTION": texts, "BASE_ENCOUNTER_COST": "85.55", "TOTAL_CLAIM_COST": "85.55", "PAYER_COVERAGE": "0.00",
        }, len(visits.week)),
    }  # fmt: skip
    for name, rows in content.tables.items():
        at = pa.array(rows.visit)
        columns = {"PATIENT": subject.take(at), "ENCOUNTER": visit_ids.take(at), **_code_columns(name, rows)}
        begins = "DATE" if "DATE" in HEADERS[name].split(",") else "START"
        columns[begins] = start.take(at)
        if name == "procedures":
            columns["STOP"] = stop.take(at)
        if name == "careplans":
            number = patients.number[visits.patient[rows.visit]]
            columns["Id"] = make_uuids(seed, "careplan", number, visits.week[rows.visit] * 256 + rows.code)
        tables[name] = _table(name, columns | FIXED.get(name, {}), len(rows.visit))
    return tables


def _code_columns(name: str, rows: Rows) -> dict[str, pa.Array]:
    entries = CATALOGUES[name].entries
    at = pa.array(rows.code)
    numbers = pa.array([code.split("#")[0] for code in entries], pa.string()).take(at)
    if name != "observations":
        return {"CODE": numbers, "DESCRIPTION": pa.array(list(entries.values()), pa.string()).take(at)}
    is_text = np.array([lab.category == "social-history" for lab in entries.values()])[rows.code]
    labels = {"DESCRIPTION": [lab.name for lab in entries.values()], "UNITS": [lab.unit for lab in entries.values()]}
    labels["CATEGORY"] = [lab.category for lab in entries.values()]
    labels["TYPE"] = ["text" if lab.category == "social-history" else "numeric" for lab in entries.values()]
    columns = {key: pa.array(values, pa.string()).take(at) for key, values in labels.items()}
    tenths = np.where(is_text, 0, np.round(np.nan_to_num(rows.value) * 10)).astype(np.int64)
    unique, inverse = np.unique(tenths, return_inverse=True)
    values = pa.array([f"{tenth / 10:.1f}" for tenth in unique.tolist()], pa.string()).take(pa.array(inverse))
    columns["VALUE"] = pc.if_else(pa.array(is_text), columns["DESCRIPTION"], values)
    columns["DESCRIPTION"] = pc.if_else(pa.array(is_text), "Tobacco smoking status", columns["DESCRIPTION"])
    return columns | {"CODE": numbers}


def _patient_table(lives: paths.Paths, patient_ids: pa.Array, seed: int) -> pa.Table:
    patients, n = lives.patients, len(lives.patients.number)
    draws = Draws(seed, patients.number, np.zeros_like(patients.number))
    birth = patients.origin - patients.age_weeks * paths.WEEK
    dead = lives.death_week >= 0
    late = np.floor(draws.uniform("death") * 20 * 3600).astype(np.int64)
    death = patients.origin + np.maximum(lives.death_week, 0) * paths.WEEK + late
    sexes = np.array(chain.SEXES)[chain.fields_of(patients.state)["sex"]]
    pick = [np.floor(draws.uniform(name) * 4).astype(np.int64) for name in ("first", "city")]
    first = [FIRST_NAMES[sex][i] for sex, i in zip(sexes, pick[0], strict=True)]
    race = np.searchsorted(np.cumsum([share for _, share in RACES])[:-1], draws.uniform("race"), side="right")
    cities = [pa.array(column).take(pa.array(pick[1])) for column in zip(*CITIES, strict=True)]
    last = np.floor(draws.uniform("last") * len(LAST_NAMES)).astype(np.int64)
    columns = {
        "Id": patient_ids,
        "BIRTHDATE": pa.array(np.datetime_as_string((birth // paths.DAY).astype("datetime64[D]"))),
        "DEATHDATE": pc.if_else(pa.array(dead), format_times(death), ""),
        "FIRST": pa.array(first),
        "LAST": pa.array([f"{LAST_NAMES[i]}{number}" for i, number in zip(last, patients.number, strict=True)]),
        "MARITAL": pa.array(np.where(draws.uniform("married") < 0.5, "M", "S")),
        "RACE": pa.array([name for name, _ in RACES]).take(pa.array(race)),
        "ETHNICITY": pa.array(np.where(draws.uniform("ethnicity") < 0.13, "hispanic", "nonhispanic")),
        "GENDER": pa.array(sexes),
        "STATE": "Massachusetts",
        "CITY": cities[0], "COUNTY": cities[1], "ZIP": cities[2],
    }  # fmt: skip
    return _table("patients", columns, n)


def _table(name: str, columns: dict, num_rows: int) -> pa.Table:
    """Columns in the order of the header; a text fills its column, and a column not given is empty."""
    header = HEADERS[name].split(",")
    filled = {key: columns.get(key, "") for key in header}
    arrays = [pa.repeat(value, num_rows) if isinstance(value, str) else value for value in filled.values()]
    return pa.table(arrays, names=header)
