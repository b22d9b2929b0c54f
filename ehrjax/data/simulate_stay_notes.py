"""Notes of simulated stays: what a note states, drawn from the state by known chances, and how that is worded.

A note states a finding (normal, mild, severe) on some of its topics; `statement_tables` has the chances by state, so an
oracle can read statements exactly. Wording is independent of the state given the statements: it is composed of clauses
that say the same in many ways, with abbreviations, negations and contrasts, between sentences that say nothing of the
present state (pain, diet, lines, the history of the patient and the family).
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ehrjax.data.simulate_random import Draws
from ehrjax.data.simulate_stay_chain import NUM_STATES, draw_rows, levels_of

KINDS = ("nurse", "physician")
NOT_STATED, NORMAL, MILD, SEVERE = range(4)


class Topic(NamedTuple):
    """What notes say of one component: P(finding | level), and the clauses that word each finding."""

    component: str
    mentioned: tuple[float, float]  # chance in a note of each of KINDS
    findings: tuple[tuple[float, float, float], ...]  # by level: normal, mild, severe
    clauses: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


# fmt: off
TOPICS = {
    "breathing": Topic(
        "respiratory", (0.8, 0.85),
        ((0.80, 0.17, 0.03), (0.60, 0.33, 0.07), (0.38, 0.44, 0.18), (0.22, 0.44, 0.34)),
        (
            ("denies shortness of breath", "no SOB reported", "breathing comfortably", "lungs clear bilaterally",
             "respirations even and unlabored", "no increased work of breathing", "speaks in full sentences",
             "without dyspnea at rest"),
            ("mildly short of breath on exertion", "some dyspnea when walking to the bathroom", "crackles at the bases",
             "reports being a bit breathless", "slight wheeze on auscultation", "c/o SOB with activity",
             "breath sounds diminished at the bases", "winded after getting up to the chair"),
            ("in respiratory distress", "using accessory muscles", "marked dyspnea at rest",
             "laboured breathing, unable to finish sentences", "severe SOB, sitting upright and gasping",
             "tiring from the work of breathing", "visibly air hungry", "coarse crackles throughout with retractions"),
        ),
    ),
    "oxygen": Topic(
        "respiratory", (0.6, 0.5),
        ((0.86, 0.12, 0.02), (0.66, 0.29, 0.05), (0.40, 0.45, 0.15), (0.18, 0.44, 0.38)),
        (
            ("on room air", "no supplemental oxygen needed", "satting well on RA", "weaned off oxygen",
             "does not require O2", "oxygen discontinued, tolerating well"),
            ("on 2 L nasal cannula", "needs low flow oxygen", "placed on 3 L NC", "requires some supplemental O2",
             "oxygen at 2 litres to stay comfortable", "cannula kept on overnight"),
            ("oxygen requirement rising, now on a non-rebreather", "escalated to high flow", "on 15 L via mask",
             "started on BiPAP", "needing more and more O2", "HFNC at 50 L, 60 percent"),
        ),
    ),
    "mental_state": Topic(
        "neurological", (0.95, 0.9),
        ((0.93, 0.06, 0.01), (0.20, 0.68, 0.12), (0.04, 0.26, 0.70)),
        (
            ("alert and oriented x3", "A&O x3", "awake, answers appropriately", "no confusion noted",
             "mentation at baseline", "neuro intact", "conversant and pleasant", "denies feeling confused"),
            ("intermittently confused", "oriented to person only", "drowsy but rousable to voice",
             "forgetful and needing reorientation", "more sleepy than yesterday", "slow to answer questions",
             "somewhat disoriented at night", "mildly agitated, pulling at the blankets"),
            ("obtunded", "difficult to rouse", "responds only to painful stimuli", "acutely delirious",
             "GCS has dropped to 9", "lethargic, not following commands", "barely responsive",
             "not oriented at all and combative"),
        ),
    ),
    "swallow": Topic(
        "neurological", (0.7, 0.5),
        ((0.88, 0.10, 0.02), (0.45, 0.43, 0.12), (0.15, 0.42, 0.43)),
        (
            ("swallowing without difficulty", "took all pills with water", "no coughing with meals",
             "ate independently", "passed bedside swallow"),
            ("needs prompting to eat", "pockets food at times", "coughs with thin liquids", "needs help with feeding",
             "took pills slowly in apple sauce"),
            ("kept NPO, unsafe to swallow", "cannot manage own secretions", "too drowsy to take oral meds",
             "failed swallow screen", "gag reflex weak, aspiration risk high"),
        ),
    ),
    "perfusion": Topic(
        "circulatory", (0.6, 0.6),
        ((0.80, 0.17, 0.03), (0.62, 0.31, 0.07), (0.42, 0.42, 0.16), (0.24, 0.44, 0.32)),
        (
            ("extremities warm and well perfused", "skin warm and dry", "capillary refill brisk",
             "no signs of poor perfusion", "good pulses throughout", "denies dizziness or lightheadedness"),
            ("feels lightheaded on standing", "skin pale", "hands cool to touch", "capillary refill slightly delayed",
             "looks washed out", "dizzy when sitting up"),
            ("cold and mottled", "knees mottled, pulses thready", "clammy and ashen", "cap refill 5 seconds",
             "peripherally shut down", "near syncope, grey and sweating"),
        ),
    ),
    "urine": Topic(
        "circulatory", (0.6, 0.4),
        ((0.86, 0.12, 0.02), (0.70, 0.25, 0.05), (0.48, 0.39, 0.13), (0.26, 0.44, 0.30)),
        (
            ("voiding freely", "good urine output", "UOP adequate", "no problems passing urine",
             "urine clear and plentiful"),
            ("urine output a little low", "voided once this shift, concentrated", "UOP borderline", "urine dark",
             "passing less urine than before"),
            ("hardly any urine for six hours", "anuric", "oliguric despite fluids", "UOP under 10 mL an hour",
             "nothing in the urine bag since midnight"),
        ),
    ),
    "infection": Topic(
        "infection", (0.5, 0.8),
        ((0.78, 0.18, 0.04), (0.25, 0.45, 0.30)),
        (
            ("no signs of infection", "afebrile, no chills", "infectious work-up negative", "denies fevers or chills",
             "wound clean and dry without redness", "cultures no growth to date"),
            ("possible infection, cultures sent", "chills reported overnight", "low threshold to start antibiotics",
             "white count creeping up", "new productive cough", "site red and a bit warm"),
            ("septic picture, broad spectrum antibiotics started", "rigors this shift",
             "blood cultures growing gram negative rods", "purulent drainage", "source control needed urgently",
             "treated for sepsis, lactate pending"),
        ),
    ),
}

# Sentences that are independent of the state.
FILLERS = (
    "Pain {a} out of 10, controlled with acetaminophen.", "Denies pain.", "Rates pain {a}/10 in the lower back.",
    "Tolerating regular diet.", "Ate about half of meals.", "No nausea or vomiting.", "Mild nausea after breakfast.",
    "PIV in left forearm, site without redness.", "Line care done.", "Turned every two hours, skin intact.",
    "Ambulated in the hallway with a walker.", "Up to chair for {a} hours.", "Physical therapy to see tomorrow.",
    "Family at bedside and updated.", "Spoke with the daughter by phone.", "Call bell within reach.",
    "Bed alarm on, side rails up.", "Fall precautions in place.", "Slept on and off.", "Bowel movement x{a}.",
    "History of pneumonia in 2019.", "Past history of delirium after hip surgery.", "PMH: hypertension, gout.",
    "Former smoker, quit {a} years ago.", "Father had a stroke, mother died of sepsis.", "Known COPD.",
    "Home medications reviewed with pharmacy.", "Continue current management.", "Labs ordered for the morning.",
    "Will reassess in {a} hours.", "Return precautions: call if short of breath or confused.", "Case manager involved.",
    "Chest film reviewed.", "Influenza vaccine given in the autumn.", "Plan discussed with the team on rounds.",
)
HEADINGS = {
    "nurse": ("Nursing note.", "RN shift note:", "Nursing progress note.", "Shift summary.", "NURSING:", ""),
    "physician": ("Progress note.", "Medicine progress note:", "Daily round.", "MD note.", "S/O:", "Physician note."),
}
LEADS = (
    "", "", "", "", "{pt} ", "{pt} ", "{pt} is now: ", "At review ", "On assessment ", "This shift ",
    "Since last note ", "Currently ", "Per handover ", "Noted to be: ", "On exam ", "Today ",
)
PATIENTS = ("Pt", "Patient", "pt", "The patient", "{title}", "{pronoun}")
JOINS, CONTRASTS = (". ", ". ", "; ", ", and ", ", "), (". ", ", but ", "; however ", ", although ")
# fmt: on
MIN_FILLERS, MAX_FILLERS = 4, 9


@lru_cache(maxsize=1)
def statement_tables() -> np.ndarray:
    """P(finding | state), float64 [kinds, topics, 4 findings, NUM_STATES], findings NOT_STATED first."""
    levels = levels_of(np.arange(NUM_STATES))
    tables = np.empty((len(KINDS), len(TOPICS), 4, NUM_STATES))
    for t, topic in enumerate(TOPICS.values()):
        by_state = np.array(topic.findings)[levels[topic.component]].T
        for k, mentioned in enumerate(topic.mentioned):
            tables[k, t] = np.concatenate([np.full((1, NUM_STATES), 1 - mentioned), mentioned * by_state])
    return tables


def draw_statements(states: np.ndarray, kinds: np.ndarray, draws: Draws) -> np.ndarray:
    """The finding of each note on each topic, int8 [n, topics], given the state and kind of each (int [n])."""
    tables, findings = statement_tables(), np.zeros((len(states), len(TOPICS)), np.int8)
    for t, name in enumerate(TOPICS):
        uniform = draws.uniform(f"state/{name}")
        for k in range(len(KINDS)):
            rows = np.flatnonzero(kinds == k)
            findings[rows, t] = draw_rows(tables[k, t], states[rows], uniform[rows])
    return findings


def word_notes(statements: np.ndarray, kinds: np.ndarray, is_female: np.ndarray, draws: Draws) -> list[str]:
    """Text of each note. `statements` is int8 [n, topics], `kinds` int [n], `is_female` bool [n]."""
    if not len(statements):
        return []
    num_topics = len(TOPICS)
    order = np.argsort(np.stack([draws.uniform(f"order/{t}") for t in range(num_topics)], 1), axis=1)
    picks = np.stack([draws.bits(f"word/{i}") >> np.uint64(33) for i in range(3 * num_topics + 6)], 1).astype(np.int64)
    fillers = np.argsort(np.stack([draws.uniform(f"filler/{i}") for i in range(len(FILLERS))], 1), axis=1)
    columns = zip(statements.tolist(), kinds.tolist(), is_female.tolist(), order.tolist(), picks.tolist(), strict=True)
    return [_word_note(*column, filler) for column, filler in zip(columns, fillers.tolist(), strict=True)]


_CLAUSES = tuple(topic.clauses for topic in TOPICS.values())


def _word_note(statements, kind: int, is_female: bool, order, picks, fillers) -> str:
    words = iter(picks)
    heading = _pick(HEADINGS[KINDS[kind]], next(words))
    title, pronoun = ("Ms", "She") if is_female else ("Mr", "He")
    patient = _pick(PATIENTS, next(words)).format(title=f"{title} {chr(65 + next(words) % 26)}.", pronoun=pronoun)
    clauses = [(statements[t], _pick(_CLAUSES[t][statements[t] - 1], next(words))) for t in order if statements[t]]
    sentences, i = [], 0
    while i < len(clauses):
        finding, text = clauses[i]
        text = _pick(LEADS, next(words)).format(pt=patient) + text
        i += 1
        if i < len(clauses):  # a second clause, joined by what its finding asks for
            other, second = clauses[i]
            join = _pick(JOINS if (other == NORMAL) == (finding == NORMAL) else CONTRASTS, next(words))
            text += join + (_capital(second) if join == ". " else second)
            i += 1
        sentences.append(_capital(text) + ".")
    count = MIN_FILLERS + next(words) % (MAX_FILLERS - MIN_FILLERS + 1)
    extra = [FILLERS[i].format(a=2 + picks[-1] % 7) for i in fillers[:count]]
    at = picks[-2] % (len(extra) + 1)
    return " ".join(part for part in (heading, *extra[:at], *sentences, *extra[at:]) if part)


def _pick(choices, number: int) -> str:
    return choices[number % len(choices)]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
