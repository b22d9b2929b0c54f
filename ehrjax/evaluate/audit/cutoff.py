"""Whether a temporal hold-out holds: nothing that training used was recorded or settled after the cut-off."""

import numpy as np

from ehrjax.data.cutoff import cutoff_day
from ehrjax.data.timeline import DAY
from ehrjax.evaluate.audit.workdir import Finding, Run, TaskRecord
from ehrjax.evaluate.embeddings import read_embeddings
from ehrjax.wording import counted

# Outcomes that a number of days after the index time settles; the others are settled by an event that rows do not tell.
_OPEN_ENDED = ("next_codes", "next_class", "stay_days")


def check_cutoff(run: Run) -> Finding:
    """Train and val labels settled by the cut-off, test rows after it, pre-training records that end at it."""
    cutoff, problems, counts = run.cutoff, [], {"train and val": 0, "test": 0}
    for name, record in run.tasks.items():
        late, num_rows = _late_labels(run, record)
        counts["train and val"] += num_rows
        counts["test"] += len(record.tested.times)
        if late:
            labels = counted(late, "train or val label was", "train or val labels were")
            problems.append(f"of {name} {labels} not settled by the cut-off")
        early = int((record.tested.times <= cutoff).sum())
        if early:
            problems.append(f"of {name} {counted(early, 'test row is', 'test rows are')} not after the cut-off")
    num_read, num_late = _late_records(run)
    if num_late:
        records = counted(num_read, "pre-training record")
        problems.append(f"of {records} {counted(num_late, 'goes', 'go')} on after the cut-off")
    if problems:
        return Finding(False, f"cut-off {cutoff_day(cutoff)}: {'; '.join(problems)}")
    rows = counted(counts["train and val"], "train and val label row")
    tested = counted(counts["test"], "test row")
    records = counted(num_read, "pre-training record ends", "pre-training records end")
    read = f", {records} before it" if num_read else ""
    return Finding(True, f"cut-off {cutoff_day(cutoff)}: {rows} settled before it, {tested} after{read}")


def _late_labels(run: Run, record: TaskRecord) -> tuple[int, int]:
    """Label rows of train and val patients that look beyond the cut-off, of how many."""
    ids = np.concatenate([run.splits["train"], run.splits["val"]])
    times = record.index_rows(ids).times if record.labels else np.zeros(0, np.int64)
    return int((times + _window(run, record) > run.cutoff).sum()), len(times)


def _window(run: Run, record: TaskRecord) -> int:
    """Seconds from the index time to where the outcome is settled at the latest, as far as the task tells."""
    task = record.task
    if task is None:
        return round(run.config["custom_tasks"].get(record.name, {}).get("horizon_days", 0.0) * DAY)
    return 0 if task.outcome in _OPEN_ENDED else round(task.gap_days * DAY) + round(task.horizon_days * DAY)


def _late_records(run: Run) -> tuple[int, int]:
    """Train patients' records that the pre-trained encoder read, and those with a visit after the cut-off."""
    file = run.workdir / "embeddings" / "train.parquet"
    if not file.is_file():
        return 0, 0
    times = read_embeddings(file).times
    return len(times), int((times > run.cutoff).sum())
