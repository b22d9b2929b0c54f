"""Which leaves decay, what the schedules give, and a learning rate that validation lowers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ehrjax.train.optimizer import (
    Plateau,
    current_learning_rate,
    decay_mask,
    make_optimizer,
    make_schedule,
    reduce_on_plateau,
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.LayerNorm()(nn.Dense(4)(x)), None


class Small(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(5, 4, name="code_embed")(ids)
        stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(1, name="embedding_projection")(stack(name="blocks")(x, None)[0])


def test_no_decay_on_biases_norms_and_embeddings_even_when_stacked_by_a_scan():
    params = Small().init(jax.random.key(0), jnp.zeros((1,), jnp.int32))["params"]
    mask = {
        "/".join(k.key for k in path): keep for path, keep in jax.tree_util.tree_leaves_with_path(decay_mask(params))
    }
    assert params["blocks"]["Dense_0"]["bias"].ndim == 2
    decayed = {name for name, keep in mask.items() if keep}
    assert decayed == {"blocks/Dense_0/kernel", "embedding_projection/kernel"}


def test_decay_shrinks_only_the_masked_leaves():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = make_optimizer(learning_rate=0.1, num_steps=10, schedule="constant", weight_decay=0.5)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_equals_optax_adamw_where_nothing_is_masked():
    params = {"kernel": jnp.arange(6.0).reshape(2, 3)}
    schedule = make_schedule(0.1, num_steps=20, warmup_steps=4)
    ours = make_optimizer(learning_rate=0.1, num_steps=20, warmup_steps=4, weight_decay=0.1, clip_norm=0.5)
    theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(schedule, weight_decay=0.1))
    states, found = [ours.init(params), theirs.init(params)], [params, params]
    for step in range(6):
        grads = {"kernel": jax.random.normal(jax.random.key(step), (2, 3))}
        for i, tx in enumerate((ours, theirs)):
            updates, states[i] = tx.update(grads, states[i], found[i])
            found[i] = optax.apply_updates(found[i], updates)
    np.testing.assert_allclose(found[0]["kernel"], found[1]["kernel"], rtol=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 1, 4])
def test_warm_up_reaches_the_peak_and_cosine_the_floor(warmup_steps):
    schedule = make_schedule(0.2, num_steps=12, warmup_steps=warmup_steps)
    rates = np.array([float(schedule(i)) for i in range(13)])
    assert rates[0] == pytest.approx(0.2 / max(warmup_steps, 1))
    assert rates[warmup_steps] == rates.max() == pytest.approx(0.2)
    assert (np.diff(rates[warmup_steps:]) < 0).all() and rates[12] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("bad", [{"warmup_steps": 10}, {"schedule": "linear"}])
def test_impossible_schedules_are_refused(bad):
    with pytest.raises(ValueError, match=r"warmup_steps=10|schedule='linear'"):
        make_schedule(0.1, num_steps=10, **bad)


@pytest.mark.parametrize("bad", [{"factor": 1.0}, {"patience": 0}, {"min_scale": 2.0}])
def test_impossible_plateaus_are_refused(bad):
    with pytest.raises(ValueError, match="needs 0 < factor < 1"):
        Plateau(**bad)


def rates_after(values, *, mode):
    params = {"kernel": jnp.ones((2, 2))}
    tx = make_optimizer(learning_rate=1.0, num_steps=99, schedule="constant")
    state, rates = tx.init(params), []
    for value in values:
        state = reduce_on_plateau(state, value, Plateau(factor=0.5, patience=2, min_scale=0.2), mode=mode)
        state = tx.update(params, state, params)[1]
        rates.append(float(current_learning_rate(state)))
    return rates


def test_plateau_halves_after_two_stalls_and_stops_at_the_floor():
    costs = [3.0, 2.0, 2.0, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    expected = [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2]
    assert rates_after(costs, mode="min") == pytest.approx(expected)
    assert rates_after([-c for c in costs], mode="max") == pytest.approx(expected)


def test_plateau_leaves_an_optimiser_without_a_stored_rate_alone():
    state = optax.sgd(0.1).init({"kernel": jnp.ones(2)})
    assert reduce_on_plateau(state, 1.0, Plateau()) == state
    assert current_learning_rate(state) is None


def test_a_fresh_state_can_be_donated():
    """Two leaves in one buffer could not: whoever writes an own loop would meet that at the first step."""
    params = {"kernel": jnp.ones((2, 2))}
    tx = make_optimizer(learning_rate=1e-3, num_steps=10)
    step = jax.jit(lambda params, state: tx.update(params, state, params), donate_argnums=1)
    step(params, tx.init(params))
