"""Tables, results.json and reports from results with holes in them."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from ehrjax.evaluate.plots import roc
from ehrjax.evaluate.report import results_table, write_json, write_report
from ehrjax.evaluate.tables import aligned, cell


def _entry(value, **more):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, **more}


UNDEFINED = {"value": None, "low": None, "high": None, "reason": "all 3 labels are <0>"}


@pytest.fixture
def results():
    task = {
        "kind": "binary",
        "num_train": 4200,
        "num_val": 900,
        "num_test": 900,
        "prevalence": 0.081,
        "threshold": 0.12,
        "test": {"auroc": _entry(0.8), "f1": UNDEFINED},
        "baselines": {
            "logistic": {"auroc": _entry(0.75), "f1": UNDEFINED},
            "boosting": {"skipped": "12 labels, limit 5"},
        },
        "oracle": {"auroc": 0.85, "latent_auroc": 0.9},
    }
    return {
        "model": {"name": "visit_lstm", "num_params": 522_497},
        "data": {
            "rows_read": 1000,
            "rows_by_reason": {"no_patient": 3},
            "files": [{"file": "a.csv"}, {"file": "b.csv"}],
        },
        "tasks": {"diabetes_onset": task, "rare": {"kind": None, "skipped": "2 positives in val (needs 3)"}},
        "train": {"steps": 100},
    }


def test_no_task_at_all(tmp_path):
    results = {"model": None, "data": {}, "tasks": {}, "train": None}
    assert results_table(results) == ""
    assert "no model was trained" in write_report(tmp_path, results, {}).read_text()


def test_text_table_aligns_columns_and_tells_what_is_missing(results):
    lines = results_table(results).splitlines()
    assert lines[0] == (
        "diabetes_onset (binary), test split: 4,200 train rows, 900 val rows, 900 test rows, "
        "prevalence 0.081, threshold 0.120"
    )
    header, auroc, f1 = lines[2:5]
    assert header.split("  ")[-1] == "oracle (latent)"
    for text in ("0.800 [0.700, 0.900]", "0.750 [0.650, 0.850]", "0.850", "0.900"):
        assert text in auroc
    assert auroc.index("0.750 [") == header.index("logistic") == f1.index("-", f1.index("-") + 1)
    assert "- model AUROC minus that of the oracle (record): -0.050" in lines
    assert "- boosting skipped: 12 labels, limit 5" in lines
    assert "- f1 undefined for model: all 3 labels are <0>" in lines
    assert lines[-1] == "rare: not trained. 2 positives in val (needs 3)"
    assert max(map(len, lines)) <= 120


def test_intervals_of_few_patients_come_with_a_warning(results):
    results["tasks"]["diabetes_onset"]["num_test_patients"] = 4
    assert "- intervals rest on 4 test patients only: take them as too narrow" in results_table(results).splitlines()
    results["tasks"]["diabetes_onset"]["num_test_patients"] = 400
    assert "test patients" not in results_table(results)


def test_one_of_a_thing_is_in_the_singular(tmp_path, results):
    task = results["tasks"]["diabetes_onset"]
    task |= {"num_train": 1200, "num_val": 1, "num_test": 0, "num_test_patients": 1}
    results["data"]["files"] = [{"file": "a.csv"}]
    results["model"] |= {"num_params": 1}
    results["audit"] = {"passed": False, "checks": [{"name": "splits", "passed": False, "detail": ""}]}
    text = results_table(results)
    assert "1,200 train rows, 1 val row, 0 test rows" in text and "rest on 1 test patient only" in text
    write_report(tmp_path, results, {})
    page, markdown = ((tmp_path / f"report.{suffix}").read_text() for suffix in ("html", "md"))
    for said in ("1 file", "1 parameter", "1 of 1 check failed"):
        assert said in page and said in markdown and f"{said}s" not in page + markdown


def test_cells():
    assert cell(None) == cell(UNDEFINED) == "-"
    assert cell(0.5) == "0.500"
    assert cell({"value": 1234.5, "low": None, "high": None}) == "1,234.5"
    assert aligned([["a", "b"], ["ccc", "d"]]) == ["a    b", "ccc  d"]


class _Checker(HTMLParser):
    """Collects the text and the images, and asserts that every element is closed."""

    void = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.open, self.images, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_is_one_well_formed_file_with_everything_in_it(tmp_path, results):
    rng = np.random.default_rng(0)
    for name in ("diabetes_onset_roc", "data"):
        roc(tmp_path / "plots" / f"{name}.png", rng.integers(0, 2, 9), {"model": rng.random(9)})
    write_json(tmp_path / "environment.json", {"python": "3.11.0"})
    path = write_report(tmp_path, results, {"name": "lstm_small", "model": {"hidden_dim": 256}})
    checker = _Checker()
    page = path.read_text(encoding="utf-8")
    checker.feed(page)
    assert not checker.open
    assert [image["alt"] for image in checker.images] == ["diabetes onset roc", "data"]
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in checker.images)
    assert "http:" not in page and "https:" not in page  # nothing is fetched
    for text in (
        "lstm_small",
        "522,497",
        "0.800 [0.700, 0.900]",
        "labels are <0>",
        "no_patient",
        "hidden_dim",
        "3.11.0",
    ):
        assert text in checker.text
    assert "2 files" in checker.text and "2 positives in val" in checker.text


def test_json_has_plain_numbers_and_no_nan(tmp_path):
    content = {
        "a": np.float32(0.5),
        "b": float("nan"),
        "c": np.arange(2),
        "d": (np.int64(3), None),
        "e": np.bool_(True),
    }
    write_json(tmp_path / "r.json", content)
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "a": 0.5,
        "b": None,
        "c": [0, 1],
        "d": [3, None],
        "e": True,
    }
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]


def test_what_json_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "r.json", {"a": object()})
    assert not list(tmp_path.iterdir())


def test_embeddings_without_figures_and_a_pretraining_without_metrics(tmp_path):
    """What a handful of patients, or an objective that predicts no codes, leaves."""
    undefined = {"value": None, "low": None, "high": None, "reason": "no code is masked"}
    results = {"model": None, "data": {}, "tasks": {}, "train": None}
    results["embeddings"] = {"silhouette": None, "reason": "two patients"}
    for test in ({}, {"mlm_accuracy": undefined}):
        results["pretrain"] = {"val": test, "test": test, "baselines": {}}
        page = write_report(tmp_path, results, {"name": "few"}).read_text()
        assert "two patients" in page and "two patients" in results_table(results)
        assert "0.000" not in results_table(results), "no figure is not a figure of 0"
