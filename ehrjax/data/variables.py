"""Measured variables: unit, plausible range, and which codes of a store hold them.

`ICU_VARIABLES` are the 37 time series of PhysioNet 2012 (Silva et al., 2012, CinC 39:245), `VITALS` the six default
vitals, in which arterial and cuff pressure are one variable. Codes are mapped for PhysioNet 2012, LOINC (Synthea, OMOP,
the simulators) and MIMIC-IV item ids, also as the MEDS extraction writes them (LAB//220045//bpm). A user's file adds
codes and variables, or overrides what is here; see `load_variables`.

Ranges are wide: they cut what a living patient cannot have (and typing errors), not what is rare.
"""

import csv
import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ehrjax.data.tasks import match_codes

# name | unit | low | high | PhysioNet 2012 | LOINC | MIMIC-IV items; `*2.54` multiplies values of that code.
_TABLE = """
heart_rate | /min | 10 | 300 | HR | 8867-4 | 220045
respiratory_rate | /min | 1 | 100 | RespRate | 9279-1 | 220210 224690 224689
temperature | degC | 25 | 45 | Temp | 8310-5 8331-1 8329-5 8328-7 | 223761 223762 50825 226329
oxygen_saturation | % | 30 | 100 | SaO2 | 2708-6 59408-5 2710-2 | 220277 220227 50817
arterial_systolic | mmHg | 20 | 330 | SysABP | 76215-3 | 220050 225309
arterial_diastolic | mmHg | 5 | 250 | DiasABP | 76213-8 | 220051 225310
arterial_mean | mmHg | 10 | 300 | MAP | 76214-6 | 220052 225312
cuff_systolic | mmHg | 20 | 330 | NISysABP | 8480-6 76534-7 | 220179 224167 227243
cuff_diastolic | mmHg | 5 | 250 | NIDiasABP | 8462-4 76535-4 | 220180 224643 227242
cuff_mean | mmHg | 10 | 300 | NIMAP | 8478-0 76536-2 | 220181
gcs | points | 3 | 15 | GCS | 9269-2 |
fio2 | fraction | 0.15 | 1 | FiO2 | 3150-6 19994-3 | 223835 50816
mechanical_ventilation | 1 | 0 | 1 | MechVent | |
urine | mL | 0 | 5000 | Urine | 9187-6 | 226559 226560 226561 226563 226564 226565 226567 226584
weight | kg | 1 | 400 | Weight | 29463-7 3141-9 | 226512 224639 226531*0.45359
albumin | g/dL | 0.5 | 8 | Albumin | 1751-7 | 50862 227456
alkaline_phosphatase | IU/L | 1 | 10000 | ALP | 6768-6 | 50863 225612
alt | IU/L | 1 | 50000 | ALT | 1742-6 | 50861 220644
ast | IU/L | 1 | 50000 | AST | 1920-8 | 50878 220587
bicarbonate | mmol/L | 2 | 70 | HCO3 | 1963-8 2028-9 20565-8 1960-4 | 50882 227443
bilirubin | mg/dL | 0.05 | 100 | Bilirubin | 1975-2 | 50885 225690
blood_urea_nitrogen | mg/dL | 1 | 300 | BUN | 3094-0 6299-2 | 51006 52647 225624
cholesterol | mg/dL | 10 | 1500 | Cholesterol | 2093-3 | 50907
creatinine | mg/dL | 0.05 | 40 | Creatinine | 2160-0 38483-4 | 50912 52546 220615
glucose | mg/dL | 5 | 2500 | Glucose | 2345-7 2339-0 | 50931 50809 220621 225664 226537
hematocrit | % | 5 | 75 | HCT | 4544-3 20570-8 | 51221 50810 51638 220545
lactate | mmol/L | 0.1 | 40 | Lactate | 2524-7 32693-4 2518-9 | 50813 52442 53154 225668
magnesium | mg/dL | 0.2 | 15 | Mg | 19123-9 | 50960 220635
paco2 | mmHg | 5 | 200 | PaCO2 | 2019-8 | 50818 220235
pao2 | mmHg | 10 | 750 | PaO2 | 2703-7 | 50821 220224
ph | 1 | 6.5 | 8 | pH | 2744-1 | 50820 223830
platelets | 10^9/L | 1 | 3000 | Platelets | 777-3 | 51265 51704 227457
potassium | mmol/L | 1 | 15 | K | 2823-3 6298-4 | 50971 50822 227442
sodium | mmol/L | 80 | 220 | Na | 2951-2 2947-0 | 50983 50824 220645 226534
troponin_i | ug/L | 0 | 500 | TroponinI | 10839-9 | 51002
troponin_t | ug/L | 0 | 100 | TroponinT | 6598-7 | 51003 227429
white_cells | 10^9/L | 0.05 | 1000 | WBC | 6690-2 26464-8 | 51301 51300 51755 51756 220546
height | cm | 40 | 250 | Height | 8302-2 3137-7 | 226730 226707*2.54
"""
_OFFICE_CODES = {  # MIMIC-IV's office measurements, by name
    "cuff_systolic": (("VITAL//OMR//Blood Pressure//systolic", 1.0),),
    "cuff_diastolic": (("VITAL//OMR//Blood Pressure//diastolic", 1.0),),
    "weight": (("VITAL//OMR//Weight (Lbs)", 0.45359),),
    "height": (("VITAL//OMR//Height (Inches)", 2.54),),
}
_MERGED = {
    "systolic_pressure": ("arterial_systolic", "cuff_systolic"),
    "diastolic_pressure": ("arterial_diastolic", "cuff_diastolic"),
}
VITALS = ("heart_rate", "systolic_pressure", "diastolic_pressure", "respiratory_rate", "temperature",
          "oxygen_saturation")  # fmt: skip


class OtherUnit(NamedTuple):
    """A second unit; its values in [low, high] are impossible in the first, which has value * factor + offset."""

    low: float
    high: float
    factor: float
    offset: float


_OTHER_UNITS = {
    "temperature": OtherUnit(77, 113, 5 / 9, -160 / 9),  # plainly Fahrenheit
    "fio2": OtherUnit(15, 100, 0.01, 0.0),  # per cent
}


@dataclass(frozen=True)
class Variable:
    """Values outside [low, high] are cut. `codes` pairs a code, or pattern, with what its values are multiplied by."""

    name: str
    unit: str
    low: float
    high: float
    codes: tuple[tuple[str, float], ...]
    other_unit: OtherUnit | None = None


class CodeMap(NamedTuple):
    """Which variable each code of a store measures."""

    variable: np.ndarray  # int32 [num_codes], position among the variables, -1 = none of them
    factor: np.ndarray  # float32 [num_codes]


class Checked(NamedTuple):
    """Values in their variable's unit, and what was done to them."""

    values: np.ndarray  # float32 [n]
    is_plausible: np.ndarray  # bool [n]
    num_converted: np.ndarray  # int64 [K]
    num_cut: np.ndarray  # int64 [K]


def _parse_table() -> dict[str, Variable]:
    variables = {}
    for line in _TABLE.strip().splitlines():
        name, unit, low, high, physionet, loinc, mimic = (cell.strip() for cell in line.split("|"))
        codes = [(f"PHYSIONET2012//{physionet}", 1.0)] + [(f"LOINC//{code}", 1.0) for code in loinc.split()]
        for item, _, factor in (text.partition("*") for text in mimic.split()):
            names = (f"MIMIC//{item}", f"LAB//{item}", f"SUBJECT_FLUID_OUTPUT//{item}")
            codes += [(code, float(factor or 1)) for code in names]
        codes += _OFFICE_CODES.get(name, ())
        variables[name] = Variable(name, unit, float(low), float(high), tuple(codes), _OTHER_UNITS.get(name))
    for name, parts in _MERGED.items():
        codes = tuple(code for part in parts for code in variables[part].codes)
        variables[name] = replace(variables[parts[0]], name=name, codes=codes)
    return variables


_SHIPPED = _parse_table()
ICU_VARIABLES = tuple(name for name in _SHIPPED if name not in (*_MERGED, "height"))


def load_variables(names: Sequence[str] = VITALS, path: str | Path | None = None) -> tuple[Variable, ...]:
    """The variables called `names`, in this order, as shipped or as the user's file at `path` changes them.

    The file is a CSV with columns variable, code and, where wanted, factor, unit, low, high (a row a code; the code may
    be empty where only the range changes), or JSON {variable: {"codes": [...], "unit", "low", "high"}}, codes as text
    or as {code: factor}. `*` and `?` in a code stand for any characters. A code of the file belongs to its variable
    alone; a new variable needs low and high. Raises FileNotFoundError, and ValueError naming the file and row, or the
    name and the nearest right one.
    """
    if isinstance(names, str) or len(set(names)) < len(names) or not names:
        raise ValueError(f"variables={names!r} must be a list of distinct names, such as {VITALS[:2]}.")
    known = dict(_SHIPPED)
    if path is not None:
        for where, name, codes, changes in _read_file(Path(path)):
            known[name] = _changed(known, where, name, codes, changes)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(sorted(known))}."
            raise ValueError(f"variable {name!r} is not known: {hint} Or describe it in a mapping file.")
    return tuple(known[name] for name in names)


def map_codes(variables: Sequence[Variable], codes: Sequence[str]) -> CodeMap:
    """Which of the `variables` each code measures. Of several claims on a code that of the user's file counts.

    A shipped code is found as the whole code, as its last two parts (VITAL//LOINC//8867-4), or as its first two
    (LAB//220045//bpm). Raises ValueError naming the code where two variables measure it.
    """
    variable = np.full(len(codes), -1, np.int32)
    factor = np.ones(len(codes), np.float32)
    exact: dict[str, tuple[int, float]] = {}
    patterns: list[tuple[str, int, float]] = []
    for k, one in enumerate(variables):
        for code, by in one.codes:
            if exact.get(code, (k, by))[0] != k:
                other = variables[exact[code][0]].name
                raise ValueError(f"code {code} would be both {other} and {one.name}: choose one of these variables.")
            exact[code] = (k, by)
            patterns += [(code, k, by)] if "*" in code or "?" in code else []
    for i, code in enumerate(codes):
        parts = str(code).split("//")
        keys = (str(code), "//".join(parts[-2:]), "//".join(parts[:2]))
        variable[i], factor[i] = next((exact[key] for key in keys if key in exact), (-1, 1.0))
    for pattern, k, by in patterns:
        found = match_codes((pattern,), codes)
        variable[found], factor[found] = k, by
    return CodeMap(variable, factor)


def check_values(variables: Sequence[Variable], index: np.ndarray, values: np.ndarray) -> Checked:
    """Values (float32 [n]) of variables `index` (int [n]) in their units; those plainly in the other unit converted.

    >>> checked = check_values(load_variables(["temperature"]), np.zeros(3, int), np.array([37.0, 98.6, -18.0]))
    >>> checked.values.round(1).tolist(), checked.is_plausible.tolist(), checked.num_converted, checked.num_cut
    ([37.0, 37.0, -18.0], [True, True, False], array([1]), array([1]))
    """
    values = np.asarray(values, np.float32)
    never = OtherUnit(math.inf, -math.inf, 1.0, 0.0)
    other = np.array([v.other_unit or never for v in variables], np.float32).reshape(-1, 4)[index]
    is_other = (values >= other[:, 0]) & (values <= other[:, 1])
    values = np.where(is_other, values * other[:, 2] + other[:, 3], values)
    limits = np.array([(v.low, v.high) for v in variables], np.float32).reshape(-1, 2)[index]
    is_plausible = (values >= limits[:, 0]) & (values <= limits[:, 1])
    counts = [np.bincount(index[mask], minlength=len(variables)) for mask in (is_other, ~is_plausible)]
    return Checked(values, is_plausible, *counts)


# The user's file

_Row = tuple[str, str, list[tuple[str, float]], dict[str, Any]]  # where, variable, codes, changes


def _read_file(path: Path) -> Iterator[_Row]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file: give a CSV or JSON file that maps codes to variables.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        yield from (_json_rows if path.suffix.lower() == ".json" else _csv_rows)(path, text)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({error}): it must be UTF-8 text, CSV or JSON.") from error


def _csv_rows(path: Path, text: str) -> Iterator[_Row]:
    reader = csv.DictReader(text.splitlines())
    if not {"variable", "code"} <= set(reader.fieldnames or ()):
        raise ValueError(f"{path}: needs columns variable and code (found {', '.join(reader.fieldnames or ())}).")
    for number, row in enumerate(reader, 1):
        where = f"{path}: row {number}"
        cells = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        factor = _number(where, "factor", cells.get("factor") or 1)
        codes = [(cells["code"], factor)] if cells["code"] else []
        yield where, cells["variable"], codes, {k: cells[k] for k in ("unit", "low", "high") if cells.get(k)}


def _json_rows(path: Path, text: str) -> Iterator[_Row]:
    content = json.loads(text)
    if not isinstance(content, Mapping) or not all(isinstance(fields, Mapping) for fields in content.values()):
        raise ValueError(f'{path}: must be an object such as {{"heart_rate": {{"codes": ["VITAL//HR"]}}}}.')
    for name, fields in content.items():
        where = f"{path}: {name}"
        codes = fields.get("codes", [])
        if unknown := set(fields) - {"codes", "unit", "low", "high"}:
            raise ValueError(f"{where}: {sorted(unknown)[0]!r} is not known: use codes, unit, low, high.")
        if not isinstance(codes, list | Mapping):
            raise ValueError(f"{where}: codes={codes!r} must be a list of codes, or an object code -> factor.")
        pairs = codes.items() if isinstance(codes, Mapping) else [(code, 1) for code in codes]
        numbered = [(str(code), _number(where, "factor", factor)) for code, factor in pairs]
        yield where, name, numbered, {k: v for k, v in fields.items() if k != "codes"}


def _changed(known: dict[str, Variable], where: str, name: str, codes: list, changes: dict[str, Any]) -> Variable:
    """The variable with the file's codes and range; takes these codes from all others in `known`."""
    changes |= {k: _number(where, k, changes[k]) for k in ("low", "high") if k in changes}
    if not name:
        raise ValueError(f"{where}: the variable has no name.")
    if name not in known and not {"low", "high"} <= set(changes):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{where}: {name!r} is new: give its plausible low and high{hint}.")
    own = {code for code, _ in codes}
    for other in known.values():
        known[other.name] = replace(other, codes=tuple(pair for pair in other.codes if pair[0] not in own))
    old = known.get(name) or Variable(name, "", 0.0, 0.0, ())
    new = replace(old, codes=(*old.codes, *codes), **changes)
    if not new.low < new.high:
        raise ValueError(f"{where}: low={new.low:g} must be below high={new.high:g}.")
    return new


def _number(where: str, field: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {field}={value!r} must be a number.")
    return number
