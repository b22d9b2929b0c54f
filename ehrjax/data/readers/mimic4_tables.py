"""The event tables of MIMIC-IV, a few lines each: what makes the code, when it was known, where its name stands."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from ehrjax.data.events import ENCOUNTER_END_PREFIX, ENCOUNTER_PREFIX, NO_VISIT, STATIC_TIME, EventBatch
from ehrjax.data.readers.clinical import Encounters, SortedIds, add_answers, answers, build_codes, described, segment
from ehrjax.data.readers.columns import parse_numbers
from ehrjax.data.readers.tables import Block, EventPart, Field, Table, read_table

Find = Callable[[str], Table | None]  # "hosp/labevents" -> the table, or None where the download lacks it
_MASKED = ("___",)  # what de-identification leaves in place of a text
_CHART_TYPES = {"Routine Vital Signs": "VITAL", "Labs": "LAB"}  # by d_items.category; anything else is CHART


class Spec(NamedTuple):
    """How a row of one table becomes an event, or several."""

    file: str
    code: tuple[str, ...]  # columns that make the code
    build: Callable[..., str]  # their texts -> code, "" for none
    time: tuple[str, ...] = ()  # the latest of these columns that has a value...
    day: str = ""  # ... else the end of this day, or the discharge of that day
    at_discharge: bool = False
    value: tuple[str, ...] = ()  # the first of these columns that is a number
    answer: str = ""  # fused with the code where there is no number
    name: str = ""  # the table's own description of the code
    dictionary: tuple[str, str] = ("", "")  # or the d_*.csv keyed by the columns of `code`, and its name column
    special: Callable | None = None  # (block, time, visit) -> parts, where a row is more than one event
    optional: tuple[str, ...] = ()  # what `special` reads beside


def read_events(table: Table, spec: Spec, known: SortedIds, stays: Encounters, find: Find) -> Iterator[EventBatch]:
    """Events of one table; rows of unknown patients, stays, times and codes are quarantined."""
    names = {spec.build(*key): name for key, name in _read_dictionary(find, spec.dictionary, spec.code).items()}
    for block in read_table(table, _fields(spec)):
        subject = known.patients(block, "subject_id")
        visit = np.maximum(block.ints("hadm_id"), NO_VISIT)
        time = _known_at(block, spec, visit, stays)
        if spec.special is not None:
            yield block.events(subject, spec.special(block, time, visit))
            continue
        code, codes = build_codes(block, spec.code, spec.build)
        found = described(block, code, codes, spec.name) if spec.name else names
        value = _first_number(block, spec.value)
        if spec.answer:
            value = np.where(np.isnan(value), block.numbers(spec.answer), value)
            answer = answers(block.columns[spec.answer], ignore=_MASKED)
            code, codes = add_answers(code, codes, value, answer)
        yield block.events(subject, [EventPart(time, code, codes, value, visit)], descriptions=found)


def event_tables(find: Find) -> Iterator[Spec]:
    """The tables to read; charted items take their type from the dictionary of items."""
    yield from _TABLES
    if find("icu/chartevents") is not None:
        category = _read_dictionary(find, ("icu/d_items", "category"), ("itemid",))

        def build(item: str) -> str:
            return f"{_CHART_TYPES.get(category.get((item,), ''), 'CHART')}//MIMIC//{item}"

        yield Spec("icu/chartevents", ("itemid",), build, **_RESULT, value=("valuenum",), answer="value", **_ITEM)


def _fields(spec: Spec) -> list[Field]:
    when = spec.time[:1] or ((spec.day,) if spec.day else ())
    required = dict.fromkeys(("subject_id", *spec.code, *when))
    optional = dict.fromkeys(("hadm_id", *spec.time, spec.day, *spec.value, spec.answer, spec.name, *spec.optional))
    fields = [Field(column, (column,)) for column in required]
    free = (spec.answer, spec.name)
    return fields + [Field(c, (c,), False, c in free) for c in optional if c and c not in required]


def _known_at(block: Block, spec: Spec, visit: np.ndarray, stays: Encounters) -> np.ndarray:
    if spec.at_discharge:
        block.reject("unknown_encounter", stays.position(visit) < 0)
        time = stays.end_of(visit)
    else:
        time = np.full(len(block), STATIC_TIME)
        for column in spec.time:
            time = np.maximum(time, block.times(column, required=False))
        if spec.day:
            day = stays.known_by(block.times(spec.day, required=False), visit)
            time = np.where(time == STATIC_TIME, day, time)
    block.reject("missing_time", time == STATIC_TIME)
    return time


def _first_number(block: Block, columns: tuple[str, ...]) -> np.ndarray:
    value = np.full(len(block), np.nan, np.float32)
    for column in columns:
        value = np.where(np.isnan(value), block.numbers(column), value)
    return value


def _read_dictionary(find: Find, source: tuple[str, str], keys: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Keys' texts -> name, from a d_*.csv; empty where it is not there."""
    stem, name = source
    table, found = find(stem) if stem else None, {}
    if table is None:
        return found
    for block in read_table(table, [Field(column, (column,)) for column in (*keys, name)]):
        columns = [block.texts(column) for column in (*keys, name)]
        texts = [[values[i] if i >= 0 else "" for i in index.tolist()] for index, values in columns]
        found.update({tuple(row[:-1]): row[-1] for row in zip(*texts, strict=True)})
    return found


# Codes


def _icd(kind: str, ninth: str, tenth: str) -> Callable[[str, str], str]:
    systems = {"9": ninth, "10": tenth}
    return lambda code, version: code and f"{kind}//{systems.get(version, 'ICD' + version)}//{code.replace(' ', '')}"


def _coded(*prefix: str) -> Callable[..., str]:
    """Prefix and the texts that are there; no code without the first text."""
    return lambda first, *rest: "//".join([*prefix, *(segment(t) for t in (first, *rest) if t)]) if first else ""


def _transfers(block: Block, time: np.ndarray, visit: np.ndarray) -> list[EventPart]:
    """A transfer; one to the emergency department without an admission is an encounter of its own."""
    code, codes = build_codes(block, ("eventtype", "careunit"), _coded("TRANSFER"))
    kind, kinds = build_codes(block, ("eventtype",), lambda kind: kind and ("emergency" if kind == "ED" else ""))
    is_visit = (kind >= 0) & (visit < 0)
    visit = np.where(is_visit, block.ints("transfer_id"), visit)
    end = block.times("outtime", required=False)
    end = np.where(end < time, STATIC_TIME, end)
    return [
        EventPart(time, np.where(is_visit, kind, np.int32(-1)), [ENCOUNTER_PREFIX + k for k in kinds], visit_id=visit),
        EventPart(
            end,
            np.where(is_visit & (end != STATIC_TIME), kind, np.int32(-1)),
            [ENCOUNTER_END_PREFIX + k for k in kinds],
            visit_id=visit,
        ),
        EventPart(time, code, codes, visit_id=visit),
    ]


def _icu_stays(block: Block, time: np.ndarray, visit: np.ndarray) -> list[EventPart]:
    leave = block.times("outtime", required=False)
    block.reject("ends_before_start", (leave != STATIC_TIME) & (leave < time))
    unit, units = build_codes(block, ("first_careunit",), _coded("ICU_ADMISSION"))
    last, lasts = build_codes(block, ("last_careunit",), _coded("ICU_DISCHARGE"))
    last = np.where(leave == STATIC_TIME, np.int32(-1), last)
    return [EventPart(time, unit, units, visit_id=visit), EventPart(leave, last, lasts, visit_id=visit)]


def _outpatient_measures(block: Block, time: np.ndarray, visit: np.ndarray) -> list[EventPart]:
    """Office measurements; a blood pressure "120/80" is two events."""
    code, codes = build_codes(block, ("result_name",), _coded("VITAL", "OMR"))
    column = block.columns["result_value"]
    pieces = [(text or "").partition("/") for text in column.values.cast("string").to_pylist()]
    first, second = (parse_numbers(pa.array([piece[i] for piece in pieces], pa.string())) for i in (0, 2))
    first, second = column.take(first, np.nan), column.take(second, np.nan)
    is_pair = ~np.isnan(first) & ~np.isnan(second)
    parts = [EventPart(time, np.where(is_pair, np.int32(-1), code), codes, first, visit)]
    for name, value in (("systolic", first), ("diastolic", second)):
        pair = np.where(is_pair, code, np.int32(-1))
        parts.append(EventPart(time, pair, [f"{c}//{name}" for c in codes], value, visit))
    return parts


_RESULT = {"time": ("charttime", "storetime")}
_ITEM = {"dictionary": ("icu/d_items", "label")}
_TABLES = (
    Spec("hosp/transfers", ("eventtype",), _coded("TRANSFER"), ("intime",), special=_transfers,
         optional=("careunit", "transfer_id", "outtime")),
    Spec("hosp/services", ("curr_service",), _coded("SERVICE"), ("transfertime",)),
    Spec("icu/icustays", ("first_careunit",), _coded("ICU_ADMISSION"), ("intime",), special=_icu_stays,
         optional=("last_careunit", "outtime")),
    Spec("hosp/diagnoses_icd", ("icd_code", "icd_version"), _icd("DIAGNOSIS", "ICD9CM", "ICD10CM"), at_discharge=True,
         dictionary=("hosp/d_icd_diagnoses", "long_title")),
    Spec("hosp/drgcodes", ("drg_type", "drg_code"), _coded("DRG"), at_discharge=True, name="description"),
    Spec("hosp/procedures_icd", ("icd_code", "icd_version"), _icd("PROCEDURE", "ICD9PROC", "ICD10PCS"), day="chartdate",
         dictionary=("hosp/d_icd_procedures", "long_title")),
    Spec("hosp/hcpcsevents", ("hcpcs_cd",), _coded("PROCEDURE", "HCPCS"), day="chartdate", name="short_description"),
    Spec("hosp/prescriptions", ("drug",), _coded("MEDICATION", "MIMIC"), ("starttime",)),
    Spec("hosp/emar", ("medication", "event_txt"), _coded("MEDICATION", "EMAR"), ("charttime",)),
    Spec("hosp/labevents", ("itemid",), _coded("LAB", "MIMIC"), **_RESULT, value=("valuenum",), answer="value",
         dictionary=("hosp/d_labitems", "label")),
    Spec("hosp/microbiologyevents", ("test_name", "org_name", "ab_name", "interpretation"), _coded("LAB", "MICRO"),
         **_RESULT, day="chartdate"),
    Spec("hosp/omr", ("result_name",), _coded("VITAL", "OMR"), day="chartdate", special=_outpatient_measures,
         optional=("result_value",)),
    Spec("icu/inputevents", ("itemid",), _coded("INFUSION", "MIMIC"), ("starttime",), value=("rate", "amount"),
         **_ITEM),
    Spec("icu/outputevents", ("itemid",), _coded("OUTPUT", "MIMIC"), **_RESULT, value=("value",), **_ITEM),
    Spec("icu/procedureevents", ("itemid",), _coded("PROCEDURE", "MIMIC"), ("starttime",), **_ITEM),
)  # fmt: skip
