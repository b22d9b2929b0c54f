"""Figures of embeddings: written whole for no patient and one; what is drawn is what was given."""

import numpy as np
import pytest

from ehrjax.evaluate import embedding_plots as ours


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


@pytest.mark.parametrize("num_patients", [0, 1, 3])
def test_maps_of_few_patients(num_patients, tmp_path):
    colourings = {"age": np.full(num_patients, np.nan), "disease": np.array(["a"] * num_patients, str)}
    ours.embedding_map(tmp_path / "m.png", np.zeros((num_patients, 2)), colourings)
    ours.embedding_map(tmp_path / "n.png", np.zeros((num_patients, 2)), {})
    assert _is_png(tmp_path / "m.png") and _is_png(tmp_path / "n.png")


def test_every_patient_is_drawn_once_a_panel_in_the_colour_of_the_cluster(tmp_path, drawn):
    points = np.random.default_rng(0).normal(size=(60, 2))
    clusters = np.arange(60) % 12
    clusters[:30] = 0
    ages = np.where(np.arange(60) < 6, np.nan, np.arange(60.0))
    ours.embedding_map(tmp_path / "m.png", points, {"cluster": clusters, "age": ages})
    by_name, by_number = drawn[0].axes[:2]
    labels = [text.get_text() for text in by_name.get_legend().get_texts()]
    assert len(labels) == 7 and labels[0].startswith("other") and labels[1] == f"0 ({(clusters == 0).sum()})"
    assert sum(len(each.get_offsets()) for each in by_name.collections) == 60
    assert [len(each.get_offsets()) for each in by_number.collections] == [6, 54]
    assert by_number.collections[1].get_array().tolist() == ages[6:].tolist()


def test_few_names_keep_their_order_and_the_unknown_are_grey(tmp_path, drawn):
    names = np.array(["heart"] * 2 + ["copd"] * 3 + [""])
    ours.embedding_map(tmp_path / "m.png", np.zeros((6, 2)), {"disease": names, "event": names == "copd"})
    texts = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in drawn[0].axes]
    assert texts == [["unknown (1)", "copd (3)", "heart (2)"], ["False (3)", "True (3)"]]


def test_a_colour_a_point(tmp_path):
    with pytest.raises(ValueError, match="age has 3 values for 4 points"):
        ours.embedding_map(tmp_path / "m.png", np.zeros((4, 2)), {"age": np.zeros(3)})


def test_few_shot_curves(tmp_path, drawn):
    curve = {"shots": [1, 2, 4], "mean": [0.6, 0.7, 0.8], "sd": [0.1, 0.1, 0.0], "all_labels": 0.9}
    ours.few_shot_plot(tmp_path / "f.png", {"disease": curve, "none": {"shots": [], "reason": "one class"}})
    lines = drawn[0].axes[0].lines
    assert lines[0].get_xydata().tolist() == [[1, 0.6], [2, 0.7], [4, 0.8]]
    assert lines[1].get_ydata().tolist() == [0.9, 0.9]
    ours.few_shot_plot(tmp_path / "g.png", {})
    assert _is_png(tmp_path / "f.png") and _is_png(tmp_path / "g.png")


def test_survival_starts_at_one_and_clusters_without_a_curve_are_left_out(tmp_path, drawn):
    outcome = {"num_events": 1, "num_patients": 12, "curve": {"times": [1.5], "survival": [0.75]}}
    rows = [{"cluster": 0, "outcomes": {"death": outcome}}, {"cluster": 1, "reason": "small"}]
    ours.cluster_survival_plot(tmp_path / "s.png", {"clusters": rows}, "death")
    (line,) = drawn[0].axes[0].lines
    assert line.get_xydata().tolist() == [[0, 1], [1.5, 0.75]]
    ours.cluster_survival_plot(tmp_path / "t.png", {"clusters": []}, "death")
    assert _is_png(tmp_path / "s.png") and _is_png(tmp_path / "t.png")
