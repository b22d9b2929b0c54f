"""The main job on hospital stays: simulated ones, files of PhysioNet 2012, and what a recipe may not ask for."""

import json

import numpy as np
import pytest

from configs import behrt_small, physionet2012, vitals_lstm
from ehrjax.data import simulate_stays
from ehrjax.data.stay_windows import WindowScaler, collect, fit_scaler
from experiments import build, oracle, prepare, stages, stays
from tests.stays import make_stays

TASK = simulate_stays.TASK


def small(recipe, **data):
    """A debug form that is smaller still."""
    config = recipe.get_config("debug")
    config.data.update(num_patients=120, **data)
    config.train.update(num_steps=4, eval_every=2, batch_size=32)
    config.eval.num_resamples = 20
    return config


def checks_of(workdir):
    return {check["name"]: check["passed"] for check in json.loads((workdir / "audit.json").read_text())["checks"]}


def write_set(folder, numbers, seed=0):
    """A set of stays as the challenge writes them; in the dying the heart is faster."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    outcomes = ["RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death"]
    for number in numbers:
        died = int(rng.random() < 0.3)
        rows = ["Time,Parameter,Value", f"00:00,RecordID,{number}", "00:00,Age,60", "00:00,Gender,1", "00:00,ICUType,2"]
        hours = np.sort(rng.integers(0, 48, rng.integers(0, 6)))
        rows += [f"{hour:02d}:10,HR,{rng.normal(80 + 30 * died, 10):.0f}" for hour in hours]
        (folder / f"{number}.txt").write_text("\n".join(rows) + "\n")
        outcomes.append(f"{number},-1,-1,10,{5 if died else -1},{died}")
    (folder.parent / f"Outcomes-{folder.name[-1]}.txt").write_text("\n".join(outcomes) + "\n")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Workdir and results of a run on simulated stays, vital signs only."""
    workdir = tmp_path_factory.mktemp("run") / "vitals"
    return workdir, stages.run(small(vitals_lstm), workdir, command="test")


def test_simulated_stays_give_what_any_run_gives(finished):
    workdir, results = finished
    row = results["tasks"][TASK]
    assert row["kind"] == "binary" and row["num_train"] > 100
    assert {"auroc", "auprc", "brier", "event1"} <= set(row["test"])
    assert all(baseline["auroc"]["value"] is not None for baseline in row["baselines"].values())
    assert set(row["oracle"]) == {f"{form}{name}" for form in ("", "latent_") for name in oracle.METRICS["binary"]}
    assert results["train"]["tokens_per_second"] > 0 and results["model"]["name"] == "fusion_lstm"
    assert row["explanations"] == []
    for name in (f"predictions/{TASK}.parquet", f"stays/{TASK}/scaler.json", f"stays/{TASK}/measurements.json"):
        assert (workdir / name).stat().st_size > 0, name


def test_the_audit_finds_nothing_and_looks_at_windows(finished):
    checks = checks_of(finished[0])
    assert False not in checks.values()
    assert checks[f"index_time/inputs/{TASK}"] and checks[f"index_time/outputs/{TASK}"]


def test_the_scaler_is_that_of_train_rows_alone(finished):
    workdir, _ = finished
    config = build.check_config(small(vitals_lstm))
    data = prepare.prepare_data(config, workdir)
    parts, _, _ = prepare.prepare_task(TASK, data, config, workdir)
    settings = data.stays.settings
    saved = WindowScaler.load(workdir / "stays" / TASK, settings)
    alone = {
        split: fit_scaler(collect(data.stores[0], part.labels, settings), settings) for split, part in parts.items()
    }
    assert saved == alone["train"] != alone["test"]
    assert np.abs(parts["train"].sequences.values).max() <= 10
    for split, part in parts.items():
        assert np.isin(part.sequences.subject_ids, data.splits[split]).all()


def test_one_set_is_trained_on_and_another_tested(tmp_path):
    write_set(tmp_path / "own" / "set-a", range(1001, 1161))
    write_set(tmp_path / "other" / "set-b", range(2001, 2061), seed=1)
    config = small(physionet2012, path=str(tmp_path / "own"), test_path=str(tmp_path / "other"))
    config.train.num_seeds = 1  # so that the audit can read a checkpoint
    results = stages.run(config, tmp_path / "run", command="test")
    row_name = "in_hospital_death_48h"
    row = results["tasks"][row_name]
    assert row["num_test"] == 60 and row["num_train"] + row["num_val"] == 160
    assert row["test"]["event1"]["value"] is not None and row["oracle"] is None
    assert (tmp_path / "run" / "stays" / row_name / "summaries.npz").exists()
    checks = checks_of(tmp_path / "run")
    assert False not in checks.values() and checks["labels/in_hospital_death_48h"]


def test_the_oracle_is_of_what_the_model_reads():
    assert oracle.stay_forms(("vitals",)) == {"": "probability_vitals", "latent_": "probability_latent"}
    assert oracle.stay_forms(("notes",))[""] == "probability_notes"
    assert oracle.stay_forms(("vitals", "notes"))[""] == "probability_both"


def test_a_model_of_stays_is_not_pre_trained_on_codes():
    config = vitals_lstm.get_config("debug")
    config.pretrain.num_steps = 5
    with pytest.raises(ValueError, match=r"pretrain\.num_steps.* fusion_lstm reads stays"):
        build.check_config(config)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("stays", "variables", ("hart_rate",), "did you mean 'heart_rate'"),
        ("stays", "window_hours", -1.0, "window_hours=-1"),
        ("stays", "mapping", "nowhere.csv", "nowhere.csv: no such file"),
    ],
)
def test_wrong_settings_are_told_before_any_work(tmp_path, section, key, value, message):
    config = small(vitals_lstm)
    config[section][key] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stages.run(config, tmp_path / "run", command="test")
    assert not (tmp_path / "run" / "data").exists()


def test_a_source_without_a_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"'physionet2012' needs data\.path"):
        stages.run(small(physionet2012), tmp_path / "run", command="test")


def test_other_windows_are_no_continuation_of_a_checkpoint():
    windows = make_stays([2, 3])
    same, other = make_stays([2, 3]), make_stays([2, 3])
    other.notes[1, 0] += 1
    assert stays.inputs_meta(windows) == stays.inputs_meta(same) != stays.inputs_meta(other)
    assert stays.inputs_meta(None) == {}


def test_other_recipes_have_no_stays():
    config = build.check_config(behrt_small.get_config("debug"))
    assert not build.reads_stays(config) and build.reads_tokens(config)
    assert build.reads_stays(build.check_config(vitals_lstm.get_config())) and not build.reads_tokens(
        small(vitals_lstm)
    )
