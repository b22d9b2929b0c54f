"""Cohorts: index times, who is at risk, outcome windows and censoring, for whole shards at a time.

For each candidate index time t of a patient:
1. eligible: alive at t, enough of a record, at risk. Uses nothing that is recorded after t. Where the data set's end
   ends all follow-up and a label needs the whole window (all but survival), t must also leave room for it: a later t
   would be kept only if it turned out positive.
2. drawn: at most n a patient. Each t is taken by its own hash of (seed, patient, t), and the first n taken count, so
   the draw does not look ahead either. (One of all eligible visits, uniformly, would: whoever falls ill or dies has
   few of them, all shortly before. On simulated patients that doubles the prevalence.) Some patients get no row. A
   random date is drawn by (seed, patient) over the same span for everybody: a span that ended with the patient's own
   record or death would tell of them.
3. labelled, or left out where the outcome is not known: see `outcomes`.
`Labels.flow` counts what became of every candidate.
"""

from typing import NamedTuple

import numpy as np

from ehrjax.data.labels import Labels, concatenate
from ehrjax.data.next_visit import OUTCOMES, fit_outputs, output_columns
from ehrjax.data.outcomes import (
    LOSSES,
    UNSETTLED,
    Plan,
    Record,
    condition_outputs,
    find_outcomes,
    first_times,
    has_static,
    window_of,
)
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
    find_stays,
    rank_in_group,
    running_max,
)

__all__ = ["Labels", "make_labels"]

ELIGIBILITY = ("no_record", "dead", "short_history", "few_visits", "in_stay", "not_at_risk", "too_late")
_DATE_KEY = 1  # the hash of (seed, patient) alone decides the split
_HOUR = DAY // 24
_BEFORE_STAY = DAY  # a patient may be in intensive care, or ventilated, some hours before the admission is recorded


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
    after: int = NULL_TIME,
    until: int = NEVER,
) -> Labels:
    """Label rows of a task for every patient of the store, sorted by (subject, time).

    Where outputs are fitted (next_codes, next_class, new_codes without conditions) only `train_subjects` decide which
    codes or classes are predicted; for a second store, `outputs` are the `names` of the labels of the first. For a
    temporal hold-out, index times are `after` a second, or outcome windows end by `until`, whatever happened. Raises
    ValueError with the cohort's flow where no row is left, or where no code of the store matches the task's.
    """
    task = get_task(task) if isinstance(task, str) else task
    plan = _resolve(store, task, seed, train_subjects, outputs)._replace(after=after, until=until)
    _check_span(plan)
    share = _draw_share(store, plan)
    labels = concatenate([_label_shard(shard, plan, share) for shard in store.shards])
    if not len(labels.times):
        flow = ", ".join(f"{key} {n:,}" for key, n in labels.flow.items() if n)
        raise ValueError(f"task {task.name!r} has no labelled row in this store ({flow}).{_advice(plan, labels.flow)}")
    return labels


def _advice(plan: Plan, flow: dict[str, int]) -> str:
    if not flow["index_times"] and plan.task.index in ("admission", "discharge"):
        return f" It has no visit of class {', '.join(plan.task.stay_classes)} and no admission events."
    if not flow["index_times"] and plan.task.index == "during_stay":
        return (
            f" It has no visit of class {', '.join(plan.task.stay_classes)} and no admission event that begins a stay"
            f" of more than index_from_hours={plan.task.index_from_hours:g} hours."
        )
    if flow["not_drawn"] and not flow["subjects_drawn"]:
        return " No index time was drawn: take another seed, or index='every_visit'."
    if flow["censored"] and plan.data_end is None:
        return " If the extract is complete, follow_up='dataset_end' counts patients as observed until its end."
    return ""


# Resolving


def _resolve(store, task: Task, seed: int, train_subjects, outputs) -> Plan:
    codes = [str(code) for code in store.codes]
    patterns = task.codes or tuple(pattern for _, group in task.conditions for pattern in group)
    is_outcome = match_codes(patterns, codes)
    if patterns and not is_outcome.any():
        raise ValueError(
            f"task {task.name!r}: none of the {len(codes)} codes of the store matches its {len(patterns)} patterns"
            f" ({', '.join(patterns[:3])}, ...): give patterns of this data set's codes, as in codes.parquet."
        )
    column, is_condition = np.full(len(codes) + 1, -1), np.zeros((len(codes), 0), bool)
    names = task.causes or (task.name,)
    if task.outcome == "new_codes":
        names, is_condition = condition_outputs(store, task, train_subjects, outputs)
    elif task.outcome in OUTCOMES:
        names = outputs or fit_outputs(store, task, train_subjects)
        column = output_columns(store, task, names)
    elif task.outcome == "stay_days":
        names = ("log1p_days",)
    return Plan(
        task=task,
        seed=seed,
        is_outcome=is_outcome,
        is_excluded=match_codes(task.exclude_codes, codes),
        is_stay_class=match_codes(task.stay_classes, codes),
        is_admission=match_codes(ADMISSION_CODES, codes),
        is_discharge=match_codes(DISCHARGE_CODES, codes),
        is_condition=is_condition,
        column=column,
        names=names,
        first_time=store.manifest["first_time"] or 0,
        last_time=store.manifest["last_time"] or 0,
    )


def _check_span(plan: Plan) -> None:
    task, (first, span) = plan.task, _date_span(plan)
    if task.index == "random_date" and span < 0:
        days = (plan.last_time - first) / DAY
        raise ValueError(
            f"task {task.name!r}: the data set spans {days:.0f} days, too few for a random date that leaves"
            f" {task.gap_days + task.horizon_days:g} days: shorten horizon_days, or take another index."
        )


def _date_span(plan: Plan) -> tuple[int, int]:
    """The first second at which a random date may lie, and the seconds that it may lie later."""
    first = max(plan.first_time, plan.after + 1)
    return first, plan.last_time - first - round((plan.task.gap_days + plan.task.horizon_days) * DAY)


# One shard


def _label_shard(shard, plan: Plan, share: float) -> Labels:
    record, candidates, flow = _eligible(shard, plan)
    candidates = candidates.take(_draw(shard, plan, candidates, share))
    flow["not_drawn"] = flow["eligible"] - len(candidates.rows)
    flow["subjects_drawn"] = len(np.unique(candidates.rows))

    found = find_outcomes(record, plan, *candidates)
    losses, reasons = found.losses, LOSSES
    if plan.until != NEVER:
        losses, reasons = losses | {UNSETTLED: found.end_times > plan.until}, (*LOSSES, UNSETTLED)
    candidates, keep = _drop(candidates, losses, reasons, flow)
    values = found.values[keep]
    flow["kept"] = len(candidates.rows)
    flow["subjects_kept"] = len(np.unique(candidates.rows))
    if plan.task.kind == "binary":
        flow["positives"] = int(values.sum())
    for number, cause in enumerate(plan.task.causes, 1):
        flow[f"events_{cause}"] = int((values[:, 1] == number).sum())
    return Labels(
        name=plan.task.name,
        kind=plan.task.kind,
        names=plan.names,
        subject_ids=np.asarray(shard.subject_ids)[candidates.rows],
        times=candidates.times,
        values=values,
        mask=found.mask[keep],
        end_times=found.end_times[keep],
        flow=flow,
    )


def _eligible(shard, plan: Plan) -> tuple[Record, _Candidates, dict[str, int]]:
    record = _open_record(shard, plan)
    candidates = _candidates(record, plan)
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


def _open_record(shard, plan: Plan) -> Record:
    line = Timeline.of(shard)
    heard = line.known != NEVER
    follow_up = np.asarray(shard.death).copy()  # NULL_TIME, the lowest, where alive
    np.maximum.at(follow_up, line.visit_rows, line.last)
    if plan.data_end is not None:
        follow_up[:] = plan.data_end
    known = SortedTimes(line.visit_rows[heard], line.known[heard])
    stays = find_stays(shard, line, plan.is_stay_class, plan.is_admission, plan.is_discharge)
    if plan.task.index == "during_stay":
        stays = _merge_stays(*stays)
    return Record(shard, line, known, follow_up, *stays, first_times(shard, line, plan.is_condition))


def _merge_stays(rows, starts, ends) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stays of a patient that overlap or touch as one, by patient, then start; none touches an end not recorded."""
    order = np.lexsort((starts, rows))
    rows, starts, ends = rows[order], starts[order], ends[order]
    latest = running_max(rows, np.where(ends == NEVER, starts, ends))
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]) | (starts[1:] > latest[:-1])
    first = np.flatnonzero(is_new)
    return rows[first], starts[first], np.maximum.reduceat(ends, first)


def _times_in_stays(record: Record, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Stay and time of each index time: one whose end is not recorded lasts until the next at most."""
    num_times = int((task.index_until_hours - task.index_from_hours) / task.index_every_hours + 1e-9) + 1
    hours = task.index_from_hours + task.index_every_hours * np.arange(num_times)
    following = SortedTimes(record.stay_rows, record.stay_start).next_after(record.stay_rows, record.stay_start)
    times = record.stay_start[:, None] + np.round(hours * _HOUR).astype(np.int64)
    stays, numbers = np.nonzero(times < np.minimum(record.stay_end, following)[:, None])
    return stays, times[stays, numbers]


def _candidates(record: Record, plan: Plan) -> _Candidates:
    """Every index time that the rule names; equal ones of a patient count once."""
    shard, line, task = record.shard, record.line, plan.task
    stays = np.arange(len(record.stay_rows))
    has_visits = np.diff(shard.visit_offsets) > 0
    if task.index == "fixed_age":
        rows = np.flatnonzero((np.asarray(shard.birth) != NULL_TIME) & has_visits)
        times, stays = np.asarray(shard.birth)[rows] + round(task.index_age * YEAR), np.full(len(rows), -1)
    elif task.index == "random_date":
        rows = np.flatnonzero(has_visits)
        draws = hash_uniform(plan.seed, np.asarray(shard.subject_ids)[rows], np.full(len(rows), _DATE_KEY))
        first, span = _date_span(plan)
        times = first + np.floor(draws * (span + 1)).astype(np.int64)
        stays = np.full(len(rows), -1)
    elif task.index == "admission":
        rows, times = record.stay_rows, record.stay_start
    elif task.index == "during_stay":
        stays, times = _times_in_stays(record, task)
        rows = record.stay_rows[stays]
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
    return _Candidates(rows, times, stays).take(is_new & (times > plan.after))


# Eligibility: only what is recorded by t


def _eligibility(record: Record, plan: Plan, candidates: _Candidates) -> dict[str, np.ndarray]:
    task, (rows, times, stays) = plan.task, candidates
    death = np.asarray(record.shard.death)[rows]
    num_visits = record.known.count_until(rows, times)
    has_record = num_visits > 0
    first = np.where(has_record, record.known.next_after(rows, np.full(len(rows), NULL_TIME)), times)
    failures = {
        "no_record": ~has_record,
        "dead": (death != NULL_TIME) & (death <= times),
        "short_history": times - first < round(task.min_history_days * DAY),
        "few_visits": num_visits < task.min_visits,
        "not_at_risk": _had_code(record, plan, rows, times, stays),
    }
    if task.index == "discharge":
        failures["in_stay"] = _in_stay(record, rows, times)
    if plan.data_end is not None and task.needs_whole_window:
        failures["too_late"] = window_of(task, times)[1] > plan.data_end
    return failures


def _had_code(record: Record, plan: Plan, rows, times, stays) -> np.ndarray:
    """An excluding code ever by t, an outcome code within the washout, or (new_codes) every condition by t."""
    shard, task = record.shard, plan.task
    had, ever = np.zeros(len(rows), bool), plan.is_excluded
    if task.outcome == "new_codes":
        had = (record.first[rows] <= times[:, None]).all(axis=1)
    elif task.index != "during_stay" and np.isinf(task.washout_days):
        ever = plan.is_excluded | plan.is_outcome
    else:
        in_stay = task.index == "during_stay"
        since = record.stay_start[stays] - _BEFORE_STAY if in_stay else times - round(task.washout_days * DAY)
        last = SortedTimes(*events_of_codes(shard, plan.is_outcome, record.line.visit_rows)).last_until(rows, times)
        had = last > since
    if not ever.any():
        return had
    excluded = SortedTimes(*events_of_codes(shard, ever, record.line.visit_rows)).count_until(rows, times) > 0
    return had | excluded | has_static(shard, ever)[rows]


def _in_stay(record: Record, rows, times) -> np.ndarray:
    """Another hospital stay is open at t: a transfer, not a discharge home."""
    ended = record.stay_end != NEVER
    begun = SortedTimes(record.stay_rows[ended], record.stay_start[ended]).count_until(rows, times)
    return begun > SortedTimes(record.stay_rows[ended], record.stay_end[ended]).count_until(rows, times)


def _draw_share(store, plan: Plan) -> float:
    """Chance of each eligible index time to be taken: twice the rows wanted over the mean number a patient has.

    Twice, so that most patients get a row. The mean is rounded to a power of two: a few patients more change nothing.
    """
    if plan.task.row_limit is None:
        return 1.0
    flows = [_eligible(shard, plan)[2] for shard in store.shards]
    rows, subjects = (sum(flow[key] for flow in flows) for key in ("eligible", "subjects_eligible"))
    return min(1.0, 2 * plan.task.row_limit / 2 ** round(np.log2(max(rows, 1) / max(subjects, 1))))


def _draw(shard, plan: Plan, candidates: _Candidates, share: float) -> np.ndarray:
    """Positions of the candidates taken: a patient's first n whose hash of (seed, subject, t) is below `share`."""
    if plan.task.row_limit is None:
        return np.arange(len(candidates.rows))
    draws = hash_uniform(plan.seed, np.asarray(shard.subject_ids)[candidates.rows], candidates.times)
    taken = np.flatnonzero(draws < share)
    return taken[rank_in_group(candidates.rows[taken]) < plan.task.row_limit]
