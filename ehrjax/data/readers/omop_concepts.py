"""OMOP concept ids -> codes such as DIAGNOSIS//SNOMED//44054006, by the CONCEPT table as far as it goes.

An event is coded by the first of these that is known: its standard concept, its source concept (both through
CONCEPT), `KIND//OMOP//<concept id>` where CONCEPT lacks them, `KIND//SOURCE//<source value>`. So data that were mapped
to SNOMED, LOINC and RxNorm share their codes with Synthea's own files. Dots of ICD codes are dropped, as in MIMIC-IV.

CONCEPT may have ten million rows. Ids and codes are kept as Arrow columns, some 30 bytes a concept; names are read in
a second pass over CONCEPT, for the codes that occurred.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from ehrjax.data.readers.clinical import segment
from ehrjax.data.readers.synthea import VITAL_LOINC
from ehrjax.data.readers.tables import Field, Table, read_table

_ID, _NAME = Field("concept_id", ("concept_id",)), Field("concept_name", ("concept_name",), is_free_text=True)
_FIELDS = (
    _ID,
    _NAME,
    Field("vocabulary_id", ("vocabulary_id",)),
    Field("concept_code", ("concept_code",)),
    Field("domain_id", ("domain_id",), required=False),
)
_NAMED_DOMAINS = ("visit", "gender", "race", "ethnicity")  # few concepts, whose names become codes
_UNMAPPED = ("", "0")

# Intensive Care; Inpatient Critical Care Facility; Inpatient Intensive Care Facility (no longer a standard concept).
INTENSIVE_CARE = (32037, 581379, 581382)
# Classes of encounters by visit_concept_id, named as Synthea names them.
_VISIT_CLASSES = {
    "inpatient": (9201, 262, 8717, 581383, 581384, *INTENSIVE_CARE),
    "outpatient": (9202, 8756, 8940, 581477, 38004207),
    "emergency": (9203, 8870, 581381),
    "urgentcare": (8782,),
    "home": (581476, 8536),
    "virtual": (5083, 722455),
    "pharmacy": (581458,),
    "laboratory": (32036,),
    "observation": (581385,),
    "ambulance": (581478,),
    "snf": (8863,),
    "hospice": (8546,),
    "longterm": (42898160, 8676),
}
_CLASS_OF_VISIT = {str(concept): name for name, concepts in _VISIT_CLASSES.items() for concept in concepts}
_PERSONAL = {
    "GENDER": {"8507": "M", "8532": "F"},
    "RACE": {"8527": "white", "8516": "black", "8515": "asian", "8657": "native", "8557": "hawaiian"},
    "ETHNICITY": {"38003563": "hispanic", "38003564": "nonhispanic"},
}


class Concepts:
    """Vocabulary and code of each concept; `tables` gives the files of CONCEPT, and is asked twice."""

    def __init__(self, tables: Callable[[], Iterable[Table]]):
        self._tables = tables
        self.names: dict[str, str] = {}  # concept id -> name, in the domains whose names become codes
        self._vocabularies: list[str] = []
        ids, vocabulary, codes = [np.empty(0, np.int64)], [np.empty(0, np.int16)], [pa.array([], pa.string())]
        for table in tables():
            for block in read_table(table, _FIELDS):
                concept = block.ints("concept_id")
                ids.append(concept)
                vocabulary.append(self._vocabulary_numbers(*block.texts("vocabulary_id")))
                column = block.columns["concept_code"]
                codes.append(column.values.cast(pa.string()).take(pa.array(column.index, mask=column.index < 0)))
                self._keep_names(block, concept)
        self.ids = np.concatenate(ids)
        order = np.argsort(self.ids, kind="stable")
        self.ids, self._vocabulary = self.ids[order], np.concatenate(vocabulary)[order]
        self._codes = pa.chunked_array(codes).combine_chunks().take(pa.array(order))

    def find(self, concept: str) -> tuple[str, str] | None:
        """Vocabulary and code of a concept id given as text; None where CONCEPT does not have it."""
        if not concept.isdigit():
            return None
        number = int(concept)
        at = int(np.searchsorted(self.ids, number))
        if at == len(self.ids) or self.ids[at] != number or not (code := self._codes[at].as_py()):
            return None
        return self._vocabularies[self._vocabulary[at]], code

    def read_names(self, wanted: set[str]) -> dict[str, str]:
        """Names of some concepts, by a pass over the files."""
        ids, names = np.array(sorted(int(c) for c in wanted), np.int64), {}
        for table in self._tables() if len(ids) else ():
            for block in read_table(table, (_ID, _NAME)):
                concept = block.ints("concept_id")
                index, texts = block.texts("concept_name")
                rows = np.flatnonzero(np.isin(concept, ids) & (index >= 0))
                names.update((str(concept[i]), texts[index[i]]) for i in rows)
        return names

    def _vocabulary_numbers(self, index: np.ndarray, texts: list[str]) -> np.ndarray:
        names = [text.upper().replace(" ", "_") for text in texts]
        self._vocabularies += [name for name in dict.fromkeys(["UNKNOWN", *names]) if name not in self._vocabularies]
        numbers = [self._vocabularies.index(name) for name in [*names, "UNKNOWN"]]  # the last is for index -1
        return np.array(numbers, np.int16)[index]

    def _keep_names(self, block, concept: np.ndarray) -> None:
        domain, domains = block.texts("domain_id")
        is_named = np.array([d.lower() in _NAMED_DOMAINS for d in domains] + [False])[domain]
        index, texts = block.texts("concept_name")
        rows = np.flatnonzero(is_named & (index >= 0))
        self.names.update((str(concept[i]), texts[index[i]]) for i in rows)


class Coder:
    """Codes of events, and what is known of them for people to read."""

    def __init__(self, concepts: Concepts):
        self.concepts = concepts
        self._cache: dict[tuple[str, ...], str] = {}
        self._concepts_of: dict[str, tuple[str, ...]] = {}  # code -> the concepts whose names describe it

    def event(self, table: str, concept: str, source_concept: str, source_value: str) -> str:
        """Code of an event of `table`, "" where nothing is known of it."""
        key = (table, concept, source_concept, source_value)
        if key not in self._cache:
            self._cache[key] = self._event(*key)
        return self._cache[key]

    def with_answer(self, code: str, concept: str, *texts: str) -> str:
        """The code with an answer as last segment: the code of the concept, else the first text there is."""
        found = None if concept in _UNMAPPED else self.concepts.find(concept)
        if found is not None:
            fused = f"{code}//{segment(found[1])}"
            self._concepts_of.setdefault(fused, (*self._concepts_of.get(code, ()), concept))
            return fused
        last = next((text for text in texts if text), "" if concept in _UNMAPPED else concept)
        return f"{code}//{last}" if last else code

    def visit_class(self, concept: str, source_concept: str) -> str:
        """Class of an encounter: Synthea's name, else the concept's own, else `unknown`."""
        for known in (concept, source_concept):
            name = _CLASS_OF_VISIT.get(known) or segment(self.concepts.names.get(known, "")).lower()
            if name:
                return name
        return "unknown" if concept in _UNMAPPED else f"omop_{concept}"

    def personal(self, kind: str, concept: str, source_value: str) -> str:
        """GENDER//F, RACE//white, ETHNICITY//hispanic; "" where neither concept nor source value says."""
        name = _PERSONAL[kind].get(concept) or self.concepts.names.get(concept) or source_value
        name = name.upper() if kind == "GENDER" else name.lower()
        return f"{kind}//{segment(name)}" if name else ""

    def descriptions(self) -> dict[str, str]:
        """Names of the codes handed out so far, by a pass over CONCEPT."""
        names = self.concepts.read_names({c for concepts in self._concepts_of.values() for c in concepts})
        found = {code: ": ".join(names[c] for c in cs if c in names) for code, cs in self._concepts_of.items()}
        return {code: name for code, name in found.items() if name}

    def _event(self, table: str, concept: str, source_concept: str, source_value: str) -> str:
        for candidate in (concept, source_concept):
            found = None if candidate in _UNMAPPED else self.concepts.find(candidate)
            if found is not None:
                vocabulary, code = found
                code = code.replace(".", "") if vocabulary.startswith(("ICD9", "ICD10")) else code
                name = f"{_kind(table, vocabulary, code)}//{vocabulary}//{segment(code)}"
                self._concepts_of.setdefault(name, (candidate,))
                return name
        for candidate in (concept, source_concept):
            if candidate not in _UNMAPPED:
                return f"{_kind(table)}//OMOP//{segment(candidate)}"
        return f"{_kind(table)}//SOURCE//{segment(source_value)}" if source_value else ""


def _kind(table: str, vocabulary: str = "", code: str = "") -> str:
    """Type of an event: by its table, or as Synthea's own tables would have it."""
    if table == "drug_exposure" and vocabulary == "CVX":
        return "IMMUNIZATION"
    if table in ("measurement", "observation") and vocabulary == "LOINC":
        return "VITAL" if code in VITAL_LOINC else "LAB"
    return {
        "condition_occurrence": "DIAGNOSIS",
        "drug_exposure": "MEDICATION",
        "procedure_occurrence": "PROCEDURE",
        "device_exposure": "DEVICE",
        "measurement": "LAB",
        "observation": "OBSERVATION",
    }[table]
