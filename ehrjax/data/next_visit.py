"""What the next visit brings: the outputs of "next_codes" and "next_class", fitted on train, and their targets."""

import numpy as np

from ehrjax.data.events import ENCOUNTER_PREFIX, code_type
from ehrjax.data.tasks import Task
from ehrjax.data.timeline import expand
from ehrjax.data.vocab import count_codes

OUTCOMES = ("next_codes", "next_class")


def fit_outputs(store, task: Task, train_subjects: np.ndarray | None) -> tuple[str, ...]:
    """Names of the diagnosis codes or encounter classes to predict: the train patients' most frequent, ties by name.

    Raises ValueError where the task has no such outputs, or the train patients none of the codes.
    """
    if task.outcome not in OUTCOMES:
        raise ValueError(f"task {task.name!r} has outcome {task.outcome!r}; it must be {' or '.join(OUTCOMES)}.")
    if train_subjects is None:
        raise ValueError(f"task {task.name!r} fits its outputs on train: pass train_subjects (their ids), or outputs.")
    is_class = task.outcome == "next_class"
    counts = (_count_classes if is_class else _count_diagnoses)(store, train_subjects)
    names = most_frequent(store, counts, task, limit=None if is_class else task.num_codes)
    return tuple(name.removeprefix(ENCOUNTER_PREFIX) for name in names)


def most_frequent(store, counts: np.ndarray, task: Task, limit: int | None) -> tuple[str, ...]:
    """The `limit` codes of highest count (int64 [num_codes]) that is not 0, ties by name. ValueError for none."""
    found = sorted(np.flatnonzero(counts), key=lambda i: (-counts[i], str(store.codes[i])))
    if not found:
        what = {"next_class": "encounter class", "next_codes": "diagnosis code"}.get(task.outcome, "code of the task")
        raise ValueError(f"task {task.name!r}: the train patients have no {what}: take another task for this data.")
    return tuple(str(store.codes[i]) for i in found[:limit])


def output_columns(store, task: Task, names: tuple[str, ...]) -> np.ndarray:
    """Position in `names` of each code of the store (int64 [num_codes + 1], -1 = none; the last serves code -1)."""
    prefix = ENCOUNTER_PREFIX if task.outcome == "next_class" else ""
    position = {prefix + name: k for k, name in enumerate(names)}
    return np.array([*(position.get(str(code), -1) for code in store.codes), -1])


def _count_diagnoses(store, train_subjects) -> np.ndarray:
    is_diagnosis = np.array([code_type(str(code)) == "diagnosis" for code in store.codes], bool)
    return count_codes(store, train_subjects) * is_diagnosis


def _count_classes(store, train_subjects) -> np.ndarray:
    counts = np.zeros(len(store.codes), np.int64)
    for shard in store.shards:
        chosen = np.repeat(np.isin(shard.subject_ids, train_subjects), np.diff(shard.visit_offsets))
        classes = shard.visit_class[chosen]
        counts += np.bincount(classes[classes >= 0], minlength=len(counts))
    return counts


def next_visit_values(shard, column: np.ndarray, names, task: Task, visits: np.ndarray):
    """Targets from the visits to predict (-1 = none): values [n, K], when they were settled (seconds), and validity."""
    exists = visits >= 0
    shown = visits[exists]
    if task.outcome == "next_class":
        classes = np.full(len(visits), -1, np.int32)
        classes[exists] = column[shard.visit_class[shown]]
        settled = np.zeros(len(visits), np.int64)
        settled[exists] = shard.visit_start[shown]
        return np.maximum(classes, 0)[:, None], settled, classes >= 0
    offsets = np.asarray(shard.event_offsets)
    events, owner = expand(offsets[shown], offsets[shown + 1] - offsets[shown])
    columns = column[shard.event_codes[events]]
    values = np.zeros((len(visits), len(names)), np.float32)
    values[np.flatnonzero(exists)[owner[columns >= 0]], columns[columns >= 0]] = 1
    settled = np.zeros(len(visits), np.int64)
    settled[exists] = shard.visit_end[shown]
    return values, settled, exists
