"""Prediction tasks as data: what counts as the outcome, when to predict, how far ahead, who is at risk.

`TASKS` holds the recipes that come with the library; `task_from_dict` makes one from a user's code list. Code patterns
match whole codes; `*` stands for any characters and `?` for one.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, get_origin

import numpy as np

KIND_OF_OUTCOME = {
    "codes": "binary",  # one of `codes` is recorded in the window
    "death": "binary",
    "stay": "binary",  # a new inpatient stay begins in the window
    "next_codes": "multilabel",  # diagnosis codes of the next visit
    "stay_days": "regression",  # log(1 + days) of the stay that begins at the index time
    "next_class": "multiclass",  # encounter class of the next visit
}
INDEX_RULES = ("random_visit", "every_visit", "admission", "discharge", "fixed_age")
FOLLOW_UPS = ("last_event", "dataset_end")

# Encounter classes that are hospital stays: all readers use Synthea's names.
INPATIENT_CLASSES = ("ENCOUNTER//inpatient*", "ENCOUNTER//hospitalization")
# In data without encounters (MEDS) a stay runs from an admission event to the next discharge event.
ADMISSION_CODES = ("ADMISSION", "ADMISSION//*", "HOSPITAL_ADMISSION*")
DISCHARGE_CODES = ("DISCHARGE", "DISCHARGE//*", "HOSPITAL_DISCHARGE*")


def _each(prefixes: Iterable[str], stems: Iterable[str]) -> tuple[str, ...]:
    return tuple(prefix + stem for prefix in prefixes for stem in stems)


_SNOMED = ("DIAGNOSIS//SNOMED*//", "CONDITION//SNOMED*//", "SNOMED//")
_ICD9 = ("DIAGNOSIS//ICD9*//", "CONDITION//ICD9*//", "ICD9CM//", "DIAGNOSIS//ICD//9//")  # procedures have a 250, too
_ICD10 = ("DIAGNOSIS//ICD10*//", "CONDITION//ICD10*//", "ICD10CM//", "DIAGNOSIS//ICD//10//", "", "D")
# Type 2 diabetes and the complications that imply it (prediabetes, 714628002 and 15777000, is none).
TYPE_2_DIABETES = (
    *_each(_SNOMED, ("44054006", "313436004", "359642000", "190331003", "199230006", "237599002", "443694000")),
    *_each(_SNOMED, ("127013003", "422034002", "1551000119108", "1501000119109", "97331000119101", "368581000119106")),
    *_each(_SNOMED, ("90781000119102", "157141000119108", "60951000119105", "60971000119101", "421986006")),
    *_each(_ICD9, ("250", "250.0", "2500", "250?0", "250?2", "250.?0", "250.?2")),
    *_each(_ICD10, ("E11*",)),
)
ANY_DIABETES = (
    *TYPE_2_DIABETES,
    *_each(_SNOMED, ("73211009", "46635009", "8801005", "5969009", "427089005", "11530004", "4855003")),
    *_each(_ICD9, ("250*",)),
    *_each(_ICD10, ("E08*", "E09*", "E10*", "E13*", "E14*")),
)


@dataclass(frozen=True)
class Task:
    """One prediction task. Times are days, unless named otherwise.

    A row is positive where the outcome falls in (t + gap, t + gap + horizon], t its index time. `index`: the end of a
    visit drawn at random or of every visit, the start or end of a hospital stay, or a birthday. `washout_days`
    (outcome "codes"): no outcome code in that time up to t; inf = never before. `exclude_codes`: none of them by t.
    `follow_up`: a patient is observed until the last event of the own record, or (complete extracts) until the end of
    the data set; a negative needs observation to the window's end, or death within it. The former must keep positives
    among patients lost to follow-up and drop negatives, which raises the prevalence: prefer "dataset_end" where it is
    true. Raises ValueError for unknown or contradictory settings.
    """

    name: str
    outcome: str = "codes"  # a key of KIND_OF_OUTCOME
    codes: tuple[str, ...] = ()
    exclude_codes: tuple[str, ...] = ()
    index: str = "random_visit"
    index_age: float | None = None  # years, for index="fixed_age"
    horizon_days: float = 365.0
    gap_days: float = 0.0
    washout_days: float = math.inf
    min_history_days: float = 0.0
    min_visits: int = 1
    max_rows_per_patient: int | None = None  # drawn by hash; random_visit draws at most one
    follow_up: str = "last_event"
    stay_classes: tuple[str, ...] = INPATIENT_CLASSES
    num_codes: int = 100  # outputs of "next_codes": the most frequent diagnoses of the train patients

    def __post_init__(self):
        _check_choice(self.name, "outcome", self.outcome, KIND_OF_OUTCOME)
        _check_choice(self.name, "index", self.index, INDEX_RULES)
        _check_choice(self.name, "follow_up", self.follow_up, FOLLOW_UPS)
        if self.outcome == "codes" and not self.codes:
            raise ValueError(f"task {self.name!r} has no codes: give code patterns such as ('*SNOMED*//44054006',).")
        if (self.index == "fixed_age") != (self.index_age is not None):
            raise ValueError(f"task {self.name!r}: index='fixed_age' and index_age (years) belong together.")
        if self.outcome == "stay_days" and self.index != "admission":
            raise ValueError(f"task {self.name!r}: stay_days is predicted at admission; index is {self.index!r}.")
        limits = {"horizon_days": 1e-5, "gap_days": 0, "washout_days": 0, "min_history_days": 0, "min_visits": 1}
        limits |= {"num_codes": 1} | ({} if self.max_rows_per_patient is None else {"max_rows_per_patient": 1})
        for field, low in limits.items():
            value = getattr(self, field)
            if not low <= value or (math.isinf(value) and field != "washout_days"):
                raise ValueError(f"task {self.name!r}: {field}={value} must be at least {low:g} and finite.")

    @property
    def kind(self) -> str:
        """binary, multilabel, multiclass or regression."""
        return KIND_OF_OUTCOME[self.outcome]

    @property
    def has_window(self) -> bool:
        """Whether the outcome is looked for in a time window (else at the next visit, or at the stay's end)."""
        return self.kind == "binary"

    @property
    def row_limit(self) -> int | None:
        """Most rows of one patient."""
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
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"task {name!r}: {field}={value!r} must be a list of code patterns.")
        return tuple(value)
    allowed = get_args(kind) or (kind,)  # float | None -> float, NoneType
    if isinstance(value, bool) or not isinstance(value, (*allowed, int) if float in allowed else allowed):
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
TASKS = {
    task.name: task
    for task in (
        Task("diabetes_onset", codes=TYPE_2_DIABETES, exclude_codes=ANY_DIABETES, **_SOME_VISITS),
        Task("readmission_30d", outcome="stay", index="discharge", horizon_days=30),
        Task("mortality_1y", outcome="death", **_SOME_VISITS),
        Task("next_visit_codes", outcome="next_codes", **_SOME_VISITS),
        Task("length_of_stay", outcome="stay_days", index="admission"),
        Task("next_visit_class", outcome="next_class", **_SOME_VISITS),
    )
}
