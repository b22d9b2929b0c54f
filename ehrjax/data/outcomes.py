"""Outcomes: what comes after an index time t, and whether observation lasted long enough to know.

Three kinds of window outcome. Binary and multi-label: positive where it falls in (t + gap, t + gap + horizon], negative
where the patient was followed to the window's end, or died in it; otherwise unknown. Survival: days to the first of the
outcome, death (a cause of its own, or censoring) and the end of observation, at most the horizon; at one instant the
outcome comes before death. For a temporal split all rows are settled at their window's end, whatever happened: taking
rows by the time of their event would pick the early events.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data.next_visit import most_frequent, next_visit_values
from ehrjax.data.tasks import Task, match_codes
from ehrjax.data.timeline import DAY, NEVER, NULL_TIME, SortedTimes, Timeline, events_of_codes

LOSSES = ("outcome_in_gap", "censored", "no_follow_up", "no_next_visit", "unknown_class", "no_end")
UNSETTLED = "settled_after_cutoff"


class Plan(NamedTuple):
    """A task resolved against one store's codes: masks are bool [num_codes]."""

    task: Task
    seed: int
    is_outcome: np.ndarray
    is_excluded: np.ndarray
    is_stay_class: np.ndarray
    is_admission: np.ndarray  # used where no visit of the store is a hospital stay
    is_discharge: np.ndarray
    is_condition: np.ndarray  # [num_codes, K], for "new_codes"
    column: np.ndarray  # int64 [num_codes + 1], output of each code, -1 = none; the last entry serves code -1
    names: tuple[str, ...]
    first_time: int  # of the data set, seconds
    last_time: int
    after: int = NULL_TIME  # index times are later
    until: int = NEVER  # outcome windows end by then

    @property
    def data_end(self) -> int | None:
        """End of everybody's observation, seconds; None where each patient's own record ends it."""
        return self.last_time if self.task.follow_up == "dataset_end" else None


class Record(NamedTuple):
    """One shard with what the engine looks up in it; rows are positions in `shard.subject_ids`."""

    shard: object
    line: Timeline
    known: SortedTimes  # visits begun and heard of
    follow_up: np.ndarray  # int64 [S], end of observation
    stay_rows: np.ndarray
    stay_start: np.ndarray
    stay_end: np.ndarray  # NEVER where not recorded
    first: np.ndarray  # int64 [S, K], see `first_times`


class Outcomes(NamedTuple):
    """Label columns of some rows, and masks of the rows lost, by reason."""

    values: np.ndarray
    mask: np.ndarray
    end_times: np.ndarray  # int64 [n], when it is settled
    losses: dict[str, np.ndarray]


def condition_outputs(store, task: Task, train_subjects, outputs) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the K outputs of "new_codes", and which codes belong to each (bool [num_codes, K]).

    The task's conditions; or one code each: `outputs`, or the task's codes that most of the train patients have. Raises
    ValueError where these are not given, or have none of the codes.
    """
    codes = [str(code) for code in store.codes]
    if task.conditions:
        return tuple(n for n, _ in task.conditions), np.stack([match_codes(p, codes) for _, p in task.conditions], 1)
    if not outputs:
        if train_subjects is None:
            raise ValueError(
                f"task {task.name!r} fits its outputs on train: pass train_subjects (their ids), or outputs."
            )
        counts = _count_patients(store, train_subjects) * match_codes(task.codes, codes)
        outputs = most_frequent(store, counts, task, limit=task.num_codes)
    return tuple(outputs), np.array([[code == name for name in outputs] for code in codes], bool)


def _count_patients(store, train_subjects) -> np.ndarray:
    """How many of these patients have each code, int64 [num_codes]."""
    counts = np.zeros(len(store.codes), np.int64)
    for shard in store.shards:
        chosen = np.flatnonzero(np.isin(shard.subject_ids, train_subjects))
        rows = Timeline.of(shard).visit_rows
        owner = np.repeat(rows, np.diff(shard.event_offsets))
        pairs = np.unique(owner.astype(np.int64) * len(counts) + shard.event_codes)
        counts += np.bincount(pairs[np.isin(pairs // len(counts), chosen)] % len(counts), minlength=len(counts))
    return counts


def first_times(shard, line: Timeline, is_condition: np.ndarray) -> np.ndarray:
    """When each patient has each condition for the first time (int64 [S, K]): NEVER, or NULL_TIME of a static code."""
    first = np.full((len(shard.subject_ids), is_condition.shape[1]), NEVER)
    for k, is_code in enumerate(is_condition.T):
        rows, times = events_of_codes(shard, is_code, line.visit_rows)
        np.minimum.at(first[:, k], rows, times)
        first[has_static(shard, is_code), k] = NULL_TIME
    return first


def has_static(shard, is_code: np.ndarray) -> np.ndarray:
    """Patients (bool [S]) with one of these codes at no time."""
    rows = np.repeat(np.arange(len(shard.subject_ids)), np.diff(shard.static_offsets))
    found = np.zeros(len(shard.subject_ids), bool)
    found[rows[is_code[shard.static_codes]]] = True
    return found


def find_outcomes(record: Record, plan: Plan, rows: np.ndarray, times: np.ndarray, stays: np.ndarray) -> Outcomes:
    """Outcomes of index times (seconds) of patients `rows`; `stays` is the hospital stay behind each, -1 where none."""
    task = plan.task
    if task.outcome in ("next_codes", "next_class"):
        return _next_visit(record, plan, rows, times)
    if task.outcome == "stay_days":
        return _stay_days(record, times, stays)
    if task.outcome == "new_codes":
        return _new_conditions(record, task, rows, times)
    if task.kind == "survival":
        return _survival(record, plan, rows, times)
    return _binary(record, plan, rows, times, stays)


def _next_visit(record: Record, plan: Plan, rows, times) -> Outcomes:
    start = SortedTimes(record.line.visit_rows, np.asarray(record.shard.visit_start))
    following = start.index_after(rows, times)
    values, end_times, has_value = next_visit_values(record.shard, plan.column, plan.names, plan.task, following)
    losses = {"no_next_visit": following < 0, "unknown_class": ~has_value}
    return Outcomes(values, np.ones(values.shape, bool), end_times, losses)


def _stay_days(record: Record, times, stays) -> Outcomes:
    end = record.stay_end[stays]
    open_ended = end == NEVER
    days = np.where(open_ended, 0, np.maximum(end - times, 0)) / DAY
    values = np.log1p(days).astype(np.float32)[:, None]
    return Outcomes(values, np.ones(values.shape, bool), end, {"no_end": open_ended})


def _binary(record: Record, plan: Plan, rows, times, stays) -> Outcomes:
    begin, end = window_of(plan.task, times)
    outcome, died = _occurrences(record, plan), _death(record, rows)
    positive = outcome.next_after(rows, begin) <= end
    observed = _is_followed(record, rows, end)  # with data_end, eligibility has seen to it
    if plan.task.index == "during_stay":
        observed |= record.stay_end[stays] <= end
    in_gap = (outcome.next_after(rows, times) <= begin) | (died <= begin)
    values = positive.astype(np.float32)[:, None]
    losses = {"outcome_in_gap": in_gap, "censored": ~positive & ~observed}
    return Outcomes(values, np.ones(values.shape, bool), end, losses)


def _new_conditions(record: Record, task: Task, rows, times) -> Outcomes:
    begin, end = window_of(task, times)
    first = record.first[rows]
    is_new = first > begin[:, None]  # neither by t nor in the gap
    positive = is_new & (first <= end[:, None])
    mask = is_new & (positive | _is_followed(record, rows, end)[:, None])
    in_gap = (_death(record, rows) <= begin) | ~is_new.any(axis=1)
    return Outcomes(positive.astype(np.float32), mask, end, {"outcome_in_gap": in_gap, "censored": ~mask.any(axis=1)})


def _survival(record: Record, plan: Plan, rows, times) -> Outcomes:
    _, end = window_of(plan.task, times)
    died, event_time = _death(record, rows), _occurrences(record, plan).next_after(rows, times)
    observed = np.minimum(record.follow_up[rows], end)
    last = np.minimum(observed, died)
    events = np.where(event_time <= last, 1, 0)
    if "death" in plan.task.causes[1:]:
        events[(events == 0) & (died <= observed)] = 2
    days = (np.where(events == 1, event_time, last) - times) / DAY
    values = np.stack([days, events], axis=1).astype(np.float32)
    return Outcomes(values, np.ones(values.shape, bool), end, {"no_follow_up": last <= times})


def _occurrences(record: Record, plan: Plan) -> SortedTimes:
    """All times of a task's outcome."""
    outcome = plan.task.outcome.removeprefix("time_to_")
    if outcome == "codes":
        return SortedTimes(*events_of_codes(record.shard, plan.is_outcome, record.line.visit_rows))
    if outcome == "stay":
        return SortedTimes(record.stay_rows, record.stay_start)
    death = np.asarray(record.shard.death)
    rows = np.flatnonzero(death != NULL_TIME)
    times = death[rows]
    if outcome == "codes_or_death":
        events = events_of_codes(record.shard, plan.is_outcome, record.line.visit_rows)
        rows, times = np.concatenate([events[0], rows]), np.concatenate([events[1], times])
    return SortedTimes(rows, times)


def _death(record: Record, rows) -> np.ndarray:
    death = np.asarray(record.shard.death)[rows]
    return np.where(death == NULL_TIME, NEVER, death)


def _is_followed(record: Record, rows, end) -> np.ndarray:
    """Observed until `end`, or dead by then."""
    return (record.follow_up[rows] >= end) | (_death(record, rows) <= end)


def window_of(task: Task, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The seconds after which, and until which, an outcome counts."""
    begin = times + round(task.gap_days * DAY)
    return begin, begin + round(task.horizon_days * DAY)
