"""The main job with notes: three forms, their oracles and differences, an audit that changes later notes too."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from configs import multimodal
from ehrjax.data import simulate_stays
from ehrjax.data.stay_windows import collect, fit_scaler
from ehrjax.evaluate.audit.index_time import blank_labels, check_inputs
from ehrjax.evaluate.audit.model import notes_of, rebuild, settings_of
from ehrjax.evaluate.audit.scaler import check_scaler
from ehrjax.evaluate.audit.workdir import read_run
from ehrjax.evaluate.tables import modality_rows, results_table
from experiments import stages, stays

TASK = simulate_stays.TASK
FORMS = ["vitals", "notes", "both"]


def small(**of_stays):
    config = multimodal.get_config("debug")
    config.data.num_patients = 120
    config.stays.update(**of_stays)
    config.train.update(num_steps=4, eval_every=2, batch_size=32)
    config.eval.update(num_resamples=20, baselines=("prevalence", "logistic"))
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "multimodal"
    return workdir, stages.run(small(), workdir, command="test")


def test_each_form_has_figures_an_oracle_and_a_difference(finished):
    workdir, results = finished
    forms = results["tasks"][TASK]["modalities"]
    assert list(forms) == FORMS
    oracles = [row["oracle"]["auroc"] for row in forms.values()]
    assert len(set(oracles)) == 3 and oracles[2] > oracles[1]
    assert forms["both"]["test"] == results["tasks"][TASK]["test"]
    assert forms["both"]["oracle"] == results["tasks"][TASK]["oracle"]
    for form in FORMS[:2]:
        low, value, high = (forms[form]["both_minus"]["auroc"][key] for key in ("low", "value", "high"))
        assert value == pytest.approx(forms["both"]["test"]["auroc"]["value"] - forms[form]["test"]["auroc"]["value"])
        assert low <= value <= high
        assert (workdir / "checkpoints" / f"{TASK}.{form}").is_dir()
    assert [path.name for path in (workdir / "predictions").iterdir()] == [f"{TASK}.parquet"]
    assert (workdir / "plots" / f"{TASK}_modalities_roc.png").exists()


def test_the_table_and_the_report_show_the_forms(finished):
    workdir, results = finished
    rows = modality_rows(results["tasks"][TASK])
    assert [row[0] for row in rows] == ["reads", *FORMS] and rows[3][-1] == "-"
    assert rows[1][1] in results_table(results)
    for name in ("report.html", "report.md"):
        assert "vital signs alone, notes alone and both" in (workdir / name).read_text(encoding="utf-8")
    assert modality_rows({"test": {}}) == []


def test_the_audit_changes_later_notes(finished):
    workdir, _ = finished
    checks = {check["name"]: check["passed"] for check in json.loads((workdir / "audit.json").read_text())["checks"]}
    assert False not in checks.values() and checks[f"scaler/{TASK}"]
    assert checks[f"index_time/inputs/{TASK}"] and checks[f"index_time/outputs/{TASK}"]


def test_notes_from_after_the_index_time_are_found(finished):
    run = read_run(finished[0])
    record = run.tasks[TASK]
    model = rebuild(run, record)
    day = 86_400

    def late(make):
        """Windows whose notes, and whose alone, are those of a day later."""

        def windows(store, labels):
            own, later = make(store, labels), make(store, labels._replace(times=labels.times + day))
            return own.__class__(**{**vars(own), "notes": later.notes, "has_notes": later.has_notes})

        return windows

    leaking = model._replace(
        make_sequences=late(model.make_sequences),
        predict=None,
        change_rest=lambda *after: late(model.change_rest(*after)),
    )
    assert check_inputs(record.tested, run.stores[0], model._replace(predict=None))[0].passed
    assert check_inputs(record.tested, run.stores[0], leaking)[0].passed is False


@pytest.mark.parametrize("leaking", [("scaler.json", "notes.npz"), ("notes.npz",)])
def test_a_scaler_that_saw_test_patients_is_found(finished, tmp_path, leaking):
    """Also where the means of the notes alone saw them."""
    run = read_run(finished[0])
    record = run.tasks[TASK]
    other = SimpleNamespace(**{**vars(run), "workdir": tmp_path})
    rows = record.index_rows(np.concatenate(list(run.splits.values())))
    folder = tmp_path / "stays" / TASK
    shutil.copytree(run.workdir / "stays" / TASK, folder)
    (tmp_path / "data").symlink_to(run.workdir / "data")
    assert check_scaler(other, record).passed
    seen = fit_scaler(collect(run.stores[0], blank_labels(rows), settings_of(run)), settings_of(run), notes_of(run))
    for name in leaking:
        seen.files[name].save(folder / name)
    finding = check_scaler(other, record)
    assert finding.passed is False and finding.detail.startswith("it is not that of the train rows")


def test_missing_weights_are_told_with_the_ways_to_get_them(tmp_path):
    config = small(note_encoder="minilm", note_weights=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"(?s)Ways to get .*note_encoder=lexicon"):
        stages.run(config, tmp_path / "run", command="test")
    assert not (tmp_path / "run" / "data").exists()


def test_missing_notes_and_unknown_encoders_are_told(tmp_path):
    with pytest.raises(ValueError, match="note_encoder='bert' is not known: use minilm or lexicon"):
        stages.run(small(note_encoder="bert"), tmp_path / "run", command="test")
    config = small()
    config.data.update(source="meds", path=str(tmp_path))
    config.tasks = ("mortality_1y",)
    with pytest.raises(ValueError, match=r"stays\.notes is empty.*--config\.stays\.notes=FILE"):
        stages.run(config, tmp_path / "other", command="test")


def test_vectors_of_notes_are_made_once(tmp_path, monkeypatch):
    """Sentence by sentence; the cache answers the second time."""
    embedded = []

    class Encoder:
        model_id, width = "fake", 4

        def embed(self, texts):
            embedded.extend(texts)
            return np.array([[len(text)] * 4 for text in texts], np.float32)

    monkeypatch.setattr(stays, "load_text_encoder", lambda folder: Encoder())
    monkeypatch.setattr(stays, "_find_weights", lambda config: tmp_path)
    table = tmp_path / "notes.csv"
    table.write_text("subject_id,time,text\n1,2020-01-01,calm\n2,2020-01-01,calm\n2,2020-01-02,Worse; calm\n")
    config = small(note_encoder="minilm", notes=str(table))
    for _ in range(2):
        found = stays.prepare_notes(config, tmp_path / "run", None)
        np.testing.assert_array_equal(found.vectors[:, :4], np.repeat([[4.0], [5.0]], 4, axis=1))
        np.testing.assert_array_equal(found.vectors[:, 4:].sum(axis=1), [0, 1])  # "worse" is of the lexicon
    assert sorted(embedded) == ["Worse;", "calm"]
