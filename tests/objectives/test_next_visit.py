"""Next visit: the loss against dense tables of zeros and ones, patient by patient, and base rates at the start."""

import jax
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ehrjax.data.token_batching import TokenBatches
from ehrjax.models.pretraining import Pretraining
from ehrjax.objectives.next_visit import (
    make_next_visit_objective,
    make_pooled_next_visit_objective,
    next_visit_scores,
    prior_bias,
    with_prior_bias,
)
from tests.encoders import assert_close, first_visits, fit, loss_and_grads, make_encoder
from tests.sequences import VOCAB_SIZE, make_sequences, random_params
from tests.tokens import make_token_batch, pad_token_batch

LENGTHS = [1, 3, 2, 5, 1, 4]
BATCH = make_token_batch(LENGTHS, is_fresh=True)
OBJECTIVES = {"every": make_next_visit_objective, "pooled": make_pooled_next_visit_objective}


def make(name="bag", **options):
    model = Pretraining(make_encoder(name, **options), VOCAB_SIZE, heads=("next_visit",))
    return model, random_params(model, BATCH)["params"]


def code_sets(batch):
    """Tables [B V G] of which codes each visit holds."""
    held = np.zeros((*batch.visit_mask.shape, VOCAB_SIZE), bool)
    for row, t in np.argwhere(batch.code_visits >= 0):
        held[row, batch.code_visits[row, t], batch.tokens[row, t]] = True
    return held


def is_edge(batch, step):
    """Whether the visit before (-1) or after (1) belongs to another sequence, or is none."""
    neighbour = np.roll(batch.visit_segments, -step, axis=1)
    neighbour[:, -1 if step == 1 else 0] = 0
    return batch.visit_mask & (neighbour != batch.visit_segments)


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("lengths", [[1, 1], [2, 3]])
def test_nothing_to_predict_gives_zero_over_zero_and_finite_gradients(kind, lengths):
    batch = make_token_batch(lengths, is_fresh=True)
    if lengths != [1, 1]:
        batch = batch._replace(next_visits=jax.tree.map(np.zeros_like, batch.next_visits))
    model, params = make()
    output, grads = loss_and_grads(OBJECTIVES[kind](model), params, batch)
    assert output.loss_sum == output.weight == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_batches_without_targets_are_refused(kind):
    model, params = make()
    with pytest.raises(ValueError, match="no `next_visits`: build the token batches with is_fresh"):
        OBJECTIVES[kind](model)(params, BATCH._replace(next_visits=None), None, False)


def test_loss_is_log_loss_of_every_code_in_every_next_visit():
    model, params = make()
    output = loss_and_grads(make_next_visit_objective(model), params, BATCH)[0]
    scores = np.asarray(jax.jit(next_visit_scores(model))(params, BATCH))
    held, first = code_sets(BATCH), is_edge(BATCH, -1)
    loss, given, weight = 0.0, 0.0, 0
    for row, visit in np.argwhere(BATCH.visit_mask & ~first):
        truth, score = held[row, visit, 5:], scores[row, visit - 1, 5:]
        loss += log_loss(truth, score.astype(np.float64), normalize=False, labels=[False, True])
        given, weight = given + score[truth].sum(), weight + truth.sum()
    assert weight == output.weight > 10
    np.testing.assert_allclose(output.loss_sum, loss, rtol=1e-5)
    np.testing.assert_allclose(output.metrics["next_visit_probability"][0], given, rtol=1e-5)
    assert (scores[..., :5] == 0).all()


def test_pooled_loss_is_log_loss_of_the_last_visit_of_those_who_have_two():
    model, params = make(pooling="mean")
    output = loss_and_grads(make_pooled_next_visit_objective(model), params, BATCH)[0]
    scores = np.asarray(jax.jit(next_visit_scores(model, pooled=True))(params, BATCH))
    held, first, last = code_sets(BATCH), is_edge(BATCH, -1), is_edge(BATCH, 1)
    loss, weight = 0.0, 0
    for row, visit in np.argwhere(last & ~first):
        truth, score = held[row, visit, 5:], scores[row, BATCH.visit_segments[row, visit] - 1, 5:]
        loss += log_loss(truth, score.astype(np.float64), normalize=False, labels=[False, True])
        weight += truth.sum()
    assert weight == output.weight > 3
    np.testing.assert_allclose(output.loss_sum, loss, rtol=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_only_fresh_visits_are_predicted(kind):
    model, params = make()
    objective = OBJECTIVES[kind](model)
    whole = loss_and_grads(objective, params, BATCH)[0]
    draws = np.random.default_rng(1).random(BATCH.visit_mask.shape) < 0.5
    halves = []
    for chosen in (draws, ~draws):
        in_chosen = np.take_along_axis(chosen, np.maximum(BATCH.code_visits, 0), axis=1)
        parts = BATCH.next_visits.codes & in_chosen, BATCH.next_visits.visits & chosen
        halves.append(loss_and_grads(objective, params, BATCH._replace(next_visits=type(BATCH.next_visits)(*parts)))[0])
    assert 0 < halves[0].weight < whole.weight
    assert_close(jax.tree.map(np.add, *halves), whole)


@pytest.mark.parametrize(
    ("name", "kind"), [("bag", "pooled"), ("behrt", "every"), ("lstm", "every"), ("lstm", "pooled")]
)
def test_packed_rows_give_the_loss_and_gradient_of_single_patients(name, kind):
    sequences = make_sequences(LENGTHS)
    model, params = make(name)
    objective, parts = OBJECTIVES[kind](model), []
    for example in range(len(LENGTHS)):
        own = first_visits(sequences, np.where(np.arange(len(LENGTHS)) == example, LENGTHS, 0))
        fresh = np.ones(len(own.ages), bool)
        batch = TokenBatches(own, row_tokens=20, batch_size=1, is_fresh=fresh).batch_at(0)
        # One shape for all, so that one compilation serves.
        parts.append(loss_and_grads(objective, params, pad_token_batch(batch, visits=5 - LENGTHS[example])))
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert len(BATCH.tokens) < len(LENGTHS)
    assert_close(loss_and_grads(objective, params, BATCH), total)


@pytest.mark.parametrize("name", ["behrt", "lstm"])
def test_gradients_reach_every_part_of_the_encoder(name):
    model, params = make(name)
    grads = loss_and_grads(make_next_visit_objective(model), params, BATCH)[1]
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads))


def test_prior_bias_is_the_log_odds_and_makes_the_untrained_head_give_base_rates():
    held = code_sets(BATCH)[BATCH.visit_mask & ~is_edge(BATCH, -1)]
    bias = prior_bias(held.sum(0), len(held))
    assert bias.shape == (VOCAB_SIZE,) and (bias[:5] == 0).all()
    expected = (held.sum(0) + 0.5) / (len(held) + 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias[5:])), expected[5:], rtol=1e-5)
    model, params = make()
    blank = {**params, "next_visit_head": jax.tree.map(np.zeros_like, params["next_visit_head"])}
    scores = next_visit_scores(model)(with_prior_bias(blank, bias), BATCH)
    np.testing.assert_allclose(scores[0, 0, 5:], expected[5:], rtol=1e-5)
    assert (blank["next_visit_head"]["bias"] == 0).all()
    objective = make_next_visit_objective(model)
    losses = [loss_and_grads(objective, p, BATCH)[0].loss_sum for p in (blank, with_prior_bias(blank, bias))]
    assert losses[1] < losses[0]


def test_counts_of_occurrences_and_vectors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a code counted in 9 of 8 visits"):
        prior_bias(np.array([0, 0, 0, 0, 0, 9]), 8)
    with pytest.raises(ValueError, match=r"a bias of shape \(3,\) does not fit"):
        with_prior_bias(make()[1], np.zeros(3))


def test_lstm_learns_the_next_visits_of_eight_patients():
    batch = make_token_batch([1, 2, 3, 4] * 2, is_fresh=True, seed=2)
    model = Pretraining(make_encoder("lstm", hidden_dim=16, dropout_rate=0.0), VOCAB_SIZE, heads=("next_visit",))
    objective = make_next_visit_objective(model)
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    # The first visits of two patients may look alike; ages and gaps are not read.
    params, after = fit(objective, params, batch, steps=150)
    assert after.loss_sum / after.weight < 0.3
    assert after.metrics["next_visit_probability"][0] / after.weight > 0.85
