"""The main job from the command line's side: recipes in their debug form, resuming, refusing bad settings."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs import lstm_large, lstm_medium, lstm_small
from ehrjax.data.tasks import TASKS
from ehrjax.train.checkpoint import restore_best_params
from experiments import build, prepare, stages
from tests.running import leaves_of, run_until_killed, start_run

RESULT_KEYS = {"model", "data", "tasks", "train"}
DATA_KEYS = {
    *("num_patients", "num_events", "num_visits", "vocab_size", "rows_read", "rows_kept", "rows_quarantined"),
    *("seconds", "events_per_second"),
}
TASK_KEYS = {"kind", "num_train", "num_test", "prevalence", "test", "baselines", "oracle"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of one undisturbed debug run, as a user would start it."""
    workdir = tmp_path_factory.mktemp("run") / "lstm"
    done = start_run(workdir)
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


def test_results_keep_their_contract(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results) >= RESULT_KEYS
    assert set(results["data"]) >= DATA_KEYS
    assert results["data"]["rows_read"] == results["data"]["rows_kept"] + results["data"]["rows_quarantined"]
    task = next(row for row in results["tasks"].values() if row["kind"])
    assert set(task) >= TASK_KEYS
    assert set(task["test"]["auroc"]) >= {"value", "low", "high"}
    most_drawn = TASKS["diabetes_onset"].row_limit * results["data"]["num_patients"]
    assert task["num_train"] > most_drawn, "training takes every index visit, not the drawn ones"
    for name in ("config.json", "environment.json", "data_report.json", "metrics.jsonl", "report.html"):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "plots").glob("*.png"))
    assert list((finished / "predictions").glob("*.parquet"))
    assert not list(finished.rglob("*.partial")), "half-written files are left"


def test_the_same_command_again_says_that_the_run_is_complete(finished):
    again = start_run(finished)
    assert again.returncode == 0
    assert "complete" in again.stdout
    assert "auroc" in again.stdout


def test_another_config_in_the_same_workdir_is_refused(finished):
    other = start_run(finished, "--config.train.num_steps=21")
    assert other.returncode != 0
    assert "train.num_steps: 20 there, 21 now" in other.stderr
    assert "Traceback" not in other.stderr


def test_killed_in_the_build_and_in_training_ends_bit_for_bit_alike(finished, tmp_path):
    workdir = tmp_path / "lstm"
    run_until_killed(workdir, workdir / "data", 0.5)
    run_until_killed(workdir, workdir / "checkpoints", 1.0)
    last = start_run(workdir)
    assert last.returncode == 0, last.stdout + last.stderr
    task = next((finished / "checkpoints").iterdir()).name
    expected, got = (restore_best_params(folder / "checkpoints" / task) for folder in (finished, workdir))
    expected_leaves, got_leaves = (leaves_of(tree) for tree in (expected, got))
    assert expected_leaves.keys() == got_leaves.keys()
    for name, value in expected_leaves.items():
        np.testing.assert_array_equal(value, got_leaves[name], err_msg=name)
    figures = [json.loads((folder / "results.json").read_text())["tasks"] for folder in (finished, workdir)]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("recipe", [lstm_medium, lstm_large], ids=lambda recipe: recipe.__name__)
def test_every_recipe_runs_in_its_debug_form(recipe, tmp_path):
    config = recipe.get_config("debug")
    config.data.num_patients = 120
    config.train.num_steps = 4
    config.train.eval_every = 2
    config.eval.num_resamples = 20
    results = stages.run(config, tmp_path / "run", command="test")
    assert any(row["kind"] for row in results["tasks"].values())


def test_small_keeps_the_published_sizes():
    sizes = [(c.model.embed_dim, c.model.hidden_dim, c.model.num_layers) for c in _full_configs()]
    assert sizes == [(128, 256, 1), (256, 512, 2), (512, 1024, 3)]


def _full_configs():
    return [recipe.get_config() for recipe in (lstm_small, lstm_medium, lstm_large)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config.train.num_stps=4", 'Did you mean "num_steps"'),
        ("--config.trian.num_steps=4", 'no such key: trian. Did you mean "train"'),
        ("--config.nowhere.key=4", 'no such key: "nowhere"'),
        ("--config.train.num_steps=many", "num_steps"),
        ("--config.data.source=synthea", "data.path"),
        ("--config.data.source=sinthea", "synthea"),
        ("--config.tasks=('diabetis_onset',)", "diabetes_onset"),
        ("--config.train.num_seeds=0", "num_seeds"),
        ("--config.train.survival=weibull", "survival"),
        ("stray", "unexpected argument"),
    ],
)
def test_a_wrong_option_is_told_in_words(option, message, tmp_path):
    done = start_run(tmp_path / "run", option)
    assert done.returncode not in (0, None)
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_key_of_a_recipe_file_is_refused_with_the_nearest():
    config = lstm_small.get_config()
    config.train.num_stps = 3
    with pytest.raises(ValueError, match=r"'train.num_stps'.*'train.num_steps'"):
        build.check_config(config)


def test_a_workdir_that_cannot_be_written_is_told_in_words(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    done = start_run(blocker / "run")
    assert done.returncode != 0
    assert str(blocker) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("count", "limit", "expected"), [(0, 3, []), (3, 3, [0, 1, 2]), (9, 3, [0, 4, 8])])
def test_an_even_share_of_rows(count, limit, expected):
    assert prepare.even_share(np.arange(count), limit).tolist() == expected


def test_each_split_of_a_task_holds_its_own_patients_only(finished):
    config = build.check_config(lstm_small.get_config("debug"))
    data = prepare.prepare_data(config, finished)
    parts, reason, _ = prepare.prepare_task("diabetes_onset", data, config, finished)
    assert parts is not None, reason
    assert parts["train"].level == "visit"
    for split, part in parts.items():
        assert np.isin(part.sequences.subject_ids, data.splits[split]).all()
