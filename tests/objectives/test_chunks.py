"""Rows a few at a time: loss, weight, metrics and gradient of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.models.pretraining import Pretraining
from ehrjax.objectives.chunks import count_chunks, in_chunks
from ehrjax.objectives.combine import combine
from ehrjax.objectives.mlm import make_mlm_objective
from ehrjax.objectives.next_visit import make_next_visit_objective
from ehrjax.types import LossOutput
from tests.encoders import assert_close, loss_and_grads, make_encoder
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch

LENGTHS = [1, 3, 2, 5]


def make_parts(batch):
    model = Pretraining(make_encoder("behrt", dropout_rate=0.0), VOCAB_SIZE, heads=("mlm", "next_visit"))
    params = random_params(model, batch)["params"]
    return {"mlm": make_mlm_objective(model), "next_visit": make_next_visit_objective(model)}, params


def trained(objective, params, batch):
    """Output and gradient of the loss sum, in training."""

    def loss(params):
        output = objective(params, batch, jax.random.key(0), True)
        return output.loss_sum, output

    grads, output = jax.jit(jax.grad(loss, has_aux=True))(params)
    return output, grads


def test_chunks_have_the_loss_and_gradient_of_the_batch():
    batch = make_token_batch(LENGTHS, mask_rate=0.4, is_fresh=True)
    parts, params = make_parts(batch)
    whole = combine({name: (part, 0.5) for name, part in parts.items()})
    chunked = combine({name: (in_chunks(part, chunk_tokens=1), 0.5) for name, part in parts.items()})
    output, grads = trained(whole, params, batch)
    assert output.metrics["mlm_accuracy"][1] > 1
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(grads))
    assert_close(trained(chunked, params, batch), (output, grads))


def test_a_chunk_without_anything_to_predict_adds_nothing():
    batch = make_token_batch(LENGTHS, mask_rate=0.4)
    mask = np.array(batch.masked.mask)
    mask[0] = False
    batch = batch._replace(masked=batch.masked._replace(mask=mask))
    parts, params = make_parts(batch)
    chunked = in_chunks(parts["mlm"], chunk_tokens=1)
    output, grads = trained(chunked, params, batch)
    expected, expected_grads = loss_and_grads(parts["mlm"], params, batch)
    assert output.weight == expected.weight > 0
    assert_close(grads, expected_grads)


def test_each_chunk_draws_its_own_dropout():
    def noise(params, batch, key, train):
        return LossOutput(params * jax.random.uniform(key), jnp.ones(()), {"noise": (jnp.zeros(()), jnp.ones(()))})

    batch, key = make_token_batch(LENGTHS), jax.random.key(0)
    found = in_chunks(noise, chunk_tokens=1)(jnp.ones(()), batch, key, True)
    drawn = [jax.random.uniform(key) for key in jax.random.split(key, len(batch.tokens))]
    assert found.loss_sum == pytest.approx(float(sum(drawn)))
    assert found.weight == found.metrics["noise"][1] == len(batch.tokens)


def test_a_chunk_is_the_largest_divisor_of_the_rows_that_fits():
    assert count_chunks(64, 200, 2048) == 8
    assert count_chunks(6, 512, 2048) == 2
    assert count_chunks(7, 512, 2048) == 7
    assert count_chunks(5, 4096, 2048) == 5
    assert count_chunks(16, 50, 2048) == 1
