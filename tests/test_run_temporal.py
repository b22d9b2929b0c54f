"""A temporal hold-out as one setting: training sees what was known, the test what follows, the audit the leaks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import lstm_small
from ehrjax.data.cutoff import StoreUntil, whole_of
from ehrjax.data.vocab import fit_vocabulary
from ehrjax.evaluate import plots
from ehrjax.evaluate.audit.checks import audit_models
from ehrjax.evaluate.audit.workdir import read_run
from experiments import build, prepare, pretrain, stages

TASK, CUTOFF = "diabetes_onset", "2016-07-01"
END = int(np.datetime64(CUTOFF, "s").astype(int)) - 1
SYNTHEA = Path(__file__).resolve().parents[2] / "shared" / "data" / "synthea"
POOLED = ("victor_105", "unmc_111", "swall_109", "akaleem_116", "ppmicv_59")


def _config(**data):
    config = lstm_small.get_config("debug")
    small = {"pretrain.num_steps": 4, "pretrain.eval_every": 2, "train.num_steps": 4, "train.eval_every": 2}
    small |= {"eval.num_resamples": 20, "eval.baselines": ("prevalence",), "eval.min_positives": 1}
    small |= {"data.split": "temporal", "data.cutoff": CUTOFF, "data.split_fractions": (0.5, 0.2, 0.3)}
    small |= {"tasks": (TASK,), "fallback_tasks": (), "data.num_patients": 200}
    config.update_from_flattened_dict(small | {f"data.{key}": value for key, value in data.items()})
    return config


@pytest.fixture(scope="module")
def shown() -> list:
    """The stores of the run's overview."""
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shown) -> Path:
    """The workdir of one run on simulated patients."""
    workdir = tmp_path_factory.mktemp("temporal") / "run"

    def draw(path, *stores, make=plots.data_overview):
        shown.extend(stores)
        make(path, *stores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "data_overview", draw)
        stages.run(_config(), workdir, command="test")
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy to build a leak into."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def data(finished) -> prepare.Data:
    return prepare.prepare_data(build.check_config(_config()), finished)


def _failed(workdir: Path) -> dict[str, str]:
    audit = audit_models(read_run(workdir), {}, results={"tasks": {}})
    return {check["name"]: check["detail"] for check in audit["checks"] if check["passed"] is False}


def test_a_run_trains_before_the_cutoff_and_tests_after_it(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["data"]["cutoff"] == CUTOFF
    assert results["audit"]["passed"], results["audit"]
    assert {check["name"]: check["passed"] for check in results["audit"]["checks"]}["cutoff"] is True
    assert results["tasks"][TASK]["kind"] == "binary", results["tasks"][TASK]
    assert results["tasks"][TASK]["oracle"], "index times after the cut-off are the oracle's as well"
    times = pq.read_table(finished / "predictions" / f"{TASK}.parquet")["prediction_time"].cast(pa.int64()).to_numpy()
    assert (times // 1_000_000 > END).all()
    assert results["pretrain"]["test"]["next_visit_f1"]["value"] is not None
    assert _failed(finished) == {}


def test_the_overview_shows_what_was_read_on_either_side_of_the_cutoff(finished, shown):
    (store,) = shown
    assert sum(len(shard.visit_start) for shard in store.shards) == store.report["num_visits"]
    assert max(shard.visit_start.max() for shard in store.shards) > END
    assert (finished / "plots" / "data.png").is_file()


def test_splits_are_of_patients_and_those_seen_later_train_nothing(data):
    everyone = np.concatenate(list(data.splits.values()))
    assert len(np.unique(everyone)) == len(everyone)
    whole = data.stores[-1]
    later = np.setdiff1d(whole.subject_ids, data.stores[0].subject_ids)
    assert len(later) and not np.isin(later, np.union1d(data.splits["train"], data.splits["val"])).any()
    assert data.vocab.content_hash != fit_vocabulary(whole, data.splits["train"], value_bins=5).content_hash


def test_pretraining_reads_nothing_after_the_cutoff_and_is_asked_nothing_before_it(data):
    config = build.check_config(_config())
    for split in ("train", "val"):
        records = pretrain._read_records(split, data, config)
        assert (records.sequences.times <= END).all() and records.is_asked is None
    records = pretrain._read_records("test", data, config)
    visit = np.repeat(np.arange(len(records.sequences.ages)), np.diff(records.sequences.visit_offsets))
    assert records.hidden.any() and records.is_asked[visit[records.hidden]].all()
    assert not records.is_asked.all()


def test_every_visit_labels_of_train_are_settled_by_the_cutoff(data, tmp_path):
    config = build.check_config(_config())
    parts, reason, _ = prepare.prepare_task(TASK, data, config, tmp_path)
    assert parts is not None, reason
    assert parts["train"].level == "visit"
    for split in ("train", "val"):
        assert (parts[split].labels.end_times <= END).all(), split
        assert (parts[split].sequences.times[parts[split].sequences.label_mask.any()] <= END).all()
    assert (parts["test"].labels.times > END).all()


def test_a_vocabulary_that_saw_later_events_fails(workdir):
    run = read_run(workdir)
    whole = whole_of(run.stores[0])
    fit_vocabulary(whole, run.splits["train"], value_bins=run.config["data.value_bins"]).save(workdir / "vocab.json")
    failed = _failed(workdir)
    assert list(failed) == ["vocabulary"]
    assert "it is the vocabulary of train with what came after the cut-off" in failed["vocabulary"]


def test_pretraining_records_that_go_on_fail(workdir):
    path = workdir / "embeddings" / "train.parquet"
    table = pq.read_table(path)
    times = table["time"].cast(pa.int64()).to_numpy().copy()
    times[0] = (END + 1) * 1_000_000
    pq.write_table(table.set_column(1, "time", pa.array(times).cast(pa.timestamp("us"))), path)
    assert f"of {len(times)} pre-training records 1 goes on" in _failed(workdir)["cutoff"]


def test_unsettled_labels_and_early_test_rows_fail(workdir):
    for path in (workdir / "labels" / TASK / "0.parquet", workdir / "predictions" / f"{TASK}.parquet"):
        table = pq.read_table(path)
        times = table["prediction_time"].cast(pa.int64()).to_numpy().copy()
        times[-1] = END * 1_000_000
        column = table.column_names.index("prediction_time")
        pq.write_table(table.set_column(column, "prediction_time", pa.array(times).cast(pa.timestamp("us"))), path)
    detail = _failed(workdir)["cutoff"]
    assert f"of {TASK} 1 train or val label was not settled" in detail
    assert f"of {TASK} 1 test row is not after the cut-off" in detail


def test_label_files_say_how_far_they_look(data, tmp_path):
    config = build.check_config(_config())
    assert prepare.prepare_task(TASK, data, config, tmp_path)[0]
    own = {"labels": str(tmp_path / "labels" / TASK)}
    config.custom_tasks = {"file": own}
    with pytest.raises(ValueError, match=r"custom_tasks.file: .* give horizon_days"):
        prepare.find_task("file", config)
    config.custom_tasks = {"file": own | {"horizon_days": 365.0}}
    first, last = prepare._make_labels("file", data, config)
    assert len(first.times) and (first.end_times <= END).all()
    assert not len(last.times), "these labels are of train and val, hence before the cut-off"
    config.custom_tasks = {"file": own | {"horizon_days": 730.0}}
    assert len(prepare._make_labels("file", data, config)[0].times) < len(first.times)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "temporl"}, "data.split='temporl' is not known: use temporal"),
        ({"cutoff": "2016"}, "data.cutoff: cut-off '2016' must be a date such as"),
        ({"source": "mimic4", "path": "x"}, "needs real dates, which mimic4 has not"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build.check_config(_config(**changes))


def test_a_cutoff_that_leaves_no_test_visit_is_refused(finished):
    whole = whole_of(read_run(finished).stores[0])
    end = whole.manifest["last_time"]
    splits = prepare._split((whole,), build.check_config(_config()))
    with pytest.raises(ValueError, match=r"leaves \d+ train and \d+ val patients before it, 0 test visits after: move"):
        prepare._split_at(end, splits, (StoreUntil(whole, end), whole))


@pytest.mark.skipif(not SYNTHEA.is_dir(), reason="the Synthea extracts are not there")
def test_pooled_extracts(tmp_path):
    config = lstm_small.get_config("debug")
    path = ",".join(str(SYNTHEA / name) for name in POOLED)
    settings = {"data.source": "synthea", "data.path": path, "data.split": "temporal", "data.cutoff": "0.7"}
    settings |= {"tasks": ("next_visit_class",), "fallback_tasks": (), "train.num_steps": 2, "train.eval_every": 1}
    settings |= {"eval.num_resamples": 10, "eval.baselines": ("prevalence",)}
    config.update_from_flattened_dict(settings)
    results = stages.run(config, tmp_path / "run", command="test")
    assert results["tasks"]["next_visit_class"]["kind"] == "multiclass"
    assert results["audit"]["passed"], results["audit"]
