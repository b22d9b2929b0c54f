"""Runs side by side: which rows are shared, paired differences, and runs that cannot be compared."""

import json

import numpy as np
import pytest

from ehrjax.evaluate.predict import write_predictions
from ehrjax.evaluate.report import write_json
from ehrjax.evaluate.saved_predictions import horizons_of, read_predictions
from ehrjax.metrics.classification import auroc
from experiments.compare import compare, comparison_text, main, read_runs, shared_rows, write_comparison

NUM_ROWS = 120


def _run(workdir, rows=range(NUM_ROWS), *, noise=0.0, kind="binary", flipped=0, task="death"):
    """A finished run whose test rows are some of the same patients; risks are the truth with noise."""
    rows = np.asarray(rows)
    labels = (np.arange(1000) % 3 == 0)[rows]
    rng = np.random.default_rng(7)
    scores = np.clip(0.3 + 0.2 * labels + noise * rng.normal(0, 1, 1000)[rows], 0.01, 0.99)
    labels[:flipped] = ~labels[:flipped]
    write_predictions(
        workdir / "predictions" / f"{task}.parquet",
        kind,
        subject_ids=rows // 2,
        times=rows * 86_400,
        labels=labels[:, None],
        scores=scores[:, None],
    )
    value = float(auroc(labels, scores)) if kind == "binary" and len(np.unique(labels)) == 2 else None
    test = {"auroc": {"value": value, "low": None, "high": None}}
    write_json(
        workdir / "results.json",
        {"model": {"name": "behrt", "num_params": 10}, "tasks": {task: {"kind": kind, "test": test}}},
    )
    return workdir


def test_a_run_equals_itself_and_a_worse_one_is_told_apart(tmp_path):
    first, same = _run(tmp_path / "first", noise=0.05), _run(tmp_path / "same", noise=0.05)
    worse = _run(tmp_path / "worse", noise=0.6)
    compared = compare(read_runs([first, same, worse]), num_resamples=200)
    differences = compared["tasks"]["death"]["differences"]
    assert differences["same"]["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert differences["same"]["num_shared"] == NUM_ROWS
    found = differences["worse"]["auroc"]
    values = [read_predictions(path / "predictions" / "death.parquet") for path in (first, worse)]
    expected = [auroc(found.labels[:, 0], found.scores[:, 0]) for found in values]
    assert found["value"] == pytest.approx(expected[1] - expected[0])
    assert found["low"] < found["value"] < found["high"] < 0


def test_only_shared_rows_are_paired_whatever_their_order(tmp_path):
    first = _run(tmp_path / "first", range(NUM_ROWS))
    other = _run(tmp_path / "other", range(NUM_ROWS + 30, 20, -1))
    compared = compare(read_runs([first, other]), num_resamples=20)
    row = compared["tasks"]["death"]["differences"]["other"]
    assert (row["num_shared"], row["num_first"], row["num_other"]) == (NUM_ROWS - 21, NUM_ROWS, NUM_ROWS + 10)
    assert row["auroc"]["value"] == 0.0
    assert "of 120 and 130 test rows 99 are shared" in comparison_text(compared)


def test_rows_of_one_patient_at_one_time_are_paired_once(tmp_path):
    found = read_predictions(_run(tmp_path / "a", [4, 4, 5]) / "predictions" / "death.parquet")
    fewer = read_predictions(_run(tmp_path / "b", [5, 4]) / "predictions" / "death.parquet")
    left, right = shared_rows(found, fewer)
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (2, 0)]


def test_no_shared_row_and_other_labels_are_refused(tmp_path):
    first = _run(tmp_path / "first")
    with pytest.raises(ValueError, match="share no patient and index time"):
        compare(read_runs([first, _run(tmp_path / "apart", range(500, 600))]))
    with pytest.raises(ValueError, match="disagree about the labels of 2 shared rows"):
        compare(read_runs([first, _run(tmp_path / "flipped", flipped=2)]))


def test_one_class_only_leaves_dashes(tmp_path):
    rows = range(1, 900, 3)
    compared = compare(read_runs([_run(tmp_path / "a", rows), _run(tmp_path / "b", rows)]), num_resamples=20)
    assert compared["tasks"]["death"]["differences"]["b"]["auroc"]["value"] is None
    auroc_row = next(line for line in comparison_text(compared).splitlines() if line.startswith("auroc"))
    assert auroc_row.split() == ["auroc", "-", "-", "-"]


def test_tasks_of_one_run_only_and_missing_predictions_are_said(tmp_path):
    first, other = _run(tmp_path / "first"), _run(tmp_path / "other", kind="regression")
    text = comparison_text(compare(read_runs([first, other])))
    assert "no paired difference, first predicts binary () , other" in text.replace("()", "() ")
    (other / "predictions" / "death.parquet").unlink()
    assert "death.parquet is missing" in comparison_text(compare(read_runs([first, other])))
    with pytest.raises(ValueError, match="no task was trained in two of these runs"):
        compare(read_runs([first, _run(tmp_path / "third", task="stroke")]))


def test_unfinished_absent_and_repeated_runs_are_refused(tmp_path):
    first = _run(tmp_path / "first")
    (tmp_path / "begun").mkdir()
    with pytest.raises(ValueError, match="begun is not finished"):
        read_runs([first, tmp_path / "begun"])
    with pytest.raises(ValueError, match="absent does not exist"):
        read_runs([first, tmp_path / "absent"])
    for workdirs in ([first], [first, first]):
        with pytest.raises(ValueError, match="two or more different workdirs"):
            read_runs(workdirs)


def test_names_are_folders_or_whole_paths_where_two_are_alike(tmp_path):
    runs = read_runs([_run(tmp_path / "a" / "run"), _run(tmp_path / "b" / "run"), _run(tmp_path / "c")])
    assert [run.name for run in runs] == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "c"]


def test_files_and_command_line(tmp_path, capsys):
    first, other = _run(tmp_path / "first"), _run(tmp_path / "<b>other", noise=0.4)
    main([str(first), str(other), f"--out={tmp_path / 'out'}"])
    assert "shared" in capsys.readouterr().out
    page = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "<b>" not in page and "&lt;b&gt;other" in page
    assert "| auroc | 1.000 |" in (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in written["runs"]] == ["first", "<b>other"]
    with pytest.raises(SystemExit, match=r"error: .*does not exist"):
        main([str(first), str(tmp_path / "absent")])


def test_pretraining_figures_stand_side_by_side(tmp_path):
    runs = []
    for name, value in (("a", 0.5), ("b", 0.625)):
        path = tmp_path / name / "results.json"
        write_json(path, {"model": None, "pretrain": {"test": {"mlm_accuracy": {"value": value}}}, "tasks": {}})
        runs.append(path.parent)
    compared = compare(read_runs(runs))
    write_comparison(tmp_path / "out", compared)
    assert comparison_text(compared).splitlines()[-1].split() == ["mlm_accuracy", "0.500", "0.625"]


def test_survival_is_compared_at_its_horizons(tmp_path):
    days, events = np.array([[100.0, 1], [200, 0], [300, 1], [500, 0], [700, 1], [730, 0]]).repeat(8, axis=0).T
    runs = []
    for name, sign in (("right", -1.0), ("wrong", 1.0)):
        risk = 0.4 + sign * 0.0004 * days
        write_predictions(
            tmp_path / name / "predictions" / "death.parquet",
            "survival",
            subject_ids=np.arange(48),
            times=np.zeros(48, np.int64),
            labels=np.stack([days, events], axis=1),
            scores=np.stack([0.5 * risk, risk], axis=1),
            names=("death by 365 days", "death by 730 days"),
        )
        results = {"model": None, "tasks": {"death": {"kind": "survival", "test": {"c_index": {"value": 0.5}}}}}
        write_json(tmp_path / name / "results.json", results)
        runs.append(tmp_path / name)
    row = compare(read_runs(runs), num_resamples=20)["tasks"]["death"]["differences"]["wrong"]
    assert row["c_index"]["value"] == -1.0 and row["brier_365d"]["value"] > 0
    with pytest.raises(ValueError, match="expected such as"):
        horizons_of(["death"])
