"""Codes whose recorded time is the start of a stay, though they are known at its end only.

Diagnoses and DRGs are coded at discharge, but many extracts stamp them with the admission: a model at admission, or
during the stay, then reads the future, and no index time can show it. The heuristic: of the events of one kind of code
in stays of a day or more, nearly all lie exactly at the stay's start. Codes that open a stay by their nature (encounter
classes, admissions) are left out.
"""

import numpy as np

from ehrjax.data.events import code_type
from ehrjax.data.tasks import ADMISSION_CODES, match_codes
from ehrjax.data.timeline import DAY
from ehrjax.evaluate.audit.workdir import Finding, Run
from ehrjax.wording import counted

MIN_STAY_DAYS = 1.0
MIN_EVENTS = 20  # of a kind of code in such stays
AT_START = 0.95  # share of them exactly at the start


def check_recording_times(run: Run) -> Finding:
    """A warning with counts for each kind of code that always stands at the start of stays; never a failure."""
    flagged, kinds_seen, num_stays = {}, set(), 0
    for store in run.whole_stores:
        groups, kind_of_code = kinds_of_codes([str(code) for code in store.codes])
        at_start, total = np.zeros(len(groups), np.int64), np.zeros(len(groups), np.int64)
        for shard in store.shards:
            lasts = np.asarray(shard.visit_end) - np.asarray(shard.visit_start)
            is_stay = lasts >= MIN_STAY_DAYS * DAY
            num_stays += int(is_stay.sum())
            chosen = np.repeat(is_stay, np.diff(shard.event_offsets))
            kinds = kind_of_code[np.asarray(shard.event_codes)[chosen]]
            is_start = np.asarray(shard.event_times)[chosen] <= 0
            total += np.bincount(kinds[kinds >= 0], minlength=len(groups))
            at_start += np.bincount(kinds[(kinds >= 0) & is_start], minlength=len(groups))
        kinds_seen |= {groups[k] for k in np.flatnonzero(total >= MIN_EVENTS)}
        suspects = (total >= MIN_EVENTS) & (at_start >= AT_START * total)
        flagged |= {groups[k]: f"{groups[k]} ({at_start[k]:,} of {total[k]:,})" for k in np.flatnonzero(suspects)}
    if not num_stays:
        return Finding(None, f"no visit lasts {MIN_STAY_DAYS:g} day, so late coding would not show")
    stays = counted(num_stays, "stay")
    if flagged and len(flagged) == len(kinds_seen):
        return Finding(None, f"every kind of code stands at the start of its stay: no time within {stays}")
    if flagged:
        return Finding(
            None,
            f"warning: in {stays} of {MIN_STAY_DAYS:g} day or more these events lie at the very start, as "
            f"codes made at discharge do when stamped with the admission: {', '.join(flagged.values())}. Where that is "
            "so, predict after the stay only (index at discharge or at a visit's end)",
        )
    return Finding(True, f"no kind of code stands at the start of {stays} only")


def kinds_of_codes(codes: list[str]) -> tuple[list[str], np.ndarray]:
    """Kinds by prefix (TYPE//SYSTEM, or the type where there is no prefix), and the kind of each code; -1 = left out.

    >>> kinds_of_codes(["DIAGNOSIS//SNOMED//1", "ENCOUNTER//inpatient", "DIAGNOSIS//SNOMED//2"])
    (['DIAGNOSIS//SNOMED'], array([ 0, -1,  0]))
    """
    opens = match_codes(("ENCOUNTER*", *ADMISSION_CODES), codes)
    names = [None if is_open else _kind(code) for code, is_open in zip(codes, opens, strict=True)]
    groups = sorted({name for name in names if name is not None})
    place = {name: number for number, name in enumerate(groups)} | {None: -1}
    return groups, np.array([place[name] for name in names], np.int64)


def _kind(code: str) -> str:
    parts = code.split("//")
    return "//".join(parts[:2] if len(parts) > 2 else parts[:1]) if len(parts) > 1 else code_type(code)
