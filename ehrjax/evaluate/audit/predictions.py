"""Whether the predictions are of test patients only, one a label row, with the label of the label files."""

import numpy as np

from ehrjax.evaluate.audit.workdir import Finding, Rows, Run, TaskRecord
from ehrjax.wording import counted


def check_predictions(run: Run, record: TaskRecord) -> Finding:
    """Test patients only, no row twice, every row a label row of the same time and value."""
    tested, problems = record.tested, []
    if not len(tested.times):
        return Finding(False, "there are no predictions")
    foreign = np.setdiff1d(tested.subject_ids, run.splits["test"])
    if len(foreign):
        where = next((name for name in ("train", "val") if np.isin(foreign, run.splits[name]).any()), "no split")
        problems.append(
            f"{counted(len(foreign), 'patient is', 'patients are')} not of test, e.g. {foreign[0]} (of {where})"
        )
    keys = np.stack([tested.subject_ids, tested.times], axis=1)
    twice = len(keys) - len(np.unique(keys, axis=0))
    if twice:
        problems.append(f"{counted(twice, 'row comes', 'rows come')} twice")
    compared = not problems and bool(record.labels) and len(run.stores) == 1
    if compared:
        problems += _against_labels(run, record)
    if problems:
        return Finding(False, "; ".join(problems))
    how = "each with its label's time and value" if compared else "no label file of the test set to compare with"
    patients = counted(len(np.unique(tested.subject_ids)), "test patient")
    return Finding(True, f"{counted(len(tested.times), 'row')} of {patients}, {how}")


def _against_labels(run: Run, record: TaskRecord) -> list[str]:
    labels = record.labels_of(run.splits["test"])
    predicted, labelled = _keys(record.tested), _keys(record.index_rows(run.splits["test"]))
    problems = []
    pairs = (
        (predicted - labelled, "prediction", "without a label"),
        (labelled - predicted, "label", "without a prediction"),
    )
    for extra, what, lack in pairs:
        if extra:
            subject, time = min(extra)
            at = np.datetime64(time, "s")
            problems.append(f"{counted(len(extra), what)} {lack}, e.g. patient {subject} at {at}")
    columns = {"survival": ("days", "event"), "multiclass": (record.name,)}.get(record.kind, record.outputs)
    for column, output in enumerate(columns):
        wrong = _num_wrong(record.tested, column, labels[output]) if output in labels else 0
        if wrong:
            rows = counted(wrong, "row has", "rows have")
            problems.append(f"{rows} another value of {output} than its label file")
    return problems


def _keys(rows: Rows) -> set[tuple[int, int]]:
    return set(zip(rows.subject_ids.tolist(), rows.times.tolist(), strict=True))


def _num_wrong(tested: Rows, column: int, labels: Rows) -> int:
    keys = zip(labels.subject_ids.tolist(), labels.times.tolist(), strict=True)
    expected = dict(zip(keys, labels.values[:, 0], strict=True))
    keys = zip(tested.subject_ids.tolist(), tested.times.tolist(), strict=True)
    found = zip(keys, tested.values[:, column], strict=True)
    return sum(key in expected and not _is_equal(expected[key], value) for key, value in found)


def _is_equal(a, b) -> bool:
    return a == b if isinstance(a, str) or isinstance(b, str) else bool(np.isclose(a, b, rtol=1e-6, atol=1e-9))
