"""Whether what scales a task's windows of stays was fitted on the train rows alone."""

import numpy as np

from ehrjax.data.stay_windows import WindowScaler, collect, fit_scaler
from ehrjax.evaluate.audit.index_time import blank_labels
from ehrjax.evaluate.audit.model import load_scaler, notes_of, settings_of
from ehrjax.evaluate.audit.workdir import Finding, Run, TaskRecord
from ehrjax.wording import counted


def check_scaler(run: Run, record: TaskRecord) -> Finding:
    """The scaler fitted again on the train rows is the task's; otherwise whose rows it may have seen."""
    if run.config["train.label_fraction"] < 1:
        return Finding(None, "only a share of the train patients was used (train.label_fraction)")
    if not record.labels:
        return Finding(None, "the task has no label files to fit it on again")
    found = load_scaler(run, record.name)
    again, num_rows = _fit(run, record, ("train",))
    if again == found:
        return Finding(True, f"fitted again on {counted(num_rows, 'train row')}: the same means and deviations")
    origin = next(
        (
            " and ".join(splits)
            for splits in (("train", "val"), ("train", "val", "test"))
            if (len(run.stores) == 1 or "test" not in splits) and _fit(run, record, splits)[0] == found
        ),
        "other rows",
    )
    return Finding(False, f"it is not that of the train rows, but that of {origin}")


def _fit(run: Run, record: TaskRecord, splits: tuple[str, ...]) -> tuple[WindowScaler, int]:
    rows, settings = record.index_rows(np.concatenate([run.splits[split] for split in splits])), settings_of(run)
    found = collect(run.stores[0], blank_labels(rows), settings)
    return fit_scaler(found, settings, notes_of(run)), len(rows.times)
