"""The training step: an empty batch changes nothing, randomness depends on the step, metrics add up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.train.optimizer import make_optimizer
from ehrjax.train.state import create_state
from ehrjax.train.step import make_eval_step, make_train_step, mean_metrics
from ehrjax.types import LossOutput
from tests.train.tiny_run import init_params, make_batch, objective


def make_step(loss=objective):
    tx = make_optimizer(learning_rate=0.1, num_steps=10)
    return create_state(init_params(), tx), jax.jit(make_train_step(loss, tx))


def test_batch_of_weight_zero_changes_only_the_step_counter():
    def weightless(params, batch, key, train):
        output = objective(params, batch, key, train)
        return LossOutput(0.0 * output.loss_sum, 0.0 * output.weight, output.metrics)

    state, ordinary = make_step()
    state, _ = ordinary(state, make_batch(0), jax.random.key(1))  # momentum is no longer zero
    after, metrics = make_step(weightless)[1](state, make_batch(1), jax.random.key(1))
    assert int(after.step) == int(state.step) + 1
    jax.tree.map(np.testing.assert_array_equal, after[1:], state[1:])
    assert np.isfinite(jax.device_get(metrics["grad_norm"])).all()
    assert np.isnan(mean_metrics([metrics])["loss"])


def test_a_step_moves_the_parameters_and_reports_its_figures():
    state, step = make_step()
    after, metrics = step(state, make_batch(0), jax.random.key(1))
    assert not np.array_equal(after.params["first"]["kernel"], state.params["first"]["kernel"])
    assert set(metrics) == {"loss", "absolute_error", "grad_norm", "learning_rate"}
    assert mean_metrics([metrics])["learning_rate"] == pytest.approx(0.1)


def test_gradient_is_that_of_the_mean_not_of_the_sum():
    batch, key = make_batch(0), jax.random.fold_in(jax.random.key(1), 0)
    state, step = make_step()
    grads = jax.jit(jax.grad(lambda p: objective(p, batch, key, True).loss_sum / 6))(state.params)
    norm = np.sqrt(sum(np.sum(np.asarray(g) ** 2) for g in jax.tree.leaves(grads)))
    assert float(step(state, batch, jax.random.key(1))[1]["grad_norm"][0]) == pytest.approx(norm, rel=1e-5)


def test_randomness_depends_on_the_step_and_on_nothing_else():
    state, step = make_step()
    batch, key = make_batch(0), jax.random.key(1)
    first, again = step(state, batch, key)[1], step(state, batch, key)[1]
    later = step(state._replace(step=state.step + 1), batch, key)[1]
    assert float(first["loss"][0]) == float(again["loss"][0]) != float(later["loss"][0])


def test_the_step_can_be_mapped_over_ensemble_members():
    state, _ = make_step()
    tx = make_optimizer(learning_rate=0.1, num_steps=10)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    step = jax.jit(jax.vmap(make_train_step(objective, tx), in_axes=(0, None, 0)))
    after, metrics = step(stacked, make_batch(0), jax.random.split(jax.random.key(1)))
    assert after.step.shape == (2,) and metrics["loss"][0].shape == (2,)
    assert not np.array_equal(*after.params["first"]["kernel"])


def test_evaluation_has_no_dropout_and_sums_over_batches():
    state, _ = make_step()
    step = jax.jit(make_eval_step(objective))
    one, two = step(state.params, make_batch(0, size=2)), step(state.params, make_batch(1, size=6))
    expected = (float(one["loss"][0]) + float(two["loss"][0])) / 8
    assert mean_metrics([one, two], prefix="val/")["val/loss"] == pytest.approx(expected)
    assert float(one["loss"][0]) == float(step(state.params, make_batch(0, size=2))["loss"][0])
