"""Attention pooling over triplets: what counts, what cannot, stays without any, and the draw of training."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.nn.triplets import TripletPooling

DIM, NUM_QUERIES = 4, 2
NUM_ROWS, NUM_TIMES, NUM_VARIABLES, NUM_STATICS = 3, 4, 3, 2
NUM_POOLED = (NUM_QUERIES + 1) * DIM


def make_inputs(seed=0):
    """Row 1 has no measurement at all."""
    rng = np.random.default_rng(seed)
    observed = rng.random((NUM_ROWS, NUM_TIMES, NUM_VARIABLES)) < 0.6
    observed[1] = False
    return {
        "values": rng.normal(size=observed.shape).astype(np.float32),
        "times": rng.normal(size=(NUM_ROWS, NUM_TIMES)).astype(np.float32),
        "observed": observed,
        "statics": rng.normal(size=(NUM_ROWS, NUM_STATICS)).astype(np.float32),
    }


def make(inputs, **options):
    model = TripletPooling(**{"dim": DIM, "num_queries": NUM_QUERIES, "num_shown": 5} | options)
    shapes = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), **inputs)
    leaves, treedef = jax.tree.flatten(shapes["params"])
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return model, treedef.unflatten(
        [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


@partial(jax.jit, static_argnums=(0, 3))
def run(model, params, inputs, seed=None):
    rngs = None if seed is None else {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, **inputs, train=seed is not None, rngs=rngs)


@pytest.mark.parametrize("num_statics", [NUM_STATICS, 0])
def test_a_stay_without_a_measurement_pools_to_zeros(num_statics):
    inputs = make_inputs()
    inputs["statics"] = inputs["statics"][:, :num_statics]
    states = run(*make(inputs), inputs)
    assert states.shape == (NUM_ROWS, (NUM_QUERIES + (4 if num_statics else 3)) * DIM)
    assert (states[1, :NUM_POOLED] == 0).all() and (states[0, :NUM_POOLED] != 0).all()


@pytest.mark.parametrize("seed", [None, 0])
def test_what_was_not_measured_reaches_neither_output_nor_gradient(seed):
    inputs = make_inputs()
    hidden = ~inputs["observed"]
    junk = inputs | {"values": np.where(hidden, np.nan, inputs["values"])}
    model, params = make(inputs)

    def loss(params, inputs):
        return run(model, params, inputs, seed).sum()

    grad = jax.jit(jax.grad(loss))
    chex.assert_trees_all_close(grad(params, junk), grad(params, inputs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(model, params, junk, seed), run(model, params, inputs, seed), rtol=1e-6)
    slopes = jax.grad(lambda values: loss(params, inputs | {"values": values}))(jnp.asarray(inputs["values"]))
    assert (slopes[hidden] == 0).all()
    assert seed is not None or (slopes[inputs["observed"]] != 0).all()


def test_only_time_tells_the_order():
    inputs = make_inputs()
    model, params = make(inputs)
    order = np.array([2, 0, 3, 1])
    moved = inputs | {name: inputs[name][:, order] for name in ("values", "times", "observed")}
    np.testing.assert_allclose(run(model, params, moved), run(model, params, inputs), rtol=1e-5, atol=1e-5)
    swapped = moved | {"times": inputs["times"]}
    assert np.abs(run(model, params, swapped) - run(model, params, inputs))[0].max() > 1e-3


def test_variables_are_told_apart():
    inputs = make_inputs()
    model, params = make(inputs)
    moved = inputs | {name: inputs[name][..., ::-1] for name in ("values", "observed")}
    assert np.abs(run(model, params, moved) - run(model, params, inputs))[0].max() > 1e-3


def test_training_shows_some_measured_cells_and_prediction_all():
    """With as many shown as there are, real cells come before the empty ones; with fewer, other ones each time."""
    inputs = make_inputs()
    num_measured = int(inputs["observed"][0].sum())
    plain = {"dropout_rate": 0.0, "head_dropout_rate": 0.0}
    model, params = make(inputs, num_shown=num_measured, **plain)
    np.testing.assert_allclose(run(model, params, inputs, 0)[0], run(model, params, inputs)[0], rtol=1e-5, atol=1e-5)
    model = model.clone(num_shown=2)

    @jax.jit
    def is_shown(key):
        def total(values):
            given = inputs | {"values": values}
            return model.apply({"params": params}, **given, train=True, rngs={"dropout": key}).sum()

        return (jax.grad(total)(jnp.asarray(inputs["values"]))[0] != 0).reshape(-1)

    shown = np.stack([is_shown(jax.random.key(seed)) for seed in range(20)])
    assert (shown.sum(axis=1) == 2).all() and (shown.any(axis=0) == inputs["observed"][0].reshape(-1)).all()
