"""Masked codes: the loss by hand, patient by patient, and a model that learns them by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.data.token_batching import TokenBatches
from ehrjax.models.pretraining import Pretraining
from ehrjax.objectives.mlm import make_mlm_objective, masked_lm_loss, top_k_hits
from tests.encoders import assert_close, first_visits, fit, loss_and_grads, make_encoder
from tests.sequences import VOCAB_SIZE, make_sequences, random_params
from tests.tokens import make_token_batch, pad_token_batch

RNG = np.random.default_rng(0)
LENGTHS = [1, 3, 2, 5, 4]


def make(batch, name="bag", **options):
    model = Pretraining(make_encoder(name, **options), VOCAB_SIZE, heads=("mlm",))
    return make_mlm_objective(model), random_params(model, batch)["params"]


def test_nothing_masked_gives_zero_over_zero_and_finite_gradients():
    batch = make_token_batch(LENGTHS, mask_rate=0.3)
    batch = batch._replace(masked=batch.masked._replace(mask=np.zeros_like(batch.masked.mask)))
    output, grads = loss_and_grads(*make(batch), batch)
    assert output.loss_sum == output.weight == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_loss_and_hits_are_those_of_a_softmax_over_codes():
    logits = RNG.normal(size=(6, 8, 20)).astype(np.float32)
    targets, mask = RNG.integers(5, 20, (6, 8)), RNG.random((6, 8)) < 0.7
    result = jax.jit(masked_lm_loss)(logits, targets, mask)
    codes = np.exp(logits[..., 5:].astype(np.float64))
    chosen = np.take_along_axis(codes / codes.sum(-1, keepdims=True), targets[..., None] - 5, -1)[..., 0]
    np.testing.assert_allclose(result.loss_sum, -np.log(chosen[mask]).sum(), rtol=1e-5)
    assert result.weight == mask.sum()
    order = np.argsort(-codes, axis=-1) + 5
    for name, k in (("mlm_accuracy", 1), ("mlm_top5_accuracy", 5), ("mlm_top10_accuracy", 10)):
        hits = (order[..., :k] == targets[..., None]).any(-1)
        assert 0 < hits[mask].sum() < mask.sum()
        assert result.metrics[name] == (hits[mask].sum(), mask.sum())


def test_special_tokens_are_no_answers_and_slots_that_ask_for_them_do_not_count():
    logits, mask = np.zeros((1, 3, 20), np.float32), np.ones((1, 3), bool)
    logits[..., :5] = 50.0
    result = jax.jit(masked_lm_loss)(logits, np.array([[3, 7, 0]]), mask)
    np.testing.assert_allclose((result.loss_sum, result.weight), (np.log(15), 1.0), rtol=1e-6)


def test_ties_share_the_places_that_they_tie_for():
    hits = top_k_hits(jnp.array([[3.0, 1.0, 1.0, 1.0, 0.0]]), jnp.array([2]), (1, 2, 3, 4, 5))
    np.testing.assert_allclose(np.concatenate(hits), [0, 1 / 3, 2 / 3, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("name", ["bag", "behrt"])
def test_packed_rows_give_the_loss_and_gradient_of_single_patients(name):
    sequences = make_sequences(LENGTHS)
    chosen = RNG.random(len(sequences.codes)) < 0.4
    owner = np.repeat(np.arange(len(LENGTHS)), np.diff(sequences.visit_offsets[sequences.example_offsets]))
    packed = TokenBatches(sequences, row_tokens=20, batch_size=9, eval_mask=chosen).batch_at(0)
    assert len(packed.tokens) < len(LENGTHS)
    objective, params = make(packed, name)
    parts = []
    for example in range(len(LENGTHS)):
        visits = np.where(np.arange(len(LENGTHS)) == example, LENGTHS, 0)
        own = TokenBatches(
            first_visits(sequences, visits), row_tokens=20, batch_size=1, eval_mask=chosen[owner == example]
        ).batch_at(0)
        # One shape for all, so that one compilation serves.
        slots, most = own.masked.mask.shape[1], packed.masked.mask.shape[1]
        own = pad_token_batch(own, visits=max(LENGTHS) - LENGTHS[example], masked=most - slots)
        parts.append(loss_and_grads(objective, params, own))
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert total[0].weight == chosen.sum() > 5
    assert_close(loss_and_grads(objective, params, packed), total)


def test_gradients_reach_every_part_of_the_encoder():
    batch = make_token_batch(LENGTHS, mask_rate=0.3)
    _, grads = loss_and_grads(*make(batch, "behrt"), batch)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads))


def test_behrt_learns_the_masked_codes_of_eight_patients():
    batch = make_token_batch([1, 2, 3, 2] * 2, mask_rate=0.3, seed=1)
    model = Pretraining(
        make_encoder("behrt", embed_dim=16, hidden_dim=16, dropout_rate=0.0), VOCAB_SIZE, heads=("mlm",)
    )
    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    objective = make_mlm_objective(model)
    before = loss_and_grads(objective, params, batch)[0]
    _, after = fit(objective, params, batch, steps=100)
    assert before.loss_sum / before.weight > 2 and after.weight > 5
    assert after.loss_sum / after.weight < 0.1 and after.metrics["mlm_accuracy"][0] == after.weight
