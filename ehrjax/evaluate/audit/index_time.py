"""Whether anything after the index time enters: the future is removed, and replaced, and nothing may change."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from ehrjax.data.labels import Labels
from ehrjax.data.perturb import CHANGES, change_after, count_later_events
from ehrjax.data.stay_batching import StayWindows
from ehrjax.evaluate.audit.workdir import Finding, Rows
from ehrjax.types import FIRST_CODE, VisitSequences
from ehrjax.wording import counted

NUM_PATIENTS = 200  # sampled, one row each

MakeSequences = Callable[..., VisitSequences | StayWindows]  # (store, labels) -> sequences
Predict = Callable[[VisitSequences | StayWindows], np.ndarray]


class TaskModel(NamedTuple):
    """How a run makes inputs and outputs of a task.

    `make_sequences(store, labels)`: an example a label row. `make_visit_sequences(store, labels)`: an example a
    patient, labels at visits, where the task trains so. `predict(sequences)`: scores [E, K]; `predict_visits`: scores
    [num_visits, K] of visit-level sequences. None where there is no such thing; `reason` says why there is no
    `predict`. Inputs that come from elsewhere than the store (notes) are changed after the patients' times by
    `change_rest(subject_ids, times, change, seed)`, which gives another `make_sequences`.
    """

    make_sequences: MakeSequences
    predict: Predict | None = None
    make_visit_sequences: MakeSequences | None = None
    predict_visits: Predict | None = None
    reason: str = "no model was given"
    change_rest: Callable[..., MakeSequences] | None = None


def check_inputs(rows: Rows, store, model: TaskModel, *, seed: int = 0) -> tuple[Finding, Finding]:
    """Inputs and outputs of sampled rows are bit-identical when all that comes after their times is changed."""
    sample = one_a_patient(rows, seed)
    num_later = count_later_events(store, sample.subject_ids, sample.times)
    labels = blank_labels(sample)
    original = model.make_sequences(store, labels)
    scores = None if model.predict is None else model.predict(original)
    input_faults, output_faults = [], []
    for change in CHANGES:
        changed_store = change_after(store, sample.subject_ids, sample.times, change=change, seed=seed)
        make = model.make_sequences
        if model.change_rest is not None:
            make = model.change_rest(sample.subject_ids, sample.times, change, seed)
        try:
            changed = make(changed_store, labels)
        except ValueError as error:  # a row without a visit, once its future is removed
            input_faults.append(f"{change}: {error}")
            continue
        differing = [e for e in range(len(labels.times)) if not _same_example(original, changed, e)]
        if differing:
            input_faults.append(f"{change}: {_whose(sample, differing)}")
        if scores is not None:
            other = model.predict(changed)
            same = np.array([np.array_equal(a, b, equal_nan=True) for a, b in zip(scores, other, strict=True)])
            if not same.all():
                output_faults.append(f"{change}: {_whose(sample, np.flatnonzero(~same))}")
    later = counted(num_later, "later event")
    tested = f"{counted(len(sample.times), 'row')}, {later} removed, replaced and added to"
    inputs = _finding(input_faults, "the inputs read what comes after the index time", tested, num_later)
    if scores is None:
        return inputs, Finding(None, f"not computed: {model.reason}")
    return inputs, _finding(output_faults, "the outputs change with the future", tested, num_later)


def check_visit_inputs(rows: Rows, store, model: TaskModel, *, seed: int = 0) -> Finding:
    """What the state after a labelled visit has read equals the sequence made at that time without any future."""
    patients = one_a_patient(rows, seed).subject_ids
    rows = rows.take(np.isin(rows.subject_ids, patients))
    visits = model.make_visit_sequences(store, blank_labels(rows))
    lengths, numbers, examples = _labelled_visits(visits, np.random.default_rng(seed))
    if not len(numbers):
        return Finding(None, "no label stands at a visit of these patients")
    chosen = rows.take(numbers)
    faults = []
    for change in CHANGES:
        changed = change_after(store, chosen.subject_ids, chosen.times, change=change, seed=seed)
        alone = model.make_sequences(changed, blank_labels(chosen))
        is_same = np.diff(alone.example_offsets) == lengths
        is_same &= [_same_visits(visits, e, alone, i, lengths[i]) for i, e in enumerate(examples)]
        if not is_same.all():
            faults.append(f"{change}: {_whose(chosen, np.flatnonzero(~is_same))}")
    num_later = count_later_events(store, chosen.subject_ids, chosen.times)
    later = counted(num_later, "later event")
    tested = f"{counted(len(numbers), 'labelled visit')}, one a train patient, {later} changed"
    return _finding(faults, "the state at a label has read what comes after it", tested, num_later)


def check_visit_outputs(rows: Rows, store, model: TaskModel, *, seed: int = 0) -> Finding:
    """Outputs up to a visit are bit-identical when the codes, ages and gaps of all later visits are changed."""
    if model.predict_visits is None:
        return Finding(None, f"not computed: {model.reason}")
    patients = one_a_patient(rows, seed).subject_ids
    sequences = model.make_visit_sequences(store, blank_labels(rows.take(np.isin(rows.subject_ids, patients))))
    num_visits = np.diff(sequences.example_offsets)
    if not (num_visits > 1).any():
        return Finding(None, "no sampled patient has two visits")
    rng = np.random.default_rng(seed)
    last = sequences.example_offsets[:-1] + rng.integers(0, np.maximum(num_visits - 1, 1))
    is_later = np.arange(len(sequences.ages)) > np.repeat(last, num_visits)
    is_later_code = np.repeat(is_later, np.diff(sequences.visit_offsets))
    highest = max(int(sequences.codes.max(initial=FIRST_CODE)), FIRST_CODE) + 1
    drawn = rng.integers(FIRST_CODE, highest, len(is_later_code)).astype(sequences.codes.dtype)
    changed = sequences._replace(
        codes=np.where(is_later_code, drawn, sequences.codes),
        ages=np.where(is_later, sequences.ages / 2 + 1, sequences.ages).astype(sequences.ages.dtype),
        gap_days=np.where(is_later, sequences.gap_days * 2 + 1, sequences.gap_days).astype(sequences.gap_days.dtype),
    )
    before, after = model.predict_visits(sequences), model.predict_visits(changed)
    differs = (before != after) & ~(np.isnan(before) & np.isnan(after))
    leaks = np.flatnonzero(differs.any(axis=1) & ~is_later)
    num_later = int((is_later & ~np.isnan(before).any(axis=1)).sum())  # NaN: not computed, a record that is too long
    tested = f"{counted(len(num_visits), 'train patient')}, {counted(num_later, 'later visit')} changed"
    whose = np.searchsorted(sequences.example_offsets, leaks, side="right") - 1
    visits = counted(len(leaks), "visit")
    faults = [f"of {visits}, e.g. of patient {sequences.subject_ids[whose[0]]}"] if len(leaks) else []
    return _finding(faults, "the outputs at a visit change with later visits", tested, num_later)


def one_a_patient(rows: Rows, seed: int) -> Rows:
    """One row each of at most NUM_PATIENTS patients, drawn at random, sorted by patient."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows.times))
    _, first = np.unique(rows.subject_ids[order], return_index=True)
    first = np.sort(rng.permutation(first)[:NUM_PATIENTS])
    chosen = order[first]
    return rows.take(chosen[np.argsort(rows.subject_ids[chosen], kind="stable")])


def blank_labels(rows: Rows) -> Labels:
    """Label rows whose values are their numbers: nothing of the outcome, and a label tells which row it is."""
    values = np.arange(len(rows.times), dtype=np.float32)[:, None]
    mask = np.ones(values.shape, bool)
    return Labels("audit", "regression", ("audit",), rows.subject_ids, rows.times, values, mask, rows.times, {})


def _labelled_visits(visits: VisitSequences, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One labelled visit a patient whose record is one example: its number from 1, its row's number, the example."""
    ids, counts = np.unique(visits.subject_ids, return_counts=True)
    found = []
    for example in np.flatnonzero(counts[np.searchsorted(ids, visits.subject_ids)] == 1):
        first, end = visits.example_offsets[example : example + 2]
        places = np.flatnonzero(visits.label_mask[first:end].any(axis=1))
        if len(places):
            place = int(rng.choice(places))
            found.append((place + 1, int(visits.labels[first + place, 0]), int(example)))
    columns = np.array(found, np.int64).reshape(-1, 3)
    return columns[:, 0], columns[:, 1], columns[:, 2]


def _same_example(a: VisitSequences | StayWindows, b: VisitSequences | StayWindows, example: int) -> bool:
    if isinstance(a, StayWindows):
        rows = (asdict(stays.take(np.array([example]))).values() for stays in (a, b))
        return all(x.tobytes() == y.tobytes() for x, y in zip(*rows, strict=True))
    length = np.diff(a.example_offsets)[example]
    return length == np.diff(b.example_offsets)[example] and _same_visits(a, example, b, example, int(length))


def _same_visits(a: VisitSequences, i: int, b: VisitSequences, j: int, length: int) -> bool:
    """The first `length` visits of example i of a and example j of b, bit for bit."""
    return all(x.tobytes() == y.tobytes() for x, y in zip(_slice(a, i, length), _slice(b, j, length), strict=True))


def _slice(sequences: VisitSequences, example: int, length: int) -> tuple[np.ndarray, ...]:
    first = sequences.example_offsets[example]
    offsets = sequences.visit_offsets[first : first + length + 1]
    codes = sequences.codes[offsets[0] : offsets[-1]]
    visits = slice(first, first + length)
    return codes, np.diff(offsets), sequences.ages[visits], sequences.gap_days[visits]


def _whose(rows: Rows, differing) -> str:
    first = differing[0]
    time = np.datetime64(int(rows.times[first]), "s")
    rows_differ = counted(len(rows.times), "row differs", "rows differ")
    return f"{len(differing):,} of {rows_differ}, e.g. patient {rows.subject_ids[first]} at {time}"


def _finding(faults: list[str], fault: str, tested: str, num_later: int) -> Finding:
    if faults:
        return Finding(False, f"{fault}: {'; '.join(faults)}")
    if not num_later:
        return Finding(None, "nothing comes after the sampled index times, so nothing could be changed")
    return Finding(True, f"{tested}: bit-identical")
