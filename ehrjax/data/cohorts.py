"""Cohorts: index times, who is at risk, outcome windows and censoring, for whole shards at a time.

For each candidate index time t of a patient:
1. eligible: alive at t, enough of a record, at risk. Uses nothing that is recorded after t. Where the data set's end
   ends all follow-up, t must also leave room for the window: a later t would be kept only if it turned out positive.
2. drawn: at most n a patient. Each t is taken by its own hash of (seed, patient, t), and the first n taken count, so
   the draw does not look ahead either. (One of all eligible visits, uniformly, would: whoever falls ill or dies has
   few of them, all shortly before. On simulated patients that doubles the prevalence.) Some patients get no row.
3. labelled: positive where the outcome is in (t + gap, t + gap + horizon]; negative where the patient was followed to
   the window's end, or died in it; otherwise censored, and left out.
`Labels.flow` counts what became of every candidate.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data.labels import Labels, concatenate
from ehrjax.data.next_visit import OUTCOMES, fit_outputs, next_visit_values, output_columns
from ehrjax.data.splits import hash_uniform
from ehrjax.data.tasks import ADMISSION_CODES, DISCHARGE_CODES, Task, get_task, match_codes
from ehrjax.data.timeline import (
    DAY,
    NEVER,
    NULL_TIME,
    YEAR,
    SortedTimes,
    Timeline,
    events_of_codes,
    rank_in_group,
)

__all__ = ["Labels", "make_labels"]

ELIGIBILITY = ("no_record", "dead", "short_history", "few_visits", "in_stay", "not_at_risk", "too_late")
OUTCOME_LOSSES = ("outcome_in_gap", "censored")


class _Plan(NamedTuple):
    """A task resolved against one store's codes: masks are bool [num_codes]."""

    task: Task
    is_outcome: np.ndarray
    is_excluded: np.ndarray
    is_stay_class: np.ndarray
    is_admission: np.ndarray  # used where no visit of the store is a hospital stay
    is_discharge: np.ndarray
    column: np.ndarray  # int64 [num_codes + 1], output of each code, -1 = none; the last entry serves code -1
    names: tuple[str, ...]
    data_end: int | None  # seconds; None where each patient's own record ends the follow-up


class _Record(NamedTuple):
    """One shard with what the engine looks up in it; rows are positions in `shard.subject_ids`."""

    shard: object
    line: Timeline
    known: SortedTimes  # visits begun and heard of
    follow_up: np.ndarray  # int64 [S], end of observation
    stay_rows: np.ndarray
    stay_start: np.ndarray
    stay_end: np.ndarray  # NEVER where not recorded


class _Candidates(NamedTuple):
    rows: np.ndarray
    times: np.ndarray
    stays: np.ndarray  # the hospital stay behind it, -1 where none

    def take(self, keep: np.ndarray) -> "_Candidates":
        return _Candidates(*(column[keep] for column in self))


def make_labels(
    store,
    task: Task | str,
    *,
    seed: int = 0,
    train_subjects: np.ndarray | None = None,
    outputs: tuple[str, ...] | None = None,
) -> Labels:
    """Label rows of a task for every patient of the store, sorted by (subject, time).

    Where outputs are fitted (next_codes, next_class) only `train_subjects` decide which codes or classes are predicted;
    for a second store, `outputs` are the `names` of the labels of the first. Raises ValueError with the cohort's flow
    where no row is left, or where no code of the store matches the task's.
    """
    task = get_task(task) if isinstance(task, str) else task
    plan = _resolve(store, task, train_subjects, outputs)
    share = _draw_share(store, plan)
    labels = concatenate([_label_shard(shard, plan, seed, share) for shard in store.shards])
    if not len(labels.times):
        flow = ", ".join(f"{key} {n:,}" for key, n in labels.flow.items() if n)
        raise ValueError(f"task {task.name!r} has no labelled row in this store ({flow}).{_advice(plan, labels.flow)}")
    return labels


def _advice(plan: _Plan, flow: dict[str, int]) -> str:
    if not flow["index_times"] and plan.task.index in ("admission", "discharge"):
        return f" It has no visit of class {', '.join(plan.task.stay_classes)} and no admission events."
    if flow["not_drawn"] and not flow["subjects_drawn"]:
        return " No index time was drawn: take another seed, or index='every_visit'."
    if flow["censored"] and plan.data_end is None:
        return " If the extract is complete, follow_up='dataset_end' counts patients as observed until its end."
    return ""


# Resolving


def _resolve(store, task: Task, train_subjects, outputs) -> _Plan:
    codes = [str(code) for code in store.codes]
    is_outcome = match_codes(task.codes, codes)
    if task.outcome == "codes" and not is_outcome.any():
        raise ValueError(
            f"task {task.name!r}: none of the {len(codes)} codes of the store matches its {len(task.codes)} patterns"
            f" ({', '.join(task.codes[:3])}, ...): give patterns of this data set's codes, as in codes.parquet."
        )
    column, names = np.full(len(codes) + 1, -1), (task.name,)
    if task.outcome in OUTCOMES:
        names = outputs or fit_outputs(store, task, train_subjects)
        column = output_columns(store, task, names)
    elif task.outcome == "stay_days":
        names = ("log1p_days",)
    return _Plan(
        task=task,
        is_outcome=is_outcome,
        is_excluded=match_codes(task.exclude_codes, codes),
        is_stay_class=match_codes(task.stay_classes, codes),
        is_admission=match_codes(ADMISSION_CODES, codes),
        is_discharge=match_codes(DISCHARGE_CODES, codes),
        column=column,
        names=names,
        data_end=(store.manifest["last_time"] or 0) if task.follow_up == "dataset_end" else None,
    )


# One shard


def _label_shard(shard, plan: _Plan, seed: int, share: float) -> Labels:
    record, candidates, flow = _eligible(shard, plan)
    candidates = candidates.take(_draw(shard, plan.task, candidates, seed, share))
    flow["not_drawn"] = flow["eligible"] - len(candidates.rows)
    flow["subjects_drawn"] = len(np.unique(candidates.rows))

    values, end_times, losses = _outcomes(record, plan, candidates)
    reasons = (*OUTCOME_LOSSES, "no_next_visit", "unknown_class", "no_end")
    candidates, keep = _drop(candidates, losses, reasons, flow)
    flow["kept"] = len(candidates.rows)
    flow["subjects_kept"] = len(np.unique(candidates.rows))
    if plan.task.kind == "binary":
        flow["positives"] = int(values[keep].sum())
    return Labels(
        name=plan.task.name,
        kind=plan.task.kind,
        names=plan.names,
        subject_ids=np.asarray(shard.subject_ids)[candidates.rows],
        times=candidates.times,
        values=values[keep],
        mask=np.ones(values[keep].shape, bool),
        end_times=end_times[keep],
        flow=flow,
    )


def _eligible(shard, plan: _Plan) -> tuple[_Record, _Candidates, dict[str, int]]:
    record = _open_record(shard, plan)
    candidates = _candidates(record, plan.task)
    flow = {"subjects": len(shard.subject_ids), "subjects_with_visits": int((np.diff(shard.visit_offsets) > 0).sum())}
    flow["index_times"] = len(candidates.rows)
    candidates = _drop(candidates, _eligibility(record, plan, candidates), ELIGIBILITY, flow)[0]
    flow["eligible"] = len(candidates.rows)
    flow["subjects_eligible"] = len(np.unique(candidates.rows))
    return record, candidates, flow


def _drop(candidates: _Candidates, failures: dict[str, np.ndarray], reasons, flow) -> tuple[_Candidates, np.ndarray]:
    """Candidates that fail nothing, and the mask of them; each loss is counted under its first reason."""
    keep = np.ones(len(candidates.rows), bool)
    for reason in reasons:
        failed = keep & failures[reason] if reason in failures else np.zeros(0, bool)
        flow[reason] = int(failed.sum())
        if len(failed):
            keep &= ~failed
    return candidates.take(keep), keep


def _open_record(shard, plan: _Plan) -> _Record:
    line = Timeline.of(shard)
    heard = line.known != NEVER
    follow_up = np.asarray(shard.death).copy()  # NULL_TIME, the lowest, where alive
    np.maximum.at(follow_up, line.visit_rows, line.last)
    if plan.data_end is not None:
        follow_up[:] = plan.data_end
    known = SortedTimes(line.visit_rows[heard], line.known[heard])
    return _Record(shard, line, known, follow_up, *_stays(shard, line, plan))


def _stays(shard, line: Timeline, plan: _Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patient row, start and end of each hospital stay."""
    classes = np.append(plan.is_stay_class, False)  # class -1 is none
    visits = np.flatnonzero(classes[shard.visit_class])
    if len(visits) or not plan.is_admission.any():
        return line.visit_rows[visits], np.asarray(shard.visit_start)[visits], np.asarray(shard.visit_end)[visits]
    rows, starts = events_of_codes(shard, plan.is_admission, line.visit_rows)
    ends = SortedTimes(*events_of_codes(shard, plan.is_discharge, line.visit_rows)).next_after(rows, starts - 1)
    # A discharge after the next admission belongs to that one.
    return rows, starts, np.where(ends <= SortedTimes(rows, starts).next_after(rows, starts), ends, NEVER)


def _candidates(record: _Record, task: Task) -> _Candidates:
    """Every index time that the rule names; equal ones of a patient count once."""
    shard, line = record.shard, record.line
    stays = np.arange(len(record.stay_rows))
    if task.index == "fixed_age":
        rows = np.flatnonzero((np.asarray(shard.birth) != NULL_TIME) & (np.diff(shard.visit_offsets) > 0))
        times, stays = np.asarray(shard.birth)[rows] + round(task.index_age * YEAR), np.full(len(rows), -1)
    elif task.index == "admission":
        rows, times = record.stay_rows, record.stay_start
    elif task.index == "discharge":
        stays = np.flatnonzero(record.stay_end != NEVER)
        rows, times = record.stay_rows[stays], record.stay_end[stays]
    else:
        rows, times = line.visit_rows, np.asarray(shard.visit_end)
        stays = np.full(len(rows), -1)
    order = np.lexsort((times, rows))
    rows, times, stays = rows[order], times[order], stays[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (times[1:] != times[:-1])
    return _Candidates(rows[is_new], times[is_new], stays[is_new])


# Eligibility: only what is recorded by t


def _eligibility(record: _Record, plan: _Plan, candidates: _Candidates) -> dict[str, np.ndarray]:
    task, (rows, times, _) = plan.task, candidates
    death = np.asarray(record.shard.death)[rows]
    num_visits = record.known.count_until(rows, times)
    has_record = num_visits > 0
    first = np.where(has_record, record.known.next_after(rows, np.full(len(rows), NULL_TIME)), times)
    failures = {
        "no_record": ~has_record,
        "dead": (death != NULL_TIME) & (death <= times),
        "short_history": times - first < round(task.min_history_days * DAY),
        "few_visits": num_visits < task.min_visits,
        "not_at_risk": _had_code(record, plan, rows, times),
    }
    if task.index == "discharge":
        failures["in_stay"] = _in_stay(record, rows, times)
    if plan.data_end is not None and task.has_window:
        failures["too_late"] = _window(task, times)[1] > plan.data_end
    return failures


def _had_code(record: _Record, plan: _Plan, rows, times) -> np.ndarray:
    """An excluding code ever by t, or an outcome code within the washout."""
    shard, task = record.shard, plan.task
    ever = plan.is_excluded | plan.is_outcome if np.isinf(task.washout_days) else plan.is_excluded
    if not ever.any() and not plan.is_outcome.any():
        return np.zeros(len(rows), bool)
    excluded = SortedTimes(*events_of_codes(shard, ever, record.line.visit_rows)).count_until(rows, times) > 0
    static = np.zeros(len(shard.subject_ids), bool)
    static_rows = np.repeat(np.arange(len(static)), np.diff(shard.static_offsets))
    static[static_rows[ever[shard.static_codes]]] = True
    if not np.isinf(task.washout_days):
        last = SortedTimes(*events_of_codes(shard, plan.is_outcome, record.line.visit_rows)).last_until(rows, times)
        had = last != NULL_TIME
        excluded |= had & (times - np.where(had, last, times) < round(task.washout_days * DAY))
    return excluded | static[rows]


def _in_stay(record: _Record, rows, times) -> np.ndarray:
    """Another hospital stay is open at t: a transfer, not a discharge home."""
    ended = record.stay_end != NEVER
    begun = SortedTimes(record.stay_rows[ended], record.stay_start[ended]).count_until(rows, times)
    return begun > SortedTimes(record.stay_rows[ended], record.stay_end[ended]).count_until(rows, times)


def _draw_share(store, plan: _Plan) -> float:
    """Chance of each eligible index time to be taken: twice the rows wanted over the mean number a patient has.

    Twice, so that most patients get a row. The mean is rounded to a power of two: a few patients more change nothing.
    """
    if plan.task.row_limit is None:
        return 1.0
    flows = [_eligible(shard, plan)[2] for shard in store.shards]
    rows, subjects = (sum(flow[key] for flow in flows) for key in ("eligible", "subjects_eligible"))
    return min(1.0, 2 * plan.task.row_limit / 2 ** round(np.log2(max(rows, 1) / max(subjects, 1))))


def _draw(shard, task: Task, candidates: _Candidates, seed: int, share: float) -> np.ndarray:
    """Positions of the candidates taken: a patient's first n whose hash of (seed, subject, t) is below `share`."""
    if task.row_limit is None:
        return np.arange(len(candidates.rows))
    draws = hash_uniform(seed, np.asarray(shard.subject_ids)[candidates.rows], candidates.times)
    taken = np.flatnonzero(draws < share)
    return taken[rank_in_group(candidates.rows[taken]) < task.row_limit]


# Outcomes: what comes after t


def _outcomes(record: _Record, plan: _Plan, candidates: _Candidates):
    """Values [n, K], when they were settled (int64 [n]), and masks of the rows lost, by reason."""
    if plan.task.outcome in OUTCOMES:
        start = SortedTimes(record.line.visit_rows, np.asarray(record.shard.visit_start))
        following = start.index_after(candidates.rows, candidates.times)
        values, end_times, has_value = next_visit_values(record.shard, plan.column, plan.names, plan.task, following)
        return values, end_times, {"no_next_visit": following < 0, "unknown_class": ~has_value}
    if plan.task.outcome == "stay_days":
        end = record.stay_end[candidates.stays]
        open_ended = end == NEVER
        days = np.where(open_ended, 0, np.maximum(end - candidates.times, 0)) / DAY
        return np.log1p(days).astype(np.float32)[:, None], end, {"no_end": open_ended}
    return _window_outcome(record, plan, candidates.rows, candidates.times)


def _window_outcome(record: _Record, plan: _Plan, rows, times):
    death = np.asarray(record.shard.death)
    begin, end = _window(plan.task, times)
    if plan.task.outcome == "codes":
        outcome = SortedTimes(*events_of_codes(record.shard, plan.is_outcome, record.line.visit_rows))
    elif plan.task.outcome == "stay":
        outcome = SortedTimes(record.stay_rows, record.stay_start)
    else:
        outcome = SortedTimes(np.flatnonzero(death != NULL_TIME), death[death != NULL_TIME])
    in_gap = outcome.next_after(rows, times) <= begin
    died = np.where(death == NULL_TIME, NEVER, death)[rows]
    positive = outcome.next_after(rows, begin) <= end
    observed = (record.follow_up[rows] >= end) | (died <= end)  # with data_end, eligibility has seen to it
    losses = {"outcome_in_gap": in_gap | (died <= begin), "censored": ~positive & ~observed}
    return positive.astype(np.float32)[:, None], end, losses


def _window(task: Task, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    begin = times + round(task.gap_days * DAY)
    return begin, begin + round(task.horizon_days * DAY)
