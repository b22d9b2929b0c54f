"""A finished run passes its audit; the same run with a leak built in does not."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import lstm_small
from ehrjax.data.timeline import DAY
from ehrjax.data.vocab import fit_vocabulary
from ehrjax.evaluate.audit import __main__ as command
from ehrjax.evaluate.audit.checks import audit_models
from ehrjax.evaluate.audit.index_time import blank_labels
from ehrjax.evaluate.audit.model import rebuild
from ehrjax.evaluate.audit.workdir import read_run
from ehrjax.train.checkpoint import restore_best_params
from experiments import stages

TASK = "diabetes_onset"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a tiny run of one task."""
    config = lstm_small.get_config("debug")
    config.tasks, config.fallback_tasks = (TASK,), ()
    config.data.num_patients = 300
    config.train.num_steps = config.train.eval_every = 4
    config.eval.num_resamples = 20
    config.eval.baselines = ("prevalence", "visit_count")
    workdir = tmp_path_factory.mktemp("audit") / "run"
    results = stages.run(config, workdir, command="test")
    assert results["tasks"][TASK]["kind"], results["tasks"][TASK]
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy to build a leak into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def _audit(workdir: Path) -> tuple[int, dict[str, dict]]:
    status = command.main([f"--workdir={workdir}"])
    audit = json.loads((workdir / "audit.json").read_text())
    assert audit["passed"] == (status == 0)
    return status, {check["name"]: check for check in audit["checks"]}


def test_a_clean_run_passes(workdir, capsys):
    status, checks = _audit(workdir)
    assert status == 0, checks
    decided = ("splits", "splits/records", "vocabulary", f"predictions/{TASK}", f"labels/{TASK}")
    at_index = [f"index_time/{what}/{TASK}" for what in ("inputs", "outputs", "visit_inputs", "visit_outputs")]
    for name in (*decided, *at_index):
        assert checks[name]["passed"] is True, checks[name]
    lines = capsys.readouterr().out.splitlines()
    assert all(any(f"{name}: " in line for line in lines) for name in checks)
    assert lines[-1] == "audit passed"


def test_a_vocabulary_of_all_patients_fails(workdir):
    run = read_run(workdir)
    settings = {"min_count": run.config["data.min_count"], "value_bins": run.config["data.value_bins"]}
    fit_vocabulary(run.stores[0], run.stores[0].subject_ids, **settings).save(workdir / "vocab.json")
    audit = audit_models(read_run(workdir), {}, results={"tasks": {}})
    assert [check["name"] for check in audit["checks"] if check["passed"] is False] == ["vocabulary"]
    assert "it is the vocabulary of all patients" in str(audit)


def test_a_shared_patient_fails(workdir):
    table = pq.read_table(workdir / "splits.parquet")
    shared = next(i for i, split in enumerate(table["split"].to_pylist()) if split == "held_out")
    twice = table.slice(shared, 1).set_column(1, "split", pa.array(["train"]))
    pq.write_table(pa.concat_tables([table, twice]), workdir / "splits.parquet")
    audit = audit_models(read_run(workdir), {}, results={"tasks": {}})
    failed = {check["name"]: check["detail"] for check in audit["checks"] if check["passed"] is False}
    assert "1 patient is in both test and train" in failed["splits"]


def test_a_window_past_the_index_fails(workdir):
    run = read_run(workdir)
    model = rebuild(run, run.tasks[TASK])

    def past_the_index(store, labels):
        return model.make_sequences(store, labels._replace(times=labels.times + 180 * DAY))

    leaky = {TASK: model._replace(make_sequences=past_the_index)}
    audit = audit_models(run, leaky, results={"tasks": {}})
    failed = {check["name"] for check in audit["checks"] if check["passed"] is False}
    assert failed >= {f"index_time/inputs/{TASK}", f"index_time/outputs/{TASK}"}
    assert audit == json.loads((workdir / "audit.json").read_text())


def test_predictions_of_a_train_patient_fail(workdir):
    path = workdir / "predictions" / f"{TASK}.parquet"
    table = pq.read_table(path)
    ids = table["subject_id"].to_numpy().copy()
    ids[ids == ids[0]] = read_run(workdir).splits["train"][0]
    pq.write_table(table.set_column(0, "subject_id", pa.array(ids)), path)
    status, checks = _audit(workdir)
    assert status == 1
    assert "not of test" in checks[f"predictions/{TASK}"]["detail"]


def test_labels_of_another_time_fail(workdir):
    path = workdir / "labels" / TASK / "0.parquet"
    table = pq.read_table(path)
    values = ~table["boolean_value"].to_numpy(zero_copy_only=False).astype(bool)
    column = table.column_names.index("boolean_value")
    pq.write_table(table.set_column(column, "boolean_value", pa.array(values)), path)
    audit = audit_models(read_run(workdir), {}, results={"tasks": {}})
    failed = {check["name"] for check in audit["checks"] if check["passed"] is False}
    assert failed == {f"labels/{TASK}", f"predictions/{TASK}"}


def test_adapters_are_no_model_unless_whole_parameters_are_given(finished):
    run = read_run(finished)
    record, adapted = run.tasks[TASK], replace(run, config=run.config | {"train.lora_rank": 4})
    without = rebuild(adapted, record)
    assert without.predict is None
    assert "lora_rank" in without.reason
    params = restore_best_params(finished / "checkpoints" / TASK)
    sequences = without.make_sequences(run.stores[0], blank_labels(record.tested.take(slice(0, 3))))
    given, found = (model.predict(sequences) for model in (rebuild(adapted, record, params), rebuild(run, record)))
    np.testing.assert_array_equal(given, found)


def test_what_is_no_run_cannot_be_audited(tmp_path, capsys):
    assert command.main([f"--workdir={tmp_path}"]) == 2
    assert "results.json is missing" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{}")
    assert command.main([f"--workdir={tmp_path}"]) == 2
    assert "config.json is missing" in capsys.readouterr().err
