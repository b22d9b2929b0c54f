"""The scanned LSTM against a plain Python loop, its written-out gradient against JAX's, masks and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.nn.recurrent import Lstm, lstm_scan
from tests.sequences import random_params

LENGTHS = np.array([5, 0, 3])
MASK = np.arange(5) < LENGTHS[:, None]
INPUTS = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)


def loop(projected, kernel, mask, starts=None, reverse=False):
    """The recurrence written as a loop over steps, to be differentiated by JAX."""
    hidden = cell = jnp.zeros((projected.shape[1], kernel.shape[0]))
    states = {}
    for t in reversed(range(len(projected))) if reverse else range(len(projected)):
        if starts is not None:
            hidden, cell = (jnp.where(starts[t][:, None], 0.0, state) for state in (hidden, cell))
        i, f, g, o = jnp.split(projected[t] + hidden @ kernel, 4, axis=-1)
        new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        keep = mask[t][:, None]
        hidden = jnp.where(keep, jax.nn.sigmoid(o) * jnp.tanh(new_cell), hidden)
        cell = jnp.where(keep, new_cell, cell)
        states[t] = hidden
    return jnp.stack([states[t] for t in range(len(projected))])


def run(inputs, mask, *, train=False, **options):
    module = Lstm(hidden_dim=3, **options)
    params = random_params(module, INPUTS, MASK)
    return jax.jit(module.apply, static_argnames="train")(
        params, inputs, mask, train=train, rngs={"dropout": jax.random.key(1)}
    )


def test_row_without_steps_gives_zeros():
    for bidirectional in (False, True):
        outputs, last = run(INPUTS, MASK, bidirectional=bidirectional)
        assert (outputs[1] == 0).all() and (last[1] == 0).all() and (last[0] != 0).all()


@pytest.mark.parametrize(("reverse", "has_starts"), [(False, False), (False, True), (True, False), (True, True)])
def test_scan_equals_loop_in_value_and_gradient(reverse, has_starts):
    rng = np.random.default_rng(1)
    projected = rng.normal(size=(5, 3, 12)).astype(np.float32)
    kernel = rng.normal(size=(3, 12)).astype(np.float32)
    weights = rng.normal(size=(5, 3, 3)).astype(np.float32)
    mask = MASK.T.copy()
    mask[1, 0] = False  # a hole in the middle as well as padding at the end
    starts = rng.random(mask.shape) < 0.4 if has_starts else None

    def value_and_grad(function):
        objective = lambda p, k: (function(p, k, mask, starts, reverse) * weights).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(objective, argnums=(0, 1)))(projected, kernel)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        value_and_grad(lstm_scan),
        value_and_grad(loop),
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_masked_steps_and_longer_padding_change_nothing(bidirectional):
    outputs, last = run(INPUTS, MASK, num_layers=2, bidirectional=bidirectional)
    junk = np.where(MASK[..., None], INPUTS, 99.0)
    longer = np.pad(junk, ((0, 0), (0, 4), (0, 0)), constant_values=99.0)
    padded, padded_last = run(longer, np.pad(MASK, ((0, 0), (0, 4))), num_layers=2, bidirectional=bidirectional)
    np.testing.assert_allclose(padded[:, :5], outputs, rtol=1e-5)
    np.testing.assert_allclose(padded_last, last, rtol=1e-5)
    assert (padded[:, 5:] == 0).all() and (outputs[~MASK] == 0).all()


def test_last_state_is_the_output_of_the_last_real_step():
    outputs, last = run(INPUTS, MASK, bidirectional=True)
    np.testing.assert_array_equal(last[0], np.concatenate([outputs[0, 4, :3], outputs[0, 0, 3:]]))
    np.testing.assert_array_equal(last[2], np.concatenate([outputs[2, 2, :3], outputs[2, 0, 3:]]))


def test_dropout_acts_between_layers_and_only_in_training():
    one = [run(INPUTS, MASK, dropout_rate=0.5, train=train)[0] for train in (False, True)]
    two = [run(INPUTS, MASK, num_layers=2, dropout_rate=0.5, train=train)[0] for train in (False, True)]
    np.testing.assert_array_equal(*one)
    assert not np.array_equal(*two)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_patients_in_one_row_do_not_touch_each_other(bidirectional):
    row = np.concatenate([INPUTS[:1, :2], INPUTS[2:3, :3]], axis=1)
    alone, _ = run(INPUTS, np.arange(5) < np.array([[2], [0], [3]]), num_layers=2, bidirectional=bidirectional)
    module = Lstm(hidden_dim=3, num_layers=2, bidirectional=bidirectional)
    params = random_params(module, INPUTS, MASK)
    together, _ = jax.jit(module.apply)(params, row, np.ones((1, 5), bool), np.array([[0, 0, 1, 1, 1]]))
    np.testing.assert_allclose(together[0, :2], alone[0, :2], rtol=1e-5)
    np.testing.assert_allclose(together[0, 2:], alone[2, :3], rtol=1e-5)
