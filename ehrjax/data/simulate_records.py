"""What the simulator writes down: the codes and values recorded at each visit, given the patient's state.

The state is recorded by codes of its own (an onset always, later visits sometimes). Beside them, codes are drawn from
pools whose weights depend on the latent subtype: each pool favours a quarter of its codes for each subtype. Those draws
are the only part of a visit's content that depends on the subtype, and `Content.log_likelihood` carries what they say.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data import simulate_chain as chain
from ehrjax.data import simulate_codes as codes
from ehrjax.data import simulate_paths as paths
from ehrjax.data.simulate_random import Draws

FAVOUR = 1.6  # weight of a code for the subtype it is favoured by
TABLES = (
    "conditions",
    "observations",
    "medications",
    "procedures",
    "immunizations",
    "allergies",
    "careplans",
    "devices",
)


class Rows(NamedTuple):
    """Rows of one table: visit (int64 [r]), catalogue code (int32 [r]), value (float32 [r], NaN for none)."""

    visit: np.ndarray
    code: np.ndarray
    value: np.ndarray


class Content(NamedTuple):
    """All rows of all visits by table, and log P(the visit's pool draws | subtype), float32 [v, 4]."""

    tables: dict[str, Rows]
    log_likelihood: np.ndarray


class Catalogue:
    """The distinct codes of a table with their names, numbered."""

    def __init__(self, *tables: dict):
        self.entries = {code: value for table in tables for code, value in table.items()}
        self.ids = {code: number for number, code in enumerate(self.entries)}

    def __getitem__(self, code: str) -> int:
        return self.ids[code]


_SMOKING = {
    f"{codes.SMOKING_CODE}#{i}": codes.Lab(text, "", "social-history", 0, 0) for i, text in enumerate(codes.SMOKING)
}
LABS = (codes.VITALS, codes.GLUCOSE_LABS, codes.METABOLIC_LABS, codes.LIPID_LABS, codes.BLOOD_COUNT_LABS, codes.SURVEYS)
CATALOGUES = {
    "conditions": Catalogue(codes.STATE_CONDITIONS, codes.STEROID_REASONS, codes.ACUTE_ADULT, codes.ACUTE_CHILD,
                            codes.FINDINGS, codes.CHRONIC, codes.STAY_REASONS, codes.DIABETES_COMPLICATIONS),
    "observations": Catalogue(*LABS, codes.OTHER_LABS, _SMOKING),
    "medications": Catalogue(codes.CHRONIC_MEDICATIONS, codes.ACUTE_MEDICATIONS, codes.STAY_MEDICATIONS),
    "procedures": Catalogue(codes.CARE_CODES, codes.PROCEDURES, codes.THERAPIES, codes.STAY_PROCEDURES),
    "immunizations": Catalogue(codes.IMMUNIZATIONS),
    "allergies": Catalogue(codes.ALLERGENS),
    "careplans": Catalogue(codes.CAREPLANS),
    "devices": Catalogue(codes.DEVICES),
}  # fmt: skip


class Pool(NamedTuple):
    """Codes of one table drawn with Zipf-like weights that depend on the subtype."""

    codes: np.ndarray  # int32 [m], catalogue numbers
    cumulative: np.ndarray  # float32 [4, m]
    log_weight: np.ndarray  # float32 [4, m]


def make_pool(table: str, members: dict) -> Pool:
    """Code i of `members` has weight 1 / (i + 4), `FAVOUR` times that for subtype i mod 4."""
    rank = np.arange(len(members))
    weight = (1.0 / (rank + 4.0)) * np.where(rank % 4 == np.arange(4)[:, None], FAVOUR, 1.0)
    weight /= weight.sum(1, keepdims=True)
    numbers = np.array([CATALOGUES[table][code] for code in members], np.int32)
    return Pool(numbers, np.cumsum(weight, 1).astype(np.float32), np.log(weight).astype(np.float32))


POOLS = {
    "acute_adult": ("conditions", make_pool("conditions", codes.ACUTE_ADULT)),
    "acute_child": ("conditions", make_pool("conditions", codes.ACUTE_CHILD)),
    "findings": ("conditions", make_pool("conditions", codes.FINDINGS)),
    "other_labs": ("observations", make_pool("observations", codes.OTHER_LABS)),
    "procedures": ("procedures", make_pool("procedures", codes.PROCEDURES)),
}
CHRONIC_A_YEAR = 0.012  # hazard of each further chronic condition in middle age, see `_chronic`
MEDICATIONS = {  # by disease: what is prescribed
    "hypertension": ("314076", "308136", "310798", "979485", "197361", "866412"),
    "kidney": ("979492", "314077"),
    "heart": ("200033", "313988", "1656356", "197604"),
    "copd": ("245314", "896209", "859088"),
    "diabetes": ("860975", "106892", "865098", "897122"),
}
CAREPLANS = {"obesity": "718361005", "hypertension": "443402002", "kidney": "734163000", "heart": "735984001",
             "copd": "412776001", "diabetes": "735985000"}  # fmt: skip
# Shift of a lab's mean where a disease is present, in the lab's unit.
LAB_SHIFTS = {
    "8480-6": {"hypertension": 21, "kidney": 5}, "8462-4": {"hypertension": 12}, "29463-7": {"obesity": 24},
    "39156-5": {"obesity": 9}, "8867-4": {"heart": 9, "copd": 5}, "9279-1": {"copd": 3, "heart": 2},
    "2160-0": {"kidney": 1.1}, "33914-3": {"kidney": -52, "diabetes": -6}, "3094-0": {"kidney": 14},
    "2823-3": {"kidney": 0.5}, "2571-8": {"obesity": 35, "diabetes": 30}, "2085-9": {"obesity": -9},
    "18262-6": {"obesity": 14}, "718-7": {"kidney": -2.2}, "4544-3": {"kidney": -6}, "2708-6": {"copd": -5},
    "33762-6": {"heart": 1500}, "19926-5": {"copd": -24}, "14959-1": {"kidney": 120, "diabetes": 25},
}  # fmt: skip
GLUCOSE_SHIFTS = {"4548-4": (0.0, 0.35, 0.7, 1.05, 2.1), "2345-7": (0, 11, 20, 28, 62)}  # by glycaemic level


class Visit(NamedTuple):
    """What a visit's content depends on, as arrays over visits."""

    draws: Draws
    kind: np.ndarray
    event: np.ndarray
    subtype: np.ndarray
    age: np.ndarray  # years
    level: np.ndarray  # glycaemic level, 0 .. 4
    present: dict[str, np.ndarray]  # disease -> bool, "diabetes" among them
    starts: dict[str, np.ndarray]  # disease -> bool: begins at this visit
    patient: np.ndarray
    gap_years: np.ndarray  # since the previous visit, 0 at the first


class _Writer:
    """Collects rows by table, and what the pool draws say of the subtype."""

    def __init__(self, num_visits: int):
        self.parts = {table: [] for table in TABLES}
        self.log_likelihood = np.zeros((num_visits, len(chain.SUBTYPES)), np.float32)

    def add(self, table: str, visits: np.ndarray, code, value=np.nan) -> None:
        code = np.broadcast_to(np.asarray(code, np.int32), visits.shape)
        value = np.broadcast_to(np.asarray(value, np.float32), visits.shape)
        self.parts[table].append((visits, code, value))

    def draw(self, pool_name: str, name: str, visits: np.ndarray, visit: Visit) -> np.ndarray:
        """Adds one draw from a pool at each of `visits`; returns the codes."""
        table, pool = POOLS[pool_name]
        uniform = visit.draws.take(visits).uniform(name)
        subtype = visit.subtype[visits]
        chosen = np.empty(len(visits), np.int64)
        for u in range(len(chain.SUBTYPES)):
            here = subtype == u
            chosen[here] = np.searchsorted(pool.cumulative[u, :-1], uniform[here], side="right")
        self.log_likelihood[visits] += pool.log_weight[:, chosen].T
        values = np.float32(np.nan)
        if table == "observations":
            values = _lab_values(pool.codes[chosen], visits, visit, name)
        self.add(table, visits, pool.codes[chosen], values)
        return chosen

    def finish(self) -> Content:
        return Content({table: _in_order(parts) for table, parts in self.parts.items()}, self.log_likelihood)


def _in_order(parts: list) -> Rows:
    if not parts:
        return Rows(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    visit, code, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(visit, kind="stable")
    return Rows(visit[order], code[order], value[order])


def record_visits(lives: paths.Paths, seed: int) -> Content:
    """The content of every visit of these lives."""
    visit = _describe(lives, seed)
    writer = _Writer(len(visit.kind))
    for part in (_state_codes, _pool_codes, _stays, _observations, _medications, _care, _immunizations, _chronic):
        part(visit, writer)
    return writer.finish()


def _describe(lives: paths.Paths, seed: int) -> Visit:
    visits, patients = lives.visits, lives.patients
    fields = chain.fields_of(visits.state)
    level = chain.LEVEL[fields["glycaemia"]]
    present = {disease: fields[disease] == 1 for disease in chain.DISEASES} | {"diabetes": level == 4}
    entry = visits.kind == paths.ENTRY
    begins = {disease: visits.event == event for event, disease in enumerate(chain.DISEASES, chain.E_OBESITY)}
    begins["diabetes"] = visits.event == chain.E_DIABETES
    same = np.append(False, visits.patient[1:] == visits.patient[:-1])
    gap = np.where(same, np.diff(visits.week, prepend=0), 0) / chain.WEEKS_PER_YEAR
    return Visit(
        draws=Draws(seed, patients.number[visits.patient], visits.week),
        kind=visits.kind,
        event=visits.event,
        subtype=fields["subtype"],
        age=(patients.age_weeks[visits.patient] + visits.week) / chain.WEEKS_PER_YEAR,
        level=level,
        present=present,
        starts={disease: begins[disease] | (entry & present[disease]) for disease in present},
        patient=visits.patient,
        gap_years=gap,
    )


def _some(visit: Visit, name: str, share, among=None) -> np.ndarray:
    """Visits (rows) at which something with probability `share` happens, among those of a mask."""
    happens = visit.draws.uniform(name) < share
    return np.flatnonzero(happens if among is None else happens & among)


def _pick(visit: Visit, name: str, rows: np.ndarray, table: str, options) -> np.ndarray:
    """One of `options` (codes) at each row, with equal chances."""
    numbers = np.array([CATALOGUES[table][code] for code in options], np.int32)
    return numbers[(visit.draws.take(rows).uniform(name) * len(numbers)).astype(np.int64)]


def _is(visit: Visit, *kinds: int) -> np.ndarray:
    return np.isin(visit.kind, kinds)


def _state_codes(visit: Visit, writer: _Writer) -> None:
    """Diagnoses of the recorded state: always when it changes, sometimes later."""
    conditions, routine = CATALOGUES["conditions"], _is(visit, paths.WELLNESS, paths.FOLLOW_UP)
    for disease, code in codes.DISEASE_CODES.items():
        again = (visit.draws.uniform(f"state/{disease}") < 0.4) & routine & visit.present[disease]
        writer.add("conditions", np.flatnonzero(visit.starts[disease] | again), conditions[code])
        plan = np.flatnonzero(visit.starts[disease])
        writer.add("careplans", plan, CATALOGUES["careplans"][CAREPLANS[disease]])
    moved = np.isin(visit.event, (chain.E_UP, chain.E_DOWN, chain.E_DIABETES)) | (visit.kind == paths.ENTRY)
    mentioned = (visit.draws.uniform("state/level") < 0.8) & ~_is(visit, paths.ACUTE, paths.SERIES)
    for level, code in codes.LEVEL_CODES.items():
        rows = np.flatnonzero((moved | mentioned) & (visit.level == level))
        writer.add("conditions", rows, conditions[code])
    normal = (visit.event == chain.E_DOWN) | ((visit.draws.uniform("state/normal") < 0.5) & routine & (visit.age > 25))
    rows = np.flatnonzero(normal & (visit.level == 0))
    writer.add("procedures", rows, CATALOGUES["procedures"][codes.NORMAL_GLUCOSE_PROCEDURE])
    plan = np.flatnonzero(visit.starts["diabetes"])
    writer.add("careplans", plan, CATALOGUES["careplans"][CAREPLANS["diabetes"]])
    rows = _some(visit, "complication", 0.06, visit.present["diabetes"] & _is(visit, paths.FOLLOW_UP, paths.STAY))
    picked = _pick(visit, "complication/which", rows, "conditions", codes.DIABETES_COMPLICATIONS)
    writer.add("conditions", rows, picked)


def _pool_codes(visit: Visit, writer: _Writer) -> None:
    """Acute illnesses, findings, procedures and further labs: the draws that depend on the subtype."""
    child = visit.age < 15
    for slot, share in enumerate((1.0, 0.15)):
        ill = _is(visit, paths.ACUTE)
        for pool, group in (("acute_child", child), ("acute_adult", ~child)):
            writer.draw(pool, f"acute/{slot}", _some(visit, f"acute/has/{slot}", share, ill & group), visit)
    for slot, (often, rare) in enumerate(((0.7, 0.15), (0.35, 0.0))):
        share = np.where(_is(visit, paths.ENTRY, paths.WELLNESS), often, rare)
        writer.draw("findings", f"findings/{slot}", _some(visit, f"findings/has/{slot}", share, ~child), visit)
    for slot, share in enumerate((0.6, 0.3, 0.12)):
        writer.draw("procedures", f"procedure/{slot}", _some(visit, f"procedure/has/{slot}", share), visit)
    for slot in range(3):
        share = np.where(_is(visit, paths.STAY), 0.7, np.where(_is(visit, paths.SERIES), 0.0, 0.12))
        writer.draw("other_labs", f"lab/{slot}", _some(visit, f"lab/has/{slot}", share), visit)


def _stays(visit: Visit, writer: _Writer) -> None:
    """Reasons, procedures and drugs of hospital stays, and of steroid courses."""
    stay = _is(visit, paths.STAY)
    for slot, share in enumerate((1.0, 0.25)):
        rows = _some(visit, f"stay/has/{slot}", share, stay)
        writer.add("conditions", rows, _pick(visit, f"stay/{slot}", rows, "conditions", codes.STAY_REASONS))
        writer.add("medications", rows, _pick(visit, f"stay/drug/{slot}", rows, "medications", codes.STAY_MEDICATIONS))
        writer.add("procedures", rows, _pick(visit, f"stay/done/{slot}", rows, "procedures", codes.STAY_PROCEDURES))
    writer.add("procedures", np.flatnonzero(stay), CATALOGUES["procedures"]["308283009"])
    course = np.flatnonzero(_is(visit, paths.STEROID))
    writer.add("medications", course, CATALOGUES["medications"][codes.STEROID_MEDICATION])
    writer.add("conditions", course, _pick(visit, "steroid", course, "conditions", codes.STEROID_REASONS))


def _lab_values(code: np.ndarray, rows: np.ndarray, visit: Visit, name: str) -> np.ndarray:
    """Values of observations `code` (catalogue numbers) at visits `rows`."""
    entries = list(CATALOGUES["observations"].entries.items())
    noise = visit.draws.take(rows).normal(f"value/{name}")
    value = np.array([lab.mean for _, lab in entries], np.float32)[code]
    value = value + noise * np.array([lab.deviation for _, lab in entries], np.float32)[code]
    for lab, shifts in LAB_SHIFTS.items():
        here = np.flatnonzero(code == CATALOGUES["observations"][lab])
        for disease, shift in shifts.items() if len(here) else ():
            value[here] += shift * visit.present[disease][rows[here]]
    for lab, shifts in GLUCOSE_SHIFTS.items():
        here = np.flatnonzero(code == CATALOGUES["observations"][lab])
        value[here] += np.array(shifts, np.float32)[visit.level[rows[here]]]
    return np.round(np.maximum(value, 0.0), 1)


def _observations(visit: Visit, writer: _Writer) -> None:
    """Vital signs, panels, surveys and smoking status."""
    adult, moved = visit.age >= 15, np.isin(visit.event, (chain.E_UP, chain.E_DOWN, chain.E_DIABETES))
    routine, stay = _is(visit, paths.ENTRY, paths.WELLNESS, paths.FOLLOW_UP), _is(visit, paths.STAY)
    shares = {
        "vitals": (codes.VITALS, np.where(routine | stay, 0.7, 0.15)),
        "glucose": (codes.GLUCOSE_LABS, np.where(moved, 1.0, np.where(routine & adult, 0.25, 0.0))),
        "metabolic": (codes.METABOLIC_LABS, np.where(stay, 0.9, np.where(routine & adult, 0.16, 0.02))),
        "lipids": (codes.LIPID_LABS, np.where(routine & adult, 0.12, 0.0)),
        "count": (codes.BLOOD_COUNT_LABS, np.where(stay, 0.8, 0.05)),
        "surveys": (codes.SURVEYS, np.where(_is(visit, paths.WELLNESS) & adult, 0.3, 0.0)),
    }
    for panel, (labs, share) in shares.items():
        rows = _some(visit, panel, share)
        for code in labs:
            number = np.full(len(rows), CATALOGUES["observations"][code], np.int32)
            writer.add("observations", rows, number, _lab_values(number, rows, visit, code))
    rows = _some(visit, "smoking", 0.5, _is(visit, paths.ENTRY, paths.WELLNESS) & adult)
    options = [code for code in CATALOGUES["observations"].ids if code.startswith(codes.SMOKING_CODE)]
    writer.add("observations", rows, _pick(visit, "smoking/which", rows, "observations", options))


def _medications(visit: Visit, writer: _Writer) -> None:
    """Drugs of present diseases (begun at onset, renewed at routine visits) and of acute illness."""
    routine = _is(visit, paths.WELLNESS, paths.FOLLOW_UP)
    for disease, options in MEDICATIONS.items():
        renewed = (visit.draws.uniform(f"drug/{disease}") < 0.4) & routine & visit.present[disease]
        rows = np.flatnonzero(renewed | visit.starts[disease])
        writer.add("medications", rows, _pick(visit, f"drug/which/{disease}", rows, "medications", options))
    rows = _some(visit, "drug/acute", 0.6, _is(visit, paths.ACUTE))
    writer.add("medications", rows, _pick(visit, "drug/acute/which", rows, "medications", codes.ACUTE_MEDICATIONS))


def _care(visit: Visit, writer: _Writer) -> None:
    """Therapies, care plans, devices, allergies and other care that says nothing new."""
    procedures = CATALOGUES["procedures"]
    series = np.flatnonzero(_is(visit, paths.SERIES))
    writer.add("procedures", series, _pick(visit, "therapy", series, "procedures", codes.THERAPIES))
    writer.add("procedures", _some(visit, "reconcile", 0.25, _is(visit, paths.FOLLOW_UP)), procedures["430193006"])
    writer.add("procedures", _some(visit, "eye", 0.1, visit.present["diabetes"]), procedures["722161008"])
    rows = _some(visit, "plan", 0.12, _is(visit, paths.ACUTE, paths.STAY))
    general = list(codes.CAREPLANS)[:28]  # those after them belong to a disease
    writer.add("careplans", rows, _pick(visit, "plan/which", rows, "careplans", general))
    rows = _some(visit, "device", 0.03, visit.present["heart"] | visit.present["copd"] | visit.present["diabetes"])
    writer.add("devices", rows, _pick(visit, "device/which", rows, "devices", codes.DEVICES))
    for slot, share in enumerate((0.12, 0.05)):
        rows = _some(visit, f"allergy/has/{slot}", share, _is(visit, paths.ENTRY))
        writer.add("allergies", rows, _pick(visit, f"allergy/{slot}", rows, "allergies", codes.ALLERGENS))


def _immunizations(visit: Visit, writer: _Writer) -> None:
    """Influenza at most wellness visits, others by age."""
    well = _is(visit, paths.ENTRY, paths.WELLNESS)
    number = CATALOGUES["immunizations"]
    writer.add("immunizations", _some(visit, "vaccine/flu", 0.55, well), number["140"])
    by_age = {
        (0, 2): ("20", "10", "49", "08", "133", "119"),
        (1, 7): ("03", "21", "83", "20"),
        (10, 19): ("62", "114", "115"),
        (19, 200): ("113", "52", "43", "208", "207", "212"),
        (60, 200): ("33", "121", "187", "133"),
    }
    for (low, high), options in by_age.items():
        share = np.where((visit.age >= low) & (visit.age < high), 0.6 if high <= 19 else 0.12, 0.0)
        rows = _some(visit, f"vaccine/{low}", share, well)
        writer.add("immunizations", rows, _pick(visit, f"vaccine/which/{low}", rows, "immunizations", options))


def _chronic(visit: Visit, writer: _Writer) -> None:
    """Further chronic conditions: each begins at the first visit by which its summed hazard passes its threshold."""
    pace = CHRONIC_A_YEAR * np.exp(0.035 * (visit.age - 50.0)) * (1.0 + 0.3 * sum(visit.present.values()))
    first = np.append(True, visit.patient[1:] != visit.patient[:-1])
    total = np.cumsum(np.where(first, visit.age * 0.3, visit.gap_years) * pace)
    starts = np.flatnonzero(first)
    before = np.append(0.0, total)[starts]
    spent = total - np.repeat(before, np.diff(np.append(starts, len(first))))
    entry = visit.draws.take(np.repeat(starts, np.diff(np.append(starts, len(first)))))  # one draw a patient
    previous = np.where(first, 0.0, np.append(0.0, spent[:-1]))
    for code in codes.CHRONIC:
        threshold = -np.log1p(-entry.uniform(f"chronic/{code}"))
        begins = (spent >= threshold) & (previous < threshold)
        again = (spent >= threshold) & (visit.draws.uniform(f"chronic/again/{code}") < 0.08)
        writer.add("conditions", np.flatnonzero(begins | again), CATALOGUES["conditions"][code])
