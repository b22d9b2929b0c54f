"""All checks of a run, in words and in `audit.json`.

    1. splits            no patient, and no record, in two splits
    2. vocabulary        codes and value bins fitted on train alone; "scaler" of models of stays likewise
    3. index_time        inputs and outputs bit-identical when everything after the index time is removed or replaced
    4. labels            outcomes within their window, nothing that the task excludes
    5. shuffled_labels   labels dealt to other patients give chance
    6. recording_times   codes that are stamped with the start of a stay (a warning)
    7. visit_count       the number of visits alone comes close to the model (a warning)
    8. predictions       test patients only, one row a label row
    9. cutoff            of a temporal hold-out: training used nothing recorded or settled after the cut-off

A check that the data cannot decide is null. An audit passes where no check fails.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ehrjax.evaluate.audit.chance import check_shuffled, check_visit_count
from ehrjax.evaluate.audit.cutoff import check_cutoff
from ehrjax.evaluate.audit.index_time import TaskModel, check_inputs, check_visit_inputs, check_visit_outputs
from ehrjax.evaluate.audit.model import reads_stays, rebuild
from ehrjax.evaluate.audit.outcomes import check_labels
from ehrjax.evaluate.audit.patients import check_equal_records, check_label_rows, check_split_overlap
from ehrjax.evaluate.audit.predictions import check_predictions
from ehrjax.evaluate.audit.recording import check_recording_times
from ehrjax.evaluate.audit.scaler import check_scaler
from ehrjax.evaluate.audit.vocabulary import check_vocabulary
from ehrjax.evaluate.audit.workdir import Finding, Run, TaskRecord, read_run
from ehrjax.evaluate.files import replaced

STATUS = {True: "ok", False: "FAILED", None: "-"}


def audit_run(
    workdir: str | Path, *, results: Mapping[str, Any], params: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Audit what lies in `workdir`, print a line a check, write and return `audit.json`.

    `results` is what results.json holds or will hold. `params` holds whole parameters of tasks' models; of others the
    best checkpoint's are read. Raises FileNotFoundError or ValueError where the workdir cannot be read.
    """
    run = read_run(workdir)
    models = {name: rebuild(run, record, (params or {}).get(name)) for name, record in run.tasks.items()}
    return audit_models(run, models, results=results)


def audit_models(run: Run, models: Mapping[str, TaskModel], *, results: Mapping[str, Any], seed: int = 0) -> dict:
    """The same with tasks' own ways to make inputs and outputs."""
    found: list[dict[str, Any]] = []

    def add(name: str, check: Callable[[], Finding]) -> None:
        found.append(_checked(name, check))

    add("splits", lambda: check_split_overlap(run))
    add("splits/records", lambda: check_equal_records(run))
    add("splits/labels", lambda: check_label_rows(run))
    add("vocabulary", lambda: check_vocabulary(run))
    if run.cutoff is not None:
        add("cutoff", lambda: check_cutoff(run))
    add("recording_times", lambda: check_recording_times(run))
    for name, record in run.tasks.items():
        for check, finding in _check_task(run, record, models.get(name), results, seed):
            add(f"{check}/{name}", finding)
    audit = {"passed": all(check["passed"] is not False for check in found), "checks": found}
    with replaced(run.workdir / "audit.json") as partial:
        partial.write_text(json.dumps(audit, indent=1), encoding="utf-8")
    return audit


def _check_task(run: Run, record: TaskRecord, model: TaskModel | None, results: Mapping[str, Any], seed: int):
    yield "predictions", lambda: check_predictions(run, record)
    yield "labels", lambda: check_labels(run, record, seed=seed)
    result = results["tasks"].get(record.name)
    yield "visit_count", lambda: check_visit_count(record.name, result)
    if model is None:
        yield "index_time", lambda: Finding(None, "it is not known how this task makes its inputs")
        return
    if reads_stays(run):
        yield "scaler", lambda: check_scaler(run, record)
    store = run.stores[-1]
    pair = _once(lambda: check_inputs(record.tested, store, model, seed=seed))
    yield "index_time/inputs", lambda: pair()[0]
    yield "index_time/outputs", lambda: pair()[1]
    if model.make_visit_sequences is not None and record.labels:
        rows = record.index_rows(run.splits["train"])
        yield "index_time/visit_inputs", lambda: check_visit_inputs(rows, run.stores[0], model, seed=seed)
        yield "index_time/visit_outputs", lambda: check_visit_outputs(rows, run.stores[0], model, seed=seed)
    yield "shuffled_labels", lambda: check_shuffled(run, record, model, seed=seed)


def _once(function: Callable[[], Any]) -> Callable[[], Any]:
    kept: list[Any] = []

    def call() -> Any:
        if not kept:
            kept.append(function())
        return kept[0]

    return call


def _checked(name: str, check: Callable[[], Finding]) -> dict[str, Any]:
    """A check that stops with an error has failed: what cannot be followed cannot be trusted."""
    try:
        passed, detail = check()
    except (ValueError, KeyError, IndexError) as error:
        passed, detail = False, f"the check stopped: {type(error).__name__}: {error}"
    passed = None if passed is None else bool(passed)
    print(f"{STATUS[passed]:>6}  {name}: {detail}", flush=True)
    return {"name": name, "passed": passed, "detail": detail}
