"""Pre-training from the command line's side: every recipe, kill and resume, LSTM, adapters, code vectors, refusals."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import (
    behrt_large,
    behrt_medium,
    behrt_small,
    hierarchical_large,
    hierarchical_medium,
    hierarchical_small,
    lstm_small,
    med2vec,
)
from ehrjax.evaluate.code_vectors import read_code_vectors
from ehrjax.train.checkpoint import restore_best_params
from experiments import build, prepare, pretrain, stages
from tests.running import leaves_of, run_until_killed, start_run

OPTIONS = (
    *("--config.data.num_patients=150", "--config.data.max_tokens=48", "--config.eval.num_resamples=20"),
    *("--config.pretrain.num_steps=12", "--config.pretrain.eval_every=3", "--config.pretrain.log_every=3"),
    *("--config.train.num_steps=4", "--config.train.eval_every=2", "--config.eval.baselines=('prevalence',)"),
)
RECIPES = {
    recipe.__name__.removeprefix("configs."): recipe
    for recipe in (hierarchical_small, med2vec)  # behrt_small: `finished`; larger sizes have the same debug form
}
MASKED = {"mlm_loss", "mlm_accuracy", "mlm_top5_accuracy", "mlm_top10_accuracy"}
NEXT_VISIT = {"next_visit_f1", "next_visit_recall_at_10"}


def tiny(recipe, **changes) -> ConfigDict:
    """The debug form with fewer patients and steps still; `changes` are dotted keys with `__` for the dot."""
    config = recipe.get_config("debug")
    small = {"data.num_patients": 150, "data.max_tokens": 48, "eval.num_resamples": 20, "eval.baselines": ("logistic",)}
    small |= {"pretrain.num_steps": 4, "pretrain.eval_every": 2, "train.num_steps": 4, "train.eval_every": 2}
    for key, value in (small | {name.replace("__", "."): value for name, value in changes.items()}).items():
        config.update_from_flattened_dict({key: value})
    return config


def has_interval(figure) -> bool:
    return figure["low"] <= figure["value"] <= figure["high"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of one undisturbed run, as a user would start it."""
    workdir = tmp_path_factory.mktemp("run") / "behrt"
    done = start_run(workdir, *OPTIONS, recipe="behrt_small")
    assert done.returncode == 0, done.stdout + done.stderr
    return workdir


def test_results_keep_their_contract(finished):
    results = json.loads((finished / "results.json").read_text())
    for split in ("val", "test"):
        assert set(results["pretrain"][split]) >= MASKED | NEXT_VISIT
        assert all(has_interval(results["pretrain"][split][name]) for name in MASKED | NEXT_VISIT)
    baselines = results["pretrain"]["baselines"]
    for name in ("unigram", "same_type", "logistic"):
        assert set(baselines[name]) >= MASKED, name
    assert len([row for row in baselines.values() if set(row) >= NEXT_VISIT]) == 3
    assert set(results["embeddings"]) >= {"silhouette", "davies_bouldin", "knn_precision_at_10"}
    assert results["train"]["steps"] == 12 + 4
    assert (finished / "plots" / "pretrain.png").stat().st_size > 0
    assert "pretrain" in (finished / "report.html").read_text()
    assert not list(finished.rglob("*.partial")), "half-written files are left"


def test_code_vectors_are_the_embedding_by_name(finished):
    names, vectors = read_code_vectors(finished / "code_vectors.parquet")
    table = restore_best_params(finished / "checkpoints" / "pretrain")["encoder"]["embedding"]["embedding"]
    data = prepare.prepare_data(build.check_config(_config_of(finished)), finished)
    assert tuple(names) == data.vocab.tokens[5:]
    np.testing.assert_array_equal(vectors, np.asarray(table)[5:])


def test_pretraining_reads_train_and_stops_by_val_patients_only(finished):
    config = build.check_config(_config_of(finished))
    data = prepare.prepare_data(config, finished)
    for split, ids in data.splits.items():
        records = pretrain._read_records(split, data, config)
        assert np.isin(records.sequences.subject_ids, ids).all() and len(records.sequences.subject_ids) == len(ids)
        assert np.isin(records.windows.sequences.subject_ids, ids).all()


def _config_of(workdir: Path) -> ConfigDict:
    config = behrt_small.get_config("debug")
    config.update_from_flattened_dict(
        {k: v for k, v in json.loads((workdir / "config.json").read_text()).items() if "data." in k}
    )
    return config


def test_killed_in_pretraining_ends_bit_for_bit_alike(finished, tmp_path):
    """Rows are packed and codes masked afresh each step: a resumed run has to see the same ones."""
    workdir = tmp_path / "behrt"
    first = workdir / "checkpoints" / "pretrain" / "3"
    run_until_killed(workdir, first, 0.0, *OPTIONS, recipe="behrt_small")
    assert not (workdir / "checkpoints" / "pretrain" / "complete.json").exists(), "killed too late"
    last = start_run(workdir, *OPTIONS, recipe="behrt_small")
    assert last.returncode == 0, last.stdout + last.stderr
    assert "resuming at step" in last.stdout + last.stderr
    for part in ("pretrain", "diabetes_onset"):
        expected, got = (
            leaves_of(restore_best_params(folder / "checkpoints" / part)) for folder in (finished, workdir)
        )
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(value, got[name], err_msg=f"{part} {name}")
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (finished, workdir))
    for name in ("model", "pretrain", "embeddings", "tasks"):
        assert one[name] == other[name], name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_in_its_debug_form(name, tmp_path):
    results = stages.run(tiny(RECIPES[name]), tmp_path / "run", command="test")
    assert any(row["kind"] for row in results["tasks"].values())
    objectives = RECIPES[name].get_config("debug").pretrain.objectives
    expected = (MASKED if objectives.mlm else set()) | (NEXT_VISIT if objectives.next_visit else set())
    assert set(results["pretrain"]["test"]) >= expected and bool(results["pretrain"]["baselines"]) == bool(expected)
    assert set(results["embeddings"]) >= {"silhouette", "davies_bouldin", "knn_precision_at_10"}
    assert (tmp_path / "run" / "code_vectors.parquet").exists()


@pytest.mark.parametrize(
    ("recipe", "small"),
    [
        *((recipe, behrt_small) for recipe in (behrt_medium, behrt_large)),
        *((recipe, hierarchical_small) for recipe in (hierarchical_medium, hierarchical_large)),
    ],
)
def test_larger_sizes_have_the_debug_form_of_the_small_one(recipe, small):
    debug, expected = recipe.get_config("debug"), small.get_config("debug")
    assert debug.name == recipe.__name__.removeprefix("configs.")
    expected.name = debug.name
    assert debug == expected
    assert build.check_config(recipe.get_config()).model.hidden_dim > small.get_config().model.hidden_dim


def test_an_lstm_is_pretrained_by_next_visit(tmp_path):
    results = stages.run(tiny(lstm_small), tmp_path / "run", command="test")
    assert set(results["pretrain"]["test"]) >= NEXT_VISIT and not set(results["pretrain"]["test"]) & MASKED
    assert any(row["kind"] for row in results["tasks"].values())


def test_adapters_and_code_vectors_of_another_run(finished, tmp_path, capsys):
    """LoRA moves adapters and the head alone; pre-training starts from the other run's vectors."""
    config = tiny(behrt_small, train__lora_rank=2, pretrain__code_vectors=str(finished / "code_vectors.parquet"))
    stages.run(config, tmp_path / "run", command="test")
    printed = capsys.readouterr().out
    assert "codes by name (100.0 %), 0 by a parent" in printed and "LoRA: " in printed
    with np.load(tmp_path / "run" / "adapters" / "diabetes_onset.npz") as adapters:
        assert any(array.shape[-1:] == (2,) for array in adapters.values())
    whole = restore_best_params(tmp_path / "run" / "checkpoints" / "pretrain")
    trained = leaves_of(restore_best_params(tmp_path / "run" / "checkpoints" / "diabetes_onset"))
    assert 0 < sum(leaf.size for leaf in trained.values()) < sum(leaf.size for leaf in leaves_of(whole).values()) / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__lora_rank": 2, "pretrain__num_steps": 0}, "lora_rank adapts a pre-trained encoder: set pretrain"),
        ({"pretrain__code_vectors": "/no/such/file.parquet"}, "/no/such/file.parquet: no such file of code vectors"),
        ({"pretrain__objectives__skip_gram": 1.0}, "skip_gram is for med2vec: behrt has no context table"),
        ({"pretrain__objectives__mlm": 0.0, "pretrain__objectives__next_visit": 0.0}, "no weight above 0: set one of"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stages.run(tiny(behrt_small, **changes), tmp_path / "run", command="test")


def test_a_wrong_path_of_code_vectors_and_a_mistyped_key_without_a_traceback(tmp_path):
    for option, message in (
        ("--config.pretrain.code_vectors=missing.parquet", "missing.parquet: no such file of code vectors"),
        ("--config.model.num_head=4", 'no such key: num_head. Did you mean "num_heads"'),
    ):
        done = start_run(tmp_path / "run", *OPTIONS, option, recipe="behrt_small")
        assert done.returncode not in (0, None)
        assert message in done.stderr and "Traceback" not in done.stderr, done.stderr
        (tmp_path / "run" / "config.json").unlink(missing_ok=True)


def test_a_mistyped_key_of_a_recipe_is_refused_with_the_nearest():
    config = behrt_small.get_config()
    config.model.num_head = 4
    with pytest.raises(ValueError, match=r"'model.num_head' is not known. Did you mean 'model.num_heads'"):
        build.check_config(config)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_share_of_labels_that_cannot_be_is_refused(fraction):
    with pytest.raises(ValueError, match=f"label_fraction={fraction} must be above 0 and at most 1"):
        build.check_config(tiny(behrt_small, train__label_fraction=fraction))


def test_fewer_labels_are_a_part_of_more():
    config, subjects = tiny(behrt_small), np.arange(100, 300)
    chosen = []
    for fraction in (0.001, 0.01, 0.1, 0.5, 1.0):
        config.train.label_fraction = fraction
        chosen.append(prepare.labelled_subjects(subjects, config))
    assert [len(ids) for ids in chosen] == [1, 2, 20, 100, 200]
    for fewer, more in pairwise(chosen):
        assert np.isin(fewer, more).all()
    config.train.label_fraction, config.train.seed = 0.1, 1
    assert not np.array_equal(prepare.labelled_subjects(subjects, config), chosen[2])
