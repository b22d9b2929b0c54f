"""Every figure is written whole, for degenerate inputs too; the numbers behind the curves are checked."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import _pylab_helpers
from matplotlib.figure import Figure
from sklearn import metrics as sk

from ehrjax.evaluate import plots as ours
from tests.data.helpers import make_store

DAY = 86_400


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn, for a look inside."""
    figures, save = [], ours.save_figure

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(ours, "save_figure", keep)
    return figures


def _is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


@pytest.mark.parametrize("num_rows", [0, 1, 3])
@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass", "regression"])
def test_degenerate_tasks_are_drawn(kind, num_rows, tmp_path):
    outputs = {"multilabel": 2, "multiclass": 2}.get(kind, 1)
    labels = np.zeros((num_rows, 2 if kind == "multilabel" else 1), np.float32)
    scores = np.full((num_rows, outputs), 0.5, np.float32)
    paths = ours.task_plots(tmp_path, "t", kind, labels, scores, np.ones(labels.shape, bool), {"prevalence": scores})
    assert paths and all(_is_png(path) for path in paths)


def test_curves_of_a_run_that_logged_nothing(tmp_path):
    ours.training_curves(tmp_path / "a.png", tmp_path / "missing.jsonl")
    (tmp_path / "m.jsonl").write_text('{"step": 1, "train/loss": null}\n{"step": 2, "tr')
    ours.training_curves(tmp_path / "b.png", tmp_path / "m.jsonl")
    assert _is_png(tmp_path / "a.png") and _is_png(tmp_path / "b.png")


def test_training_curves_show_each_part_and_split(tmp_path, drawn):
    rows = [{"part": part, "step": s, "train/loss": 1 / s, "seconds": s} for part in ("a", "b") for s in (1, 2)]
    rows += [{"part": "a", "step": 2, "val/loss": 0.7, "val/auroc": 0.8}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ours.training_curves(tmp_path / "t.png", tmp_path / "m.jsonl")
    panels = [(axes.get_title(), axes.get_ylabel(), len(axes.lines)) for axes in drawn[0].axes]
    assert panels == [("a", "loss", 3), ("a", "auroc", 1), ("b", "loss", 1)]
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5]]


def test_roc_and_precision_recall_are_those_of_scikit_learn(tmp_path, drawn):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), np.round(rng.random(60), 1)
    constant = np.full(60, 0.4)
    ours.roc(tmp_path / "r.png", labels, {"model": scores, "prevalence": constant})
    ours.precision_recall(tmp_path / "p.png", labels, {"model": scores, "prevalence": constant})
    (chance, curve), expected = drawn[0].axes[0].lines, sk.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.get_xdata(), expected[0])
    np.testing.assert_allclose(curve.get_ydata(), expected[1])
    assert chance.get_label() == "chance"
    precision, recall, _ = sk.precision_recall_curve(labels, scores)
    curve = drawn[1].axes[0].lines[1]
    np.testing.assert_allclose(curve.get_xdata(), recall[-2::-1])
    np.testing.assert_allclose(curve.get_ydata(), precision[-2::-1])


def test_masked_labels_are_not_drawn(tmp_path, drawn):
    labels, mask = np.array([[0.0], [1.0], [np.nan]]), np.array([[True], [True], [False]])
    ours.task_plots(tmp_path, "t", "binary", labels, np.array([[0.1], [0.9], [0.5]]), mask, {})
    shown = [text.get_text() for text in drawn[3].axes[0].get_legend().get_texts()]
    assert shown == ["negative (n = 1)", "positive (n = 1)"]


def test_confusion_counts(tmp_path, drawn):
    ours.confusion(tmp_path / "c.png", np.array([0, 0, 1]), np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]]), ["a", "b"])
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["1", "1", "0", "1"]


def test_forest_shows_what_there_is(tmp_path, drawn):
    task = {
        "kind": "binary",
        "test": {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}, "brier": {"value": None, "low": None, "high": None}},
        "baselines": {"logistic": {"auroc": {"value": 0.7, "low": None, "high": None}}, "boosting": {"skipped": "few"}},
        "oracle": {"auroc": 0.85, "latent_auroc": 0.9},
    }
    ours.forest(tmp_path / "f.png", task, title="t")
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["model", "logistic", "oracle (record)", "oracle (latent)"]
    assert [text.get_text() for text in axes.texts] == ["0.800", "0.700", "0.850", "0.900"]


def test_data_overview_of_a_store(tmp_path, drawn):
    events = [
        (1, None, "GENDER//F", None, None),
        (1, "2000-01-01T00:00:00", "MEDS_BIRTH", None, None),
        (1, "2010-01-01T00:00:00", "DIAGNOSIS//A//1", None, 1),
        (1, "2010-01-01T00:00:00", "DIAGNOSIS//A//2", None, 1),
        (1, "2010-01-11T00:00:00", "DIAGNOSIS//A//1", None, 2),
        (2, "2010-01-01T00:00:00", "DIAGNOSIS//A//1", None, 3),
    ]
    store = make_store(tmp_path, events)
    visits, codes, gaps, ages = ours._distributions(store)
    assert sorted(visits) == [1, 2] and sorted(codes) == [1, 1, 2] and gaps.tolist() == [10]
    np.testing.assert_allclose(ages, [10, 10 + 10 / 365.25], atol=0.01)
    ours.data_overview(tmp_path / "d.png", store)
    assert _is_png(tmp_path / "d.png") and len(drawn[0].axes) == 4
    other = make_store(tmp_path / "other", [(9, "2010-01-01T00:00:00", "DIAGNOSIS//A//1", None, 1)])
    visits, codes, *_ = ours._distributions(store, other)
    assert sorted(visits) == [1, 1, 2] and sorted(codes) == [1, 1, 1, 2]


def test_data_overview_of_a_store_without_visits(tmp_path):
    ours.data_overview(tmp_path / "d.png", SimpleNamespace(shards=[]))
    assert _is_png(tmp_path / "d.png")


def test_reliability_intervals_hold_the_rate_and_stay_in_range():
    low, high = ours.wilson_interval(np.array([0.0, 0.5, 1.0]), np.array([5.0, 100.0, 5.0]))
    assert (low <= [0, 0.5, 1]).all() and (high >= [0, 0.5, 1 - 1e-12]).all()
    np.testing.assert_allclose([low[1], high[1]], [0.4038, 0.5962], atol=1e-3)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    ours.roc(tmp_path / "r.png", np.array([0, 1]), {"model": np.array([0.1, 0.9])})
    assert not _pylab_helpers.Gcf.figs  # pyplot knows of no figure
    before = (tmp_path / "r.png").read_bytes()

    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "draw", fail)
    with pytest.raises(OSError, match="no space"):
        ours.roc(tmp_path / "r.png", np.array([0, 1]), {"model": np.array([0.2, 0.9])})
    assert (tmp_path / "r.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
