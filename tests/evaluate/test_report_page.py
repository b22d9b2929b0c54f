"""The report of a run in which every part is present: nothing is missing, broken, identifying or executable."""

import json
import re

import numpy as np
import pytest

from ehrjax.evaluate.report import main, write_report
from ehrjax.evaluate.report_html import anchor, data_script
from ehrjax.evaluate.tables import results_table
from tests.evaluate.report_example import HOSTILE, TASK, example_map, example_results, write_example
from tests.evaluate.test_report import _Checker

SECTIONS = ("Run", "Data", "Cohorts", "Training", "Pre-training", f"Task {TASK}", "Task death", "Task rare")
SECTIONS += ("Patient embeddings", "Leakage audit", "Environment")


class _Page(_Checker):
    """Also collects tags, attributes and the headings."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.headings = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        super().handle_data(data)
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = write_example(tmp_path_factory.mktemp("run"))
    main([f"--workdir={path}"])
    return path


@pytest.fixture(scope="module")
def text(workdir):
    return (workdir / "report.html").read_text(encoding="utf-8")


def test_every_part_is_there_and_the_page_is_well_formed(text):
    page = _Page(text)
    assert not page.open
    assert [heading for heading in page.headings if heading in SECTIONS] == list(SECTIONS)
    for heading in ("Seeds", "Calibration", "Decision curve", "Survival", "Subgroups", "Explanations of patients"):
        assert heading in page.headings
    for shown in (
        "no patient",
        "0.048",
        "boosting",
        "FAIL",
        "cluster 0",
        "withheld",
        "Patient 3",
        "0.851",
        "2026-11-22",
    ):
        assert shown in page.text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value for name, value in page.attributes if name == "href" and value.startswith("#")]
    assert {link[1:] for link in links} <= set(ids) and len(links) >= len(SECTIONS)
    assert len(text) < 300_000


def test_descriptions_are_text_and_never_markup(text):
    page = _Page(text)
    assert text.count("<script") == 2 and text.count("</script>") == 2  # the map's data and the page's script
    assert "img" not in page.tags, "no plot was written: an image is one that a description brought"
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text


def test_data_for_the_script_come_back_as_they_were():
    data = {"codes": [HOSTILE, "\u2028", "<!--"]}
    script = data_script("x", data)
    content = script[script.index(">") + 1 : script.rindex("<")]
    assert json.loads(content) == data and not set("<>&") & set(content)


def test_patients_are_numbered_and_not_named(workdir, text):
    for report in (text, (workdir / "report.md").read_text(encoding="utf-8")):
        assert "Patient 1" in report
        assert not re.search("987[,_]?654|123[,_]?454[,_]?321|700[,_]?000[,_]?\\d", report)


def test_every_chart_says_what_it_shows(text):
    charts = re.findall(r'<svg [^>]*class="chart[^>]*>', text)
    assert len(charts) > 15
    assert all(re.search(r'role="img"[^>]* aria-label="[^"]{5,}"', chart) for chart in charts)
    assert "nan" not in "".join(re.findall(r' (?:d|cx|cy|x|y|width)="([^"]*)"', text)).lower()


def test_markdown_has_the_tables_and_no_markup(workdir):
    report = (workdir / "report.md").read_text(encoding="utf-8")
    assert "<" not in report
    for part in ("| auroc | 0.865 \\[0.835, 0.895\\]", "## Leakage audit", "| future events | FAIL |"):
        assert part in report
    tables = re.findall(r"(?:^\|.*\n)+", report, re.MULTILINE)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1, table


def test_parts_without_data_are_left_out(tmp_path):
    results = {"model": None, "data": {"num_patients": 3}, "tasks": {}, "train": None, "embeddings": None}
    text = write_report(tmp_path, results, {"name": "small"}).read_text(encoding="utf-8")
    assert _Page(text).headings == ["Run", "Data", "Environment"]
    assert "## Cohorts" not in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_each_part_may_be_absent_or_empty_by_itself(tmp_path):
    """Reports are written of runs of all ages: none of these parts is promised."""
    optional = ("difference", "recalibration", "decision_curve", "subgroups", "seeds", "explanations", "flow")
    for name in optional:
        for empty in (None, {}, "absent"):
            results = example_results()
            if empty == "absent":
                del results["tasks"][TASK][name]
            else:
                results["tasks"][TASK][name] = empty
            text = write_report(tmp_path, results, {}).read_text(encoding="utf-8")
            assert f"Task {TASK}" in text and results_table(results)
    results = example_results()
    results["embeddings"] = {
        "silhouette": None,
        "reason": "two patients",
        "clusters": {"num_patients": 0, "clusters": []},
    }
    results["audit"] = {"passed": True, "checks": []}
    text = write_report(tmp_path, results, {}).read_text(encoding="utf-8")
    assert "two patients" in text and "Leakage audit" not in text


def test_a_page_of_other_plots_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr("ehrjax.evaluate.report.MAX_PLOT_BYTES", 100)
    folder = tmp_path / "plots"
    folder.mkdir()
    for name in ("a", "b", f"{TASK}_forest", f"{TASK}_1y_roc"):
        (folder / f"{name}.png").write_bytes(b"\x89PNG" + bytes(46))
    results = example_results()
    results["tasks"][f"{TASK}_1y"] = results["tasks"][TASK]
    text = write_report(tmp_path, results, {}).read_text(encoding="utf-8")
    assert text.count("data:image/png") == 2, "the forest plot is replaced by a chart, and two fill the page"
    assert f"plots/{TASK}_1y_roc.png" in text


def test_map_of_points_without_a_place_or_a_colouring(tmp_path):
    for found in ({"x": [], "y": []}, {"x": [None], "y": [1.0]}, {"x": [float("nan")], "y": [1.0], "cluster": [0]}):
        (tmp_path / "embedding_map.json").write_text(json.dumps(found))
        assert (
            "embedding-map"
            not in write_report(tmp_path, example_results(), {}).read_text(encoding="utf-8").split("<script>")[0]
        )
    (tmp_path / "embedding_map.json").write_text(json.dumps({"x": [1.0, 1.0], "y": [2.0, 2.0], "method": "pca"}))
    assert "(n = 2)" in write_report(tmp_path, example_results(), {}).read_text(encoding="utf-8")


def test_the_map_groups_what_is_rare_and_bands_ages(tmp_path):
    found = example_map(30) | {"disease": [f"disease {k}" for k in range(30)], "age": [17.9, 18.0, None] * 10}
    (tmp_path / "embedding_map.json").write_text(json.dumps(found))
    text = write_report(tmp_path, example_results(), {}).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="map-data">(.*?)</script>', text)[1])
    assert list(data["colourings"]) == ["disease", "cluster", "age", "outcome"]
    assert data["colourings"]["age"]["legend"][:2] == [["0", "under 18 (10)"], ["1", "18 to 39 (10)"]]
    assert data["colourings"]["age"]["legend"][2] == ["n", "other or unknown (10)"]
    assert data["colourings"]["disease"]["styles"].count("n") == 24
    assert [data["codes"][place] for place in data["topCodes"][1]] == [HOSTILE[:79] + "…", "Metformin"]


def test_an_unfinished_run_has_no_report(tmp_path):
    with pytest.raises(SystemExit, match=r"no results\.json"):
        main([f"--workdir={tmp_path}"])


def test_the_printed_table_has_the_difference_and_survival(workdir):
    table = results_table(example_results())
    header = next(line for line in table.splitlines() if "boosting" in line)
    assert header.split("  ")[-1].strip() == "model - boosting"
    row = next(line for line in table.splitlines() if line.startswith("auroc"))
    assert row.endswith("+0.048 [+0.018, +0.078]")
    assert next(line for line in table.splitlines() if line.startswith("concordance ")).endswith("[-0.010, +0.050]")
    assert "- model C-index minus that of the oracle (record): -0.020" in table
    assert "mean prediction of 5 seeds; members: AUROC 0.851 (sd 0.006)" in table
    assert "horizons 365, 730 days" in table


def test_anchors_are_plain_and_differ():
    assert anchor(0, "Ünï") != anchor(1, "Ünï")
    assert re.fullmatch("[a-z0-9-]+", anchor(2, HOSTILE))


def test_numpy_and_tuples_of_a_run_in_memory_are_read_too(tmp_path):
    """A run writes its report from what it holds, not from the JSON that it writes afterwards."""
    results = example_results()
    curve = results["tasks"][TASK]["decision_curve"]
    benefit = {name: np.array([np.nan if y is None else y for y in ys]) for name, ys in curve["net_benefit"].items()}
    results["tasks"][TASK]["decision_curve"] = (np.array(curve["thresholds"]), benefit)
    results["tasks"][TASK]["test"]["auroc"]["low"] = np.float64("nan")
    assert "Decision curve" in _Page(write_report(tmp_path, results, {}).read_text(encoding="utf-8")).headings
