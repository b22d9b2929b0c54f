"""Several seeds of a task: training through the main job's own path, and the figures of their spread."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from configs import behrt_small, lstm_small
from ehrjax.data.labels import Labels
from ehrjax.evaluate.predict import predict
from ehrjax.evaluate.seeds import ensemble_scores, risk_spread, seed_figures
from ehrjax.metrics import classification
from ehrjax.metrics.summary import Horizons, evaluate
from ehrjax.train.lora import hash_params, load_adapters
from experiments import build
from experiments.finetune import _initial_params, member_params, train_task
from experiments.loaders import make_loaders
from experiments.prepare import SplitData
from experiments.targets import make_target
from tests.sequences import VOCAB_SIZE, make_sequences


class Vocab:
    """All that training asks of a vocabulary."""

    content_hash = "v0"

    def __len__(self):
        return VOCAB_SIZE


DATA = SimpleNamespace(vocab=Vocab())


def make_part(num_rows: int, seed: int) -> SplitData:
    sequences = make_sequences(np.random.default_rng(seed).integers(1, 6, num_rows), seed=seed)
    ids, zeros = sequences.subject_ids, np.zeros(num_rows, np.int64)
    labels = Labels("y", "binary", ("y",), ids, zeros, sequences.labels, sequences.label_mask, zeros, {})
    return SplitData(labels, sequences)


PARTS = {"train": make_part(24, 0), "val": make_part(12, 1), "test": make_part(12, 2)}


def make_config(recipe, **train):
    config = recipe.get_config("debug")
    config.train.update(num_steps=6, eval_every=2, log_every=2, patience=3, batch_size=8, seed=3)
    config = build.check_config(config)
    config.train.update(**train)
    return config


def train(config, workdir, encoder=None):
    target = make_target(None, PARTS["train"].sequences, PARTS["train"].labels, config)
    return train_task("y", PARTS, target, DATA, config, workdir, encoder=encoder, command="the same again")


def assert_close(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, two)


def test_the_first_member_is_the_single_run_and_the_others_differ(tmp_path):
    config = make_config(lstm_small, num_seeds=1)
    alone, model, loaders = train(config, tmp_path / "alone")
    assert [id(params) for params in member_params(alone, config)] == [id(alone.params)]
    config.train.num_seeds = 2
    trained, _, _ = train(config, tmp_path / "members")
    first, second = member_params(trained, config)
    assert_close(first, alone.params)
    assert build.count_params(first) == build.count_params(alone.params)
    assert int(trained.state.opt_state.best_step[0]) == alone.best_step
    score = partial(predict, build.apply_fn(model), batches=list(loaders["test"].eval_batches()), kind="binary")
    scores = np.stack([score(params) for params in (first, second)])
    assert scores.shape == (2, 12, 1)
    np.testing.assert_allclose(scores[0], score(alone.params), rtol=1e-4)
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def pretrained_encoder(config):
    model = build.make_model(config, vocab_size=VOCAB_SIZE, num_outputs=1)
    batch = build_batches(config).batch_at(0)
    params = jax.jit(model.init)(jax.random.key(99), batch)["params"]
    return {name: part for name, part in params.items() if name != "head"}


def build_batches(config):
    return make_loaders(PARTS, config)[0]["train"]


def test_members_start_from_one_encoder_with_heads_of_their_own():
    config = make_config(behrt_small)
    encoder = pretrained_encoder(config)
    model = build.make_model(config, vocab_size=VOCAB_SIZE, num_outputs=1)
    keys = list(jax.random.split(jax.random.key(0)))
    starts = _initial_params(model, keys, build_batches(config), encoder, DATA, config)
    for start in starts:
        jax.tree.map(np.testing.assert_array_equal, {name: start[name] for name in encoder}, encoder)
    assert not np.allclose(starts[0]["head"]["kernel"], starts[1]["head"]["kernel"])


def test_adapters_of_members_on_one_encoder(tmp_path):
    config = make_config(behrt_small, num_seeds=1, lora_rank=2)
    encoder = pretrained_encoder(config)
    alone, _, _ = train(config, tmp_path / "alone", encoder)
    config.train.num_seeds = 2
    trained, _, _ = train(config, tmp_path / "members", encoder)
    first, second = member_params(trained, config)
    assert_close(first, alone.params)
    embedding = encoder["embedding"]["embedding"]
    for params in (first, second):
        np.testing.assert_array_equal(params["embedding"]["embedding"], embedding)
    assert not np.allclose(first["head"]["kernel"], second["head"]["kernel"])
    paths = sorted((tmp_path / "members" / "adapters").iterdir())
    assert [path.name for path in paths] == ["y_0.npz", "y_1.npz"]
    metas = [load_adapters(path)[1] for path in (*paths, tmp_path / "alone" / "adapters" / "y.npz")]
    assert metas[0]["base_hash"] == metas[2]["base_hash"] != metas[1]["base_hash"]
    assert len(metas[0]["base_hash"]) == len(hash_params(encoder))


def made_up(num_members=3, num_rows=40, num_outputs=1, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (num_rows, num_outputs)).astype(float)
    scores = rng.uniform(0.05, 0.95, (num_members, num_rows, num_outputs))
    return labels, scores, np.ones(labels.shape, bool), np.arange(num_rows)


def test_one_member_has_no_spread():
    labels, scores, mask, subjects = made_up(num_members=1)
    with pytest.raises(ValueError, match=r"\(1, 40, 1\): a spread needs two members"):
        seed_figures("binary", labels, scores, mask, subjects)


def test_members_that_agree_do_not_move_and_the_ensemble_is_their_mean():
    labels, scores, mask, subjects = made_up()
    same = np.repeat(scores[:1], 3, axis=0)
    found = seed_figures("binary", labels, same, mask, subjects)
    spread = found["risk_spread"]
    assert found["num_seeds"] == 3
    assert spread["median_range"] == spread["p95_range"] == spread["flip_share"] == 0.0
    assert spread["median_std"] == pytest.approx(0.0, abs=1e-12) and spread["p95_std"] == pytest.approx(0.0, abs=1e-12)
    assert spread["rank_correlation_mean"] == pytest.approx(1.0) and spread["rank_correlation_min"] == pytest.approx(1)
    assert found["members"]["auroc"]["std"] == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(ensemble_scores(scores), (scores[0] + scores[1] + scores[2]) / 3)


def test_figures_against_plain_numpy_and_masked_rows_do_not_count():
    labels, scores, mask, subjects = made_up()
    mask[5:9] = False
    scores[:, 5:9] = 1.0 - scores[:, 5:9].round()  # would flip and spread
    found = seed_figures("binary", labels, scores, mask, subjects, threshold=0.3)
    risks, kept = np.delete(scores[..., 0], range(5, 9), axis=1), np.delete(labels[:, 0], range(5, 9))
    values = [classification.auroc(kept, each) for each in risks]
    expected = {"mean": np.mean(values), "std": np.std(values, ddof=1), "min": min(values), "max": max(values)}
    assert found["members"]["auroc"] == pytest.approx(expected)
    spread = found["risk_spread"]
    assert spread["median_std"] == pytest.approx(np.median(risks.std(axis=0, ddof=1)))
    assert spread["p95_range"] == pytest.approx(np.quantile(risks.max(0) - risks.min(0), 0.95))
    decided = (risks >= 0.3).sum(axis=0)
    assert spread["flip_share"] == pytest.approx(np.mean((decided > 0) & (decided < 3)))
    pairs = [spearmanr(risks[a], risks[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    assert spread["rank_correlation_mean"] == pytest.approx(np.mean(pairs))
    assert spread["rank_correlation_min"] == pytest.approx(min(pairs))


def test_the_ensembles_own_figures_have_intervals():
    labels, scores, mask, subjects = made_up()
    row = evaluate("binary", labels, ensemble_scores(scores), mask, subjects, num_resamples=20)["auroc"]
    assert row["low"] <= row["value"] <= row["high"]


def test_no_known_row_one_class_and_constant_scores():
    labels, scores, mask, subjects = made_up()
    nothing = seed_figures("binary", labels, scores, np.zeros_like(mask), subjects)
    assert set(nothing["risk_spread"].values()) == {None}
    assert nothing["members"]["auroc"] == {"mean": None, "std": None, "min": None, "max": None, "members_undefined": 3}
    one_class = seed_figures("binary", np.zeros_like(labels), scores, mask, subjects)
    assert one_class["members"]["auroc"]["mean"] is None and one_class["members"]["brier"]["mean"] > 0
    assert one_class["risk_spread"]["median_std"] > 0
    scores[0] = 0.5
    constant = seed_figures("binary", labels, scores, mask, subjects)["risk_spread"]
    expected = spearmanr(scores[1, :, 0], scores[2, :, 0]).statistic
    assert constant["rank_correlation_mean"] == constant["rank_correlation_min"] == pytest.approx(expected)


def test_a_metric_that_one_member_lacks_is_said():
    labels, scores, mask, subjects = made_up()
    scores[1] = 0.1
    row = seed_figures("binary", labels, scores, mask, subjects, threshold=0.2)["members"]["precision"]
    assert row["members_undefined"] == 1 and row["mean"] is not None and row["std"] is not None


def test_other_kinds():
    labels, scores, mask, subjects = made_up(num_outputs=2)
    mask[:10, 1] = False
    scores[:, :10, 1] = [[0.0], [1.0], [0.0]]
    many = seed_figures("multilabel", labels, scores, mask, subjects, threshold=0.0)["risk_spread"]
    assert many["flip_share"] == 0.0 and many["p95_range"] < 0.9
    # Member 1 ranks the first output the other way round, and the second alike.
    order = np.linspace(0.1, 0.4, 40)
    ranked = np.stack([np.stack([order, order], 1), np.stack([0.5 - order, order], 1)])
    assert risk_spread(ranked)["rank_correlation_mean"] == pytest.approx(0.0)
    assert risk_spread(ranked)["rank_correlation_min"] == pytest.approx(-1.0)
    assert risk_spread(ranked)["flip_share"] is None

    classes = np.array([[0], [1], [2], [1]])
    one = np.array([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]])
    other = one.copy()
    other[0] = [0.3, 0.4, 0.3]
    table = seed_figures("multiclass", classes, np.stack([one, other]), np.ones((4, 1), bool), np.arange(4))
    assert table["risk_spread"]["flip_share"] == 0.25 and table["members"]["accuracy"]["min"] == 0.75
    assert table["risk_spread"]["p95_range"] == pytest.approx(np.quantile([0.2, 0, 0, 0], 0.95))

    values = seed_figures("regression", labels[:, :1], scores[..., :1], mask[:, :1], subjects)
    assert values["risk_spread"]["flip_share"] is None and values["members"]["mae"]["std"] > 0


def test_survival_by_incidence_at_horizons():
    rng = np.random.default_rng(0)
    labels = np.stack([rng.uniform(10, 400, 40), rng.integers(0, 2, 40)], axis=1)
    scores = np.sort(rng.uniform(0, 1, (3, 40, 2)), axis=2)
    horizons = Horizons(("death",), (90.0, 365.0))
    found = seed_figures("survival", labels, scores, np.ones((40, 2), bool), np.arange(40), horizons=horizons)
    assert all(row["mean"] is None or row["min"] <= row["mean"] <= row["max"] for row in found["members"].values())
    assert any(row["mean"] is not None for row in found["members"].values())
    assert found["risk_spread"]["flip_share"] is None and found["risk_spread"]["median_std"] > 0
