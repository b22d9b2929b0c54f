"""What a task asks of a model: logits, loss, scores; survival with each loss, and Cox's baseline from validation."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ehrjax.data.batching import VisitBatches
from ehrjax.data.labels import Labels
from ehrjax.data.tasks import get_task
from ehrjax.evaluate.predict import predict
from ehrjax.metrics.summary import evaluate
from ehrjax.models.visit_lstm import VisitLstm
from ehrjax.types import VisitSequences
from experiments import build
from experiments.stages import predict_members
from experiments.targets import Target, make_target
from tests.sequences import VOCAB_SIZE, make_sequences

RNG = np.random.default_rng(0)
CAUSES = ("ckd_hf", "death")


def survival_labels(num_rows, name="time_to_ckd_hf"):
    risk = RNG.normal(size=num_rows)
    days = RNG.exponential(800 * np.exp(-risk)).clip(1, 1095).astype(np.float32)
    events = np.where(days < 1095, RNG.integers(0, 3, num_rows), 0)
    values = np.stack([days, events], axis=1).astype(np.float32)
    ids, zeros = np.arange(num_rows), np.zeros(num_rows, np.int64)
    return Labels(name, "survival", CAUSES, ids, zeros, values, np.ones(values.shape, bool), zeros, {}), risk


def sequences_with(labels):
    """Only what the time grid is fitted on."""
    return VisitSequences(*[None] * 7, labels=labels.values, label_mask=labels.mask)


def target_of(kind, labels):
    config = ConfigDict({"train": {"survival": kind, "num_intervals": 6}})
    return make_target(get_task("time_to_ckd_hf"), sequences_with(labels), labels, config)


@pytest.mark.parametrize("kind", ["discrete", "piecewise", "cox"])
def test_survival_scores_are_rising_incidences_that_rank_by_risk(kind):
    labels, risk = survival_labels(400)
    target = target_of(kind, labels)
    logits = np.repeat(risk[:, None], target.num_outputs, axis=1).astype(np.float32)
    loss = target.loss(logits, labels.values, labels.mask)
    assert np.isfinite(loss.loss_sum) and loss.weight > 0
    linked = np.asarray(target.link(logits))
    assert linked.shape == (400, len(CAUSES) * len(target.linked_horizons.days))
    scores = target.finish({"val": linked, "test": linked[:5]}, labels)
    assert scores["test"].shape == (5, 6) and target.horizons.days == (365.0, 730.0, 1095.0)
    first, second = scores["val"][:, target.horizons.columns(1)], scores["val"][:, target.horizons.columns(2)]
    assert (np.diff(first, axis=1) >= 0).all() and (first >= 0).all() and (first[:, -1] + second[:, -1] <= 1.001).all()
    table = evaluate(
        "survival", labels.values, scores["val"], labels.mask, labels.subject_ids, num_resamples=5,
        horizons=target.horizons,
    )  # fmt: skip
    assert table["c_index"]["value"] > 0.6


def test_the_time_grid_reads_train_rows_that_count():
    labels, _ = survival_labels(300)
    mask = labels.mask.copy()
    mask[100:] = False
    known = target_of("discrete", labels._replace(mask=mask))
    alone = target_of("discrete", labels.take(np.arange(100)))
    assert known.grid == alone.grid != target_of("discrete", labels).grid


def test_other_kinds_keep_their_outputs_and_links():
    labels = survival_labels(4)[0]._replace(
        kind="binary", names=("x",), values=np.ones((4, 1)), mask=np.ones((4, 1), bool)
    )
    target = make_target(None, sequences_with(labels), labels, ConfigDict())
    assert (target.kind, target.num_outputs, target.linked_horizons) == ("binary", 1, None)
    np.testing.assert_allclose(target.link(np.zeros((2, 1))), 0.5)
    scores = {"val": np.ones(3)}
    assert target.finish(scores, labels) is scores


@pytest.mark.parametrize("kind", ["discrete", "binary", "multiclass", "regression"])
def test_a_fresh_head_says_the_base_rates(kind):
    labels, _ = survival_labels(2000)
    if kind == "discrete":
        target = target_of(kind, labels)
        params = target.at_base_rates({"head": {"kernel": np.zeros((2, 1)), "bias": np.zeros(target.num_outputs)}})
        scores = np.asarray(target.link(params["head"]["bias"][None]))
        table = evaluate(
            "survival", labels.values, np.repeat(scores, 2000, axis=0), labels.mask, labels.subject_ids,
            num_resamples=2, horizons=target.horizons,
        )  # fmt: skip
        assert 0.8 < table["observed_to_expected_1095d"]["value"] < 1.2
        assert 0.8 < table["observed_to_expected_1095d_death"]["value"] < 1.2
        return
    values = RNG.integers(0, 3, (500, 1)) if kind == "multiclass" else (RNG.random((500, 1)) < 0.1).astype(float)
    names = ("a", "b", "c") if kind == "multiclass" else ("a",)
    own = labels.take(np.arange(500))._replace(kind=kind, names=names, values=values, mask=np.ones((500, 1), bool))
    target = make_target(None, sequences_with(own), own, ConfigDict())
    scores = np.asarray(target.link(np.asarray(target.base_logits, np.float32)[None]))[0]
    expected = np.bincount(values[:, 0]) / 500 if kind == "multiclass" else values.mean(0)
    np.testing.assert_allclose(scores, expected, atol=0.005)


def test_predictions_go_through_the_link_once():
    sequences = make_sequences([2, 3, 1], num_labels=1)
    batches = VisitBatches(sequences, batch_size=3)
    model = VisitLstm(VOCAB_SIZE, embed_dim=4, hidden_dim=4, num_outputs=1)
    params = [model.init(jax.random.key(seed), next(iter(batches.eval_batches())))["params"] for seed in range(2)]
    labels = survival_labels(3)[0]
    scores = predict_members(model, Target("binary", 1), params, {"val": batches, "test": batches}, labels)
    assert scores["val"].shape == (2, 3, 1)
    for member in range(2):
        expected = predict(build.apply_fn(model), params[member], batches.eval_batches(), kind="binary")
        np.testing.assert_allclose(scores["test"][member], expected, rtol=1e-6)
