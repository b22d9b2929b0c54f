"""Events: the stream that every reader yields, and what is known of a code by its name.

A reader is a generator from a folder to `EventBatch`es, bounded in memory. Codes read `TYPE//SYSTEM//CODE`; birth and
death are `MEDS_BIRTH` and `MEDS_DEATH`; an event with time `STATIC_TIME` holds for the patient's whole record.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

STATIC_TIME = np.iinfo(np.int64).min  # sorts first, as MEDS wants null times
NO_VISIT = np.int64(-1)
BIRTH_CODE = "MEDS_BIRTH"
DEATH_CODE = "MEDS_DEATH"
ENCOUNTER_PREFIX = "ENCOUNTER//"  # start of an encounter, then its class: ENCOUNTER//inpatient
ENCOUNTER_END_PREFIX = "ENCOUNTER_END//"  # its end; carries the visit_id, never becomes a token


class EventBatch(NamedTuple):
    """Events read from one block of one source file, with the rows that could not be read.

    All event columns have the same length n; several events may come from one source row (an encounter's start and
    stop). `rows_read` counts source rows: each is either behind at least one event or in `quarantined`.
    """

    file: str  # path relative to the data set's parent folder, e.g. "victor_105/conditions.csv.gz"
    rows_read: int
    subject_id: np.ndarray  # int64 [n]
    time: np.ndarray  # int64 [n], microseconds since 1970-01-01 (UTC), or STATIC_TIME
    code: np.ndarray  # int32 [n], index into `codes`
    codes: list[str]  # the distinct codes of this batch
    numeric_value: np.ndarray  # float32 [n], NaN where there is none
    visit_id: np.ndarray  # int64 [n], the source's encounter (>= 0) or NO_VISIT
    row: np.ndarray  # int64 [n], 1-based data row in `file` (the header is not counted)
    quarantined: dict[str, np.ndarray]  # reason -> rows (int64) of `file` that gave no event
    descriptions: dict[str, str] | None = None  # code -> human name, where the file has one


EventStream = Iterator[EventBatch]


# Within a visit: diagnosis, lab, vital, procedure, medication, other. A prefix not listed is `other`.
TYPE_ORDER = ("diagnosis", "lab", "vital", "procedure", "medication", "other")
_PREFIX_TYPES = {
    "diagnosis": ("DIAGNOSIS", "CONDITION", "DX", "DIAG", "ICD10CM", "ICD9CM", "ICD10", "ICD9", "PROBLEM", "DE", "DO"),
    "lab": ("LAB", "MEASUREMENT", "OBSERVATION", "LOINC", "LABEVENT"),
    "vital": ("VITAL", "VITALS", "HR", "BP", "TEMP", "SPO2"),
    "procedure": ("PROCEDURE", "PROC", "CPT", "CPT4", "HCPCS", "ICD10PCS", "DEVICE"),
    "medication": ("MEDICATION", "MED", "DRUG", "RXNORM", "NDC", "ATC", "INFUSION", "IMMUNIZATION", "CVX"),
}
_TYPE_OF_PREFIX = {prefix: kind for kind, prefixes in _PREFIX_TYPES.items() for prefix in prefixes}


def code_type(code: str) -> str:
    """Clinical type of a code, from its first `//` segment (case-insensitive; also split at the first `/`, `_`, `:`).

    >>> code_type("DIAGNOSIS//SNOMED//44054006"), code_type("LAB/GL"), code_type("GENDER//F")
    ('diagnosis', 'lab', 'other')
    """
    head = code.split("//", 1)[0].upper()
    if head in _TYPE_OF_PREFIX:
        return _TYPE_OF_PREFIX[head]
    for separator in ("/", ":", "_"):
        head = head.split(separator, 1)[0]
    return _TYPE_OF_PREFIX.get(head) or _TYPE_OF_PREFIX.get(head.rstrip("0123456789"), "other")  # DE10, LAB4


def type_ranks(codes: list[str]) -> np.ndarray:
    """Rank (int8 [n]) of each code's type in `TYPE_ORDER`: the first key of the order within a visit."""
    rank = {name: i for i, name in enumerate(TYPE_ORDER)}
    return np.array([rank[code_type(code)] for code in codes], np.int8)
