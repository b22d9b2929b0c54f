"""Pooling against a loop over visits, with empty visits, ties and padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.nn.pooling import POOLINGS, VisitPooling, pool_max

# Row 0: visits of 2, 0 and 3 codes and one padding code; row 1: nothing at all; row 2: one visit of one code.
CODE_VISITS = np.array([[0, 0, 2, 2, 2, -1], [-1] * 6, [0, -1, -1, -1, -1, -1]])
EMBEDDED = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)


RNG = np.random.default_rng(1)
ATTENTION = {
    "attention_hidden": {"kernel": RNG.normal(size=(4, 2)), "bias": RNG.normal(size=2)},
    "attention_score": {"kernel": RNG.normal(size=(2, 1)), "bias": RNG.normal(size=1)},
}


@partial(jax.jit, static_argnums=(0, 3))
def apply(method, embedded, code_visits, num_visits=3):
    params = {"params": jax.tree.map(jnp.float32, ATTENTION)} if method == "attention" else {}
    return VisitPooling(method).apply(params, embedded, code_visits, num_visits)


@pytest.mark.parametrize("method", POOLINGS)
def test_visit_without_codes_is_zero_with_finite_gradients(method):
    pooled, _ = apply(method, EMBEDDED, CODE_VISITS)
    empty = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 1]], bool)
    assert (pooled[empty] == 0).all() and (pooled[~empty] != 0).any()
    gradient = jax.grad(lambda x: jnp.square(apply(method, x, CODE_VISITS)[0]).sum())(EMBEDDED)
    assert np.isfinite(gradient).all()
    assert (gradient[CODE_VISITS < 0] == 0).all()
    for row, visit in ((0, 0), (0, 2), (2, 0)):
        assert (np.abs(gradient[row][CODE_VISITS[row] == visit]).sum(0) > 0).all()


def test_unknown_method_is_named():
    with pytest.raises(ValueError, match="pooling='median' is not known"):
        apply("median", EMBEDDED, CODE_VISITS)


@pytest.mark.parametrize(("method", "reduce"), [("mean", np.mean), ("sum", np.sum), ("max", np.max)])
def test_pooling_equals_a_loop_over_visits(method, reduce):
    pooled, _ = apply(method, EMBEDDED, CODE_VISITS)
    for row, visit in ((0, 0), (0, 2), (2, 0)):
        codes = EMBEDDED[row][CODE_VISITS[row] == visit]
        np.testing.assert_allclose(pooled[row, visit], reduce(codes, axis=0), rtol=1e-6)


def test_attention_weights_sum_to_one_in_each_visit_and_survive_large_scores():
    pooled, weights = apply("attention", 1e4 * EMBEDDED, CODE_VISITS)
    assert np.isfinite(pooled).all()
    for row, visit in ((0, 0), (0, 2), (2, 0)):
        np.testing.assert_allclose(weights[row][CODE_VISITS[row] == visit].sum(), 1.0, rtol=1e-6)
    assert (weights[CODE_VISITS < 0] == 0).all()


def test_max_shares_its_gradient_between_ties():
    embedded = np.array([[[1.0], [1.0], [0.0]]], np.float32)
    gradient = jax.grad(lambda x: pool_max(x, np.zeros((1, 3), int), 1).sum())(embedded)
    np.testing.assert_array_equal(gradient[0, :, 0], [0.5, 0.5, 0.0])


@pytest.mark.parametrize("method", POOLINGS)
def test_more_padding_changes_nothing(method):
    pooled, _ = apply(method, EMBEDDED, CODE_VISITS)
    padded, _ = apply(
        method, np.pad(EMBEDDED, ((0, 0), (0, 3), (0, 0))), np.pad(CODE_VISITS, ((0, 0), (0, 3)), constant_values=-1), 5
    )
    np.testing.assert_allclose(padded[:, :3], pooled, rtol=1e-6)
    assert (padded[:, 3:] == 0).all()
