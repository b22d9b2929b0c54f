"""Prediction tasks as data: what counts as the outcome, when to predict, how far ahead, who is at risk.

`TASKS` holds the recipes that come with the library, each with its rules beside it; `task_from_dict` makes one from a
user's code list. Code patterns match whole codes; `*` stands for any characters and `?` for one.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, get_origin

import numpy as np

from ehrjax.data.code_lists import (
    ANY_DIABETES,
    CHRONIC_CONDITIONS,
    CHRONIC_KIDNEY_DISEASE,
    COPD,
    DETERIORATION,
    HEART_FAILURE,
    HYPERTENSION,
    TYPE_2_DIABETES,
)

KIND_OF_OUTCOME = {
    "codes": "binary",  # one of `codes` is recorded in the window
    "codes_or_death": "binary",
    "death": "binary",
    "stay": "binary",  # a new inpatient stay begins in the window
    "time_to_codes": "survival",  # days to the first of `codes`
    "time_to_death": "survival",
    "time_to_stay": "survival",
    "new_codes": "multilabel",  # conditions recorded for the first time ever in the window
    "next_codes": "multilabel",  # diagnosis codes of the next visit
    "stay_days": "regression",  # log(1 + days) of the stay that begins at the index time
    "next_class": "multiclass",  # encounter class of the next visit
}
INDEX_RULES = ("random_visit", "every_visit", "admission", "during_stay", "discharge", "fixed_age", "random_date")
FOLLOW_UPS = ("last_event", "dataset_end")

# Encounter classes that are hospital stays: all readers use Synthea's names.
INPATIENT_CLASSES = ("ENCOUNTER//inpatient*", "ENCOUNTER//hospitalization")
# In data without encounters (MEDS) a stay runs from an admission event to the next discharge event.
ADMISSION_CODES = ("ADMISSION", "ADMISSION//*", "HOSPITAL_ADMISSION*")
DISCHARGE_CODES = ("DISCHARGE", "DISCHARGE//*", "HOSPITAL_DISCHARGE*")


@dataclass(frozen=True)
class Task:
    """One prediction task. Times are days, unless named otherwise.

    Index times (`index`): the end of a visit drawn at random or of every visit, the start or end of a hospital stay, a
    birthday, or one date a patient, drawn by hash of (seed, patient) from the data set's first time to its last less
    gap and horizon, whatever happens to the patient. "during_stay": while a hospital stay goes on, every
    `index_every_hours` from `index_from_hours` to `index_until_hours` after its start; stays of a patient that overlap
    or touch are one. At t a patient must be alive and have a record.

    Windows: a row is positive where the outcome falls in (t + gap, t + gap + horizon]. Survival: days from t to the
    first outcome in (t, t + horizon], or to the end of observation there; death is a second cause (`competing_death`),
    else it censors, which supposes that the dead would have gone on like the living. "new_codes": one output for each
    of `conditions`, pairs of a name and its code patterns, or for each of the `num_codes` codes among `codes` that most
    train patients have.

    Exclusions: `washout_days` (outcome codes): none of `codes` in that time up to t; inf = never before. "during_stay"
    looks back over the stay instead, and the day before it. `exclude_codes`: none of them by t. "new_codes": a
    condition that is there by t is masked, the row stays.

    `follow_up`: a patient is observed until the last event of the own record, or (complete extracts) until the end of
    the data set; a negative needs observation to the window's end, or death within it. The former must keep positives
    among patients lost to follow-up and drop negatives, which raises the prevalence: prefer "dataset_end" where it is
    true. Survival needs no whole window: who is lost is censored then. A binary outcome of "during_stay" is taken to be
    absent where the stay ends in the window without it. Raises ValueError for unknown or contradictory settings.
    """

    name: str
    outcome: str = "codes"  # a key of KIND_OF_OUTCOME
    codes: tuple[str, ...] = ()
    exclude_codes: tuple[str, ...] = ()
    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    index: str = "random_visit"
    index_age: float | None = None  # years, for index="fixed_age"
    index_from_hours: float = 12.0  # these three for index="during_stay"
    index_every_hours: float = 6.0
    index_until_hours: float = 312.0  # a few long stays do not make most of the rows
    horizon_days: float = 365.0
    gap_days: float = 0.0
    washout_days: float = math.inf
    min_history_days: float = 0.0
    min_visits: int = 1
    max_rows_per_patient: int | None = None  # drawn by hash; random_visit draws at most one
    follow_up: str = "last_event"
    stay_classes: tuple[str, ...] = INPATIENT_CLASSES
    num_codes: int = 100  # fitted outputs of "next_codes" and "new_codes": the most frequent of the train patients
    competing_death: bool = True  # "time_to_codes" and "time_to_stay"

    def __post_init__(self):
        _check_choice(self.name, "outcome", self.outcome, KIND_OF_OUTCOME)
        _check_choice(self.name, "index", self.index, INDEX_RULES)
        _check_choice(self.name, "follow_up", self.follow_up, FOLLOW_UPS)
        self._check_codes()
        self._check_index()
        limits = {"horizon_days": 1e-5, "gap_days": 0, "washout_days": 0, "min_history_days": 0, "min_visits": 1}
        limits |= {"index_from_hours": 0, "index_every_hours": 0.1, "index_until_hours": self.index_from_hours}
        limits |= {"num_codes": 1} | ({} if self.max_rows_per_patient is None else {"max_rows_per_patient": 1})
        for field, low in limits.items():
            value = getattr(self, field)
            if not low <= value or (math.isinf(value) and field != "washout_days"):
                raise ValueError(f"task {self.name!r}: {field}={value} must be at least {low:g} and finite.")

    def _check_index(self) -> None:
        if (self.index == "fixed_age") != (self.index_age is not None):
            raise ValueError(f"task {self.name!r}: index='fixed_age' and index_age (years) belong together.")
        if self.outcome == "stay_days" and self.index != "admission":
            raise ValueError(f"task {self.name!r}: stay_days is predicted at admission; index is {self.index!r}.")
        if self.index == "during_stay" and not math.isinf(self.washout_days):
            raise ValueError(
                f"task {self.name!r}: index='during_stay' looks back over the stay; leave out"
                f" washout_days={self.washout_days}, or name codes that must never have been in exclude_codes."
            )

    def _check_codes(self) -> None:
        is_new = self.outcome == "new_codes"
        needs_codes = self.outcome in ("codes", "codes_or_death", "time_to_codes") or (is_new and not self.conditions)
        if needs_codes and not self.codes:
            raise ValueError(f"task {self.name!r} has no codes: give code patterns such as ('*SNOMED*//44054006',).")
        if self.conditions and (self.codes or not is_new):
            raise ValueError(f"task {self.name!r}: conditions belong to outcome='new_codes', in place of codes.")
        names = [name for name, _ in self.conditions]
        if len(set(names)) < len(names) or not all(patterns for _, patterns in self.conditions):
            raise ValueError(f"task {self.name!r}: conditions={names} must have distinct names and some codes each.")
        if is_new and not math.isinf(self.washout_days):
            raise ValueError(
                f"task {self.name!r}: new_codes are first ever; washout_days={self.washout_days} says less."
            )
        if self.kind == "survival" and self.gap_days:
            raise ValueError(f"task {self.name!r}: survival counts days from t; gap_days={self.gap_days} must be 0.")

    @property
    def kind(self) -> str:
        """binary, multilabel, multiclass, regression or survival."""
        return KIND_OF_OUTCOME[self.outcome]

    @property
    def causes(self) -> tuple[str, ...]:
        """What the event numbers 1, 2 of a survival task stand for: the task's name less "time_to_", and death."""
        if self.kind != "survival":
            return ()
        own = (self.name.removeprefix("time_to_"),)
        return (*own, "death") if self.competing_death and self.outcome != "time_to_death" else own

    @property
    def needs_whole_window(self) -> bool:
        """Whether a row without the outcome has a label only where the patient was followed through the window."""
        return self.kind == "binary" or self.outcome == "new_codes"

    @property
    def row_limit(self) -> int | None:
        """Most rows of one patient; None where nothing is to be drawn."""
        if self.index == "random_date":
            return None
        return 1 if self.index == "random_visit" else self.max_rows_per_patient


def get_task(name: str) -> Task:
    """A shipped task by name; ValueError with the nearest name otherwise."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} is not known: {_hint(name, TASKS)} Or describe your own with a code list.")
    return TASKS[name]


def task_from_dict(name: str, fields: Mapping) -> Task:
    """A task from plain settings, e.g. `dict(codes=["*SNOMED*//38341003"], horizon_days=730, index="every_visit")`.

    `base`, the name of a shipped task, gives the fields that are left out. Raises ValueError for an unknown field
    (naming the nearest) or a value of the wrong type.
    """
    fields = dict(fields)
    base = get_task(fields.pop("base")) if "base" in fields else None
    types = {field.name: field.type for field in dataclasses.fields(Task) if field.name != "name"}
    for field, value in fields.items():
        if field not in types:
            raise ValueError(f"task {name!r}: field {field!r} is not known: {_hint(field, types)}")
        fields[field] = _convert(name, field, value, types[field])
    return dataclasses.replace(base, name=name, **fields) if base else Task(name, **fields)


def _convert(name: str, field: str, value, kind):
    if field == "conditions":
        pairs = value.items() if isinstance(value, Mapping) else value
        return tuple(
            (str(group), _convert(name, f"conditions[{group!r}]", codes, tuple[str])) for group, codes in pairs
        )
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"task {name!r}: {field}={value!r} must be a list of code patterns.")
        return tuple(value)
    allowed = get_args(kind) or (kind,)  # float | None -> float, NoneType
    if (isinstance(value, bool) and kind is not bool) or not isinstance(
        value, (*allowed, int) if float in allowed else allowed
    ):
        raise ValueError(f"task {name!r}: {field}={value!r} must be {' or '.join(t.__name__ for t in allowed)}.")
    return value


def _check_choice(name: str, field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"task {name!r}: {field}={value!r} is not known: {_hint(str(value), known)}")


def _hint(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(known))}."


def match_codes(patterns: Sequence[str], codes: Sequence[str]) -> np.ndarray:
    """Whether each code matches one of the patterns (bool [n]).

    >>> match_codes(("*//ICD10*//E11*", "DE11"), ["DIAGNOSIS//ICD10CM//E119", "DE11", "DIAGNOSIS//ICD10//E10"])
    array([ True,  True, False])
    """
    parts = (re.escape(p).replace(r"\*", ".*").replace(r"\?", ".") for p in patterns)
    regex = re.compile("|".join(f"(?:{part})" for part in parts), re.DOTALL)
    return np.array([bool(patterns) and regex.fullmatch(str(code)) is not None for code in codes], bool)


# Up to four index visits a patient: one leaves rare outcomes too few positives; intervals resample patients, not rows.
_SOME_VISITS = {"index": "every_visit", "max_rows_per_patient": 4}
_THREE_YEARS = 3 * 365.0
TASKS = {
    task.name: task
    for task in (
        # At visits of who has no diabetes of any type: type 2 diabetes within a year; or the days to it.
        Task("diabetes_onset", codes=TYPE_2_DIABETES, exclude_codes=ANY_DIABETES, **_SOME_VISITS),
        Task(
            "time_to_diabetes",
            outcome="time_to_codes",
            codes=TYPE_2_DIABETES,
            exclude_codes=ANY_DIABETES,
            horizon_days=_THREE_YEARS,
            **_SOME_VISITS,
        ),
        # Progression. At visits of who has neither: days to chronic kidney disease (stage 3 or more) or heart failure.
        Task(
            "time_to_ckd_hf",
            outcome="time_to_codes",
            codes=(*CHRONIC_KIDNEY_DISEASE, *HEART_FAILURE),
            horizon_days=_THREE_YEARS,
            **_SOME_VISITS,
        ),
        # At every hospital discharge that is not within another stay: a new stay within 30 days; or the days to it, of
        # up to 90, with death as the other cause.
        Task("readmission_30d", outcome="stay", index="discharge", horizon_days=30),
        Task("time_to_readmission", outcome="time_to_stay", index="discharge", horizon_days=90),
        # At visits of the living: death within a year; or the days to it.
        Task("mortality_1y", outcome="death", **_SOME_VISITS),
        Task("time_to_death", outcome="time_to_death", horizon_days=_THREE_YEARS, **_SOME_VISITS),
        # At visits: which of these begin within a year. A condition that the patient has by then is masked.
        Task(
            "conditions_1y",
            outcome="new_codes",
            conditions=(
                ("diabetes", ANY_DIABETES),
                ("hypertension", HYPERTENSION),
                ("kidney_disease", CHRONIC_KIDNEY_DISEASE),
                ("heart_failure", HEART_FAILURE),
                ("copd", COPD),
            ),
            **_SOME_VISITS,
        ),
        Task(
            "new_diagnoses_1y",
            outcome="new_codes",
            codes=CHRONIC_CONDITIONS,
            num_codes=20,
            index="every_visit",
            max_rows_per_patient=16,  # each condition by itself is rare
        ),
        # At visits with a next one: its diagnosis codes, its class. At admissions: log(1 + days) of the stay.
        Task("next_visit_codes", outcome="next_codes", **_SOME_VISITS),
        Task("next_visit_class", outcome="next_class", **_SOME_VISITS),
        Task("length_of_stay", outcome="stay_days", index="admission"),
        # 48 hours after ICU admission (PhysioNet 2012, whose records end there): death in that hospital stay. The
        # reader places the outcome within the next hour, so a stay without one counts as censored.
        Task(
            "in_hospital_death_48h",
            codes=("OUTCOME//PHYSIONET2012//IN_HOSPITAL_DEATH",),
            index="discharge",
            stay_classes=("ENCOUNTER//icu_first_48h",),
            horizon_days=1 / 24,
        ),
        # Every six hours of a hospital stay, from its 12th hour until the patient deteriorates or leaves: death,
        # intensive care, a vasopressor or mechanical ventilation within 24 hours. Stays that begin in intensive care
        # give no row; planned intensive care after an operation counts.
        Task("deterioration_24h", outcome="codes_or_death", codes=DETERIORATION, index="during_stay", horizon_days=1),
    )
}
