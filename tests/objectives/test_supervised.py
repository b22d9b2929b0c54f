"""Supervised losses against scikit-learn and by hand; masked labels count for nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from ehrjax.objectives.supervised import make_supervised_objective, supervised_loss

RNG = np.random.default_rng(0)


def test_all_labels_masked_gives_zero_over_zero_and_finite_gradients():
    logits, labels, mask = jnp.ones((2, 1)), jnp.full((2, 1), jnp.nan), jnp.zeros((2, 1), bool)
    for kind in ("binary", "regression", "multiclass"):
        objective = lambda x, kind=kind: supervised_loss(x, labels, mask, kind=kind)[:2]  # noqa: E731
        (loss, weight), grad = jax.jit(jax.value_and_grad(objective, has_aux=True))(logits)
        assert loss == weight == 0 and (grad == 0).all()


def test_unknown_kind_and_misfit_labels_are_named():
    with pytest.raises(ValueError, match="kind='ranking' is not known"):
        make_supervised_objective(None, "ranking")
    with pytest.raises(ValueError, match=r"multilabel labels of shape \(2, 1\) do not fit logits of shape \(2, 3\)"):
        supervised_loss(jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.ones((2, 1), bool), kind="multilabel")


@pytest.mark.parametrize("shape", [(6, 1), (6, 3)])
def test_binary_and_multilabel_loss_is_log_loss_over_kept_labels(shape):
    logits = RNG.normal(size=shape).astype(np.float32)
    labels, mask = RNG.integers(0, 2, shape), RNG.random(shape) < 0.7
    result = supervised_loss(logits, labels, mask, kind="multilabel")
    expected = log_loss(labels[mask], 1 / (1 + np.exp(-logits[mask])), labels=[0, 1], normalize=False)
    np.testing.assert_allclose(result.loss_sum, expected, rtol=1e-5)
    assert result.weight == mask.sum()
    assert result.metrics["accuracy"][0] == ((logits > 0) == labels)[mask].sum()


def test_multiclass_loss_is_log_loss_of_the_class():
    logits, labels = RNG.normal(size=(5, 4)).astype(np.float32), np.array([[0], [3], [1], [2], [2]])
    mask = np.array([[True], [True], [False], [True], [True]])
    result = supervised_loss(logits, labels, mask, kind="multiclass")
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = log_loss(labels[mask], probabilities[mask[:, 0]], labels=range(4), normalize=False)
    np.testing.assert_allclose(result.loss_sum, expected, rtol=1e-5)
    assert result.weight == 4


def test_regression_loss_is_the_squared_error():
    result = supervised_loss(
        jnp.array([[1.0], [4.0]]), jnp.array([[3.0], [4.5]]), jnp.ones((2, 1), bool), kind="regression"
    )
    assert result.loss_sum == 4.25 and result.metrics["absolute_error"] == (2.5, 2.0)
