"""Whether labels say what the task says: each sampled row is worked out again from the patient's events, one by one.

Written apart from the cohort engine, without its arrays, so that the two can disagree.
"""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from ehrjax.data.events import ENCOUNTER_PREFIX
from ehrjax.data.shards import NULL_TIME
from ehrjax.data.tasks import ADMISSION_CODES, DISCHARGE_CODES, Task, match_codes
from ehrjax.data.timeline import DAY
from ehrjax.evaluate.audit.workdir import Finding, Rows, Run, TaskRecord
from ehrjax.wording import counted

NUM_ROWS = 150  # of each class and output
_MAX_OUTPUTS = 20
_DAYS_TOLERANCE = 1e-3  # days are stored as float32
_NEVER = np.iinfo(np.int64).max
_FROM_NEXT_VISIT = ("next_codes", "next_class")


class _Rule(NamedTuple):
    """A task's codes in one store (bool [num_codes]), of the output that is looked at."""

    task: Task
    is_outcome: np.ndarray
    is_excluded: np.ndarray
    is_stay: np.ndarray
    is_admission: np.ndarray  # these two where no visit of the store is a hospital stay
    is_discharge: np.ndarray
    codes: list[str]


class _Patient(NamedTuple):
    times: np.ndarray  # of the events, seconds
    codes: np.ndarray
    visits: np.ndarray  # that they are in: a position in the next ones
    statics: np.ndarray
    death: int | None
    starts: np.ndarray  # of the visits
    ends: np.ndarray
    classes: np.ndarray


def check_labels(run: Run, record: TaskRecord, *, seed: int = 0) -> Finding:
    """Outcomes lie after the index time and within the window; what the task excludes is not there by then."""
    task = record.task
    if task is None:
        return Finding(None, "the labels were made elsewhere: their rules are not known here")
    rng, faults, num_rows = np.random.default_rng(seed), Counter(), 0
    for output, rows, store in _outputs(run, record):
        rule = _make_rule(task, output, store)
        for row in _sample(rows, rng):
            num_rows += 1
            patient, t = _find(store, int(rows.subject_ids[row])), int(rows.times[row])
            faults.update(fault for fault in _faults(rule, patient, t, rows.values[row]) if fault)
    if not num_rows:
        return Finding(None, "there are no label rows to look at")
    if faults:
        found = "; ".join(f"{counted(count, 'row')}: {fault}" for fault, count in faults.most_common(3))
        return Finding(False, f"of {counted(num_rows, 'row')} worked out again, {found}")
    return Finding(True, f"{counted(num_rows, 'row')} worked out again: {_rules(task)}, exclusions kept")


def _rules(task: Task) -> str:
    if task.outcome in _FROM_NEXT_VISIT:
        return "the first visit after the index time"
    if task.outcome == "stay_days":
        return "the stay that begins at the index time"
    return f"outcome within ({task.gap_days:g}, {task.gap_days + task.horizon_days:g}] days after the index time"


def _outputs(run: Run, record: TaskRecord):
    """Rows of each output, days and event of survival side by side, with the store that they are of."""
    if record.kind == "survival":
        days, events = record.labels.get("days"), record.labels.get("event")
        if days is not None and events is not None:
            yield record.name, days._replace(values=np.concatenate([days.values, events.values], 1)), run.stores[0]
    else:
        for output in list(record.labels)[:_MAX_OUTPUTS]:
            yield output, record.labels[output], run.stores[0]
    if len(run.stores) == 1:
        return
    if record.kind in ("survival", "multiclass"):
        yield record.name, record.tested, run.stores[1]
    else:
        for column, output in enumerate(record.outputs[:_MAX_OUTPUTS]):
            values = record.tested.values[:, [column]]
            yield output, record.tested._replace(values=values).take(np.isfinite(values[:, 0])), run.stores[1]


def _sample(rows: Rows, rng) -> np.ndarray:
    """Rows of either class alike: events are what can be placed wrongly, and they are rare."""
    is_event = rows.values[:, -1] > 0 if rows.values.dtype != object else np.zeros(len(rows.times), bool)
    groups = (rng.permutation(np.flatnonzero(group))[:NUM_ROWS] for group in (is_event, ~is_event))
    return np.concatenate(list(groups))


def _make_rule(task: Task, output: str, store) -> _Rule:
    codes = [str(code) for code in store.codes]
    patterns = task.codes
    if task.outcome == "new_codes":
        patterns = dict(task.conditions).get(output, (output,))
    elif task.outcome == "next_codes":
        patterns = (output,)
    stays = match_codes(task.stay_classes, codes)
    has_stays = any(stays[np.asarray(s.visit_class)[np.asarray(s.visit_class) >= 0]].any() for s in store.shards)
    no_code = np.zeros(len(codes), bool)
    moves = (no_code if has_stays else match_codes(group, codes) for group in (ADMISSION_CODES, DISCHARGE_CODES))
    is_outcome = match_codes(patterns, codes) if patterns else no_code
    return _Rule(task, is_outcome, match_codes(task.exclude_codes, codes), stays, *moves, codes)


def _find(store, subject: int) -> _Patient | None:
    for shard in store.shards:
        row = int(np.searchsorted(shard.subject_ids, subject))
        if row == len(shard.subject_ids) or shard.subject_ids[row] != subject:
            continue
        first, end = (int(offset) for offset in shard.visit_offsets[row : row + 2])
        times, codes, visits = [], [], []
        for visit in range(first, end):
            events = slice(int(shard.event_offsets[visit]), int(shard.event_offsets[visit + 1]))
            times.append(int(shard.visit_start[visit]) + np.asarray(shard.event_times[events], np.int64))
            codes.append(np.asarray(shard.event_codes[events]))
            visits.append(np.full(len(codes[-1]), visit - first))
        empty = np.zeros(0, np.int64)
        death = int(shard.death[row])
        return _Patient(
            np.concatenate([*times, empty]),
            np.concatenate([*codes, empty]).astype(np.int64),
            np.concatenate([*visits, empty]),
            np.asarray(shard.static_codes[int(shard.static_offsets[row]) : int(shard.static_offsets[row + 1])]),
            None if death == NULL_TIME else death,
            np.asarray(shard.visit_start[first:end]),
            np.asarray(shard.visit_end[first:end]),
            np.asarray(shard.visit_class[first:end]),
        )
    return None


def _faults(rule: _Rule, patient: _Patient | None, t: int, values: np.ndarray):
    """What is wrong with one row, as text; nothing where it is right."""
    if patient is None:
        yield "the patient is not in the store"
        return
    if patient.death is not None and patient.death <= t:
        yield "the patient is dead at the index time"
    outcomes = _outcome_times(rule, patient)
    yield _exclusion(rule, patient, outcomes, t)
    if rule.task.outcome in _FROM_NEXT_VISIT:
        yield _next_visit(rule, patient, t, values[0])
    elif rule.task.outcome == "stay_days":
        yield _stay_days(rule, patient, t, float(values[0]))
    else:
        yield from (_survival if rule.task.kind == "survival" else _window)(rule, patient, outcomes, t, values)


def _outcome_times(rule: _Rule, patient: _Patient) -> list[int]:
    kind = rule.task.outcome.removeprefix("time_to_")
    death = [] if patient.death is None else [patient.death]
    if kind == "death":
        return death
    if kind == "stay":
        return _stay_starts(rule, patient)
    of_codes = patient.times[rule.is_outcome[patient.codes]].tolist()
    return sorted(of_codes + death if kind == "codes_or_death" else of_codes)


def _stay_starts(rule: _Rule, patient: _Patient) -> list[int]:
    at_visits = patient.starts[_is_stay(rule, patient)].tolist()
    return sorted(at_visits + patient.times[rule.is_admission[patient.codes]].tolist())


def _is_stay(rule: _Rule, patient: _Patient) -> np.ndarray:
    """Which visits are hospital stays."""
    return (patient.classes >= 0) & rule.is_stay[patient.classes]


def _exclusion(rule: _Rule, patient: _Patient, outcomes: list[int], t: int) -> str:
    task = rule.task
    if rule.is_excluded[patient.statics].any() or (patient.times[rule.is_excluded[patient.codes]] <= t).any():
        return "an excluding code is there at the index time"
    if task.index == "during_stay":
        # Stays that touch count as one, which began earlier still: what is found here is always wrong.
        begin = max((start for start in _stay_starts(rule, patient) if start <= t), default=t) - DAY
        of_codes = patient.times[rule.is_outcome[patient.codes]]
        if ((begin < of_codes) & (of_codes <= t)).any():
            return "the outcome is there already in the stay"
    elif task.outcome in ("codes", "codes_or_death", "time_to_codes"):
        before = [time for time in outcomes if time <= t]
        always = rule.is_outcome[patient.statics].any()
        if math.isinf(task.washout_days) and (before or always):
            return "the outcome is there already at the index time"
        if before and t - before[-1] < round(task.washout_days * DAY):
            return "the outcome is there within the wash-out"
    return ""


def _window(rule: _Rule, patient: _Patient, outcomes: list[int], t: int, values: np.ndarray):
    task, value = rule.task, values[0]
    begin = t + round(task.gap_days * DAY)
    end = begin + round(task.horizon_days * DAY)
    if task.outcome == "new_codes" and (rule.is_outcome[patient.statics].any() or any(o <= begin for o in outcomes)):
        yield "the condition is there already at the index time"
    elif any(t < o <= begin for o in outcomes):
        yield "the outcome falls into the gap"
    is_positive = any(begin < o <= end for o in outcomes)
    if value > 0.5 and not is_positive:
        yield "positive without an outcome in the window"
    if value < 0.5 and is_positive:
        yield "negative with an outcome in the window"


def _next_visit(rule: _Rule, patient: _Patient, t: int, value) -> str:
    """One output of the codes of the next visit, or its class; of visits that begin at one time, any."""
    following = np.flatnonzero(patient.starts > t)
    following = following[patient.starts[following] == patient.starts[following].min(initial=_NEVER)]
    if not len(following):
        return "there is no next visit"
    if rule.task.outcome == "next_class":
        classes = [rule.codes[number] for number in patient.classes[following] if number >= 0]
        return "" if f"{ENCOUNTER_PREFIX}{value}" in classes else "the next visit is of another class"
    is_there = [bool(rule.is_outcome[patient.codes[patient.visits == visit]].any()) for visit in following]
    return "" if (value > 0.5) in is_there else "the next visit's codes are others"


def _stay_days(rule: _Rule, patient: _Patient, t: int, value: float) -> str:
    ends = patient.ends[_is_stay(rule, patient) & (patient.starts == t)].tolist()
    if t in patient.times[rule.is_admission[patient.codes]]:
        discharges = patient.times[rule.is_discharge[patient.codes]]
        ends += sorted(discharges[discharges >= t].tolist())[:1]
    days = math.expm1(value)
    if not ends:
        return "no stay begins at the index time"
    is_right = any(abs(max(end - t, 0) / DAY - days) <= _DAYS_TOLERANCE * max(1, days) for end in ends)
    return "" if is_right else "the stay lasts another time"


def _survival(rule: _Rule, patient: _Patient, outcomes: list[int], t: int, values: np.ndarray):
    days, event = float(values[0]), int(values[1])
    after = min((o for o in outcomes if o > t), default=None)
    first = math.inf if after is None else (after - t) / DAY
    died = math.inf if patient.death is None else (patient.death - t) / DAY
    if not 0 < days <= rule.task.horizon_days + _DAYS_TOLERANCE:
        yield "the days are not within (0, horizon]"
    if event == 1 and abs(first - days) > _DAYS_TOLERANCE:
        yield "the event is not the first outcome after the index time"
    if event != 1 and first <= days - _DAYS_TOLERANCE:
        yield "the outcome comes before the end of observation"
    if event == 2 and abs(died - days) > _DAYS_TOLERANCE:
        yield "death is not on its day"
