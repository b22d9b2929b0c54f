"""Weighted sums of objectives: means, keys and metrics of the parts; parts without weight are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.models.pretraining import HEADS, Pretraining
from ehrjax.objectives.combine import combine
from ehrjax.objectives.contrastive import make_contrastive_objective
from ehrjax.objectives.mlm import make_mlm_objective
from ehrjax.objectives.next_visit import make_next_visit_objective, make_pooled_next_visit_objective
from ehrjax.types import LossOutput
from tests.encoders import Bag, assert_close, loss_and_grads
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch


def square(params, batch, key, train):
    """Sum of squares of the batch's numbers times the parameter, metric "size"."""
    weight = jnp.float32(batch.shape[0])
    return LossOutput((params * batch * batch).sum(), weight, {"size": (weight, weight)})


def noise(params, batch, key, train):
    drawn = jax.random.normal(key)
    return LossOutput(params * drawn, jnp.float32(1), {})


def nothing(params, batch, key, train):
    """A part that counts nothing: its mean would be 0 / 0, or worse."""
    return LossOutput(params * 0 + jnp.nan, jnp.zeros(()), {})


BATCH = jnp.array([1.0, 2.0])


def test_no_part_with_weight_gives_no_weight_and_finite_gradients():
    objective = combine({"a": (nothing, 1.0), "b": (square, 0.0)})
    output, grad = loss_and_grads(objective, jnp.float32(3), BATCH)
    assert output.loss_sum == output.weight == grad == 0


def test_parts_without_weight_or_factor_contribute_nothing():
    objective = combine({"a": (square, 2.0), "b": (nothing, 1.0), "c": (lambda *a: square(*a)._replace(metrics={}), 0)})
    output, grad = loss_and_grads(objective, jnp.float32(3), BATCH)
    assert (output.loss_sum, output.weight, grad) == (2 * 15 / 2, 1, 2 * 5 / 2)
    assert output.metrics["a_loss"] == output.metrics["c_loss"] == (15, 2)
    assert output.metrics["b_loss"][1] == 0 and output.metrics["size"] == (2, 2)


def test_every_part_has_its_own_key():
    output = combine({"a": (noise, 1.0), "b": (noise, 1.0)})(jnp.float32(1), BATCH, jax.random.key(0), True)
    draws = [float(jax.random.normal(jax.random.fold_in(jax.random.key(0), number))) for number in range(2)]
    assert [float(output.metrics[f"{name}_loss"][0]) for name in "ab"] == draws
    np.testing.assert_allclose(output.loss_sum, sum(draws), rtol=1e-6)


def test_sums_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="no objective to combine"):
        combine({})
    with pytest.raises(ValueError, match="objective 'a' has factor -1"):
        combine({"a": (square, -1)})
    with pytest.raises(ValueError, match="two objectives report the metric 'size'"):
        combine({"a": (square, 1), "b": (square, 1)})(jnp.float32(1), BATCH, None, False)


def test_all_pre_training_objectives_together():
    batch = make_token_batch([1, 3, 2, 5, 4], mask_rate=0.3, is_fresh=True)
    model = Pretraining(Bag(), VOCAB_SIZE, heads=HEADS)
    params = random_params(model, batch)["params"]
    parts = {
        "mlm": (make_mlm_objective(model), 1.0),
        "next_visit": (make_next_visit_objective(model), 0.5),
        "contrastive": (make_contrastive_objective(model), 0.1),
    }
    output, grads = loss_and_grads(combine(parts), params, batch)
    alone = {name: loss_and_grads(objective, params, batch) for name, (objective, _) in parts.items()}
    scales = [parts[name][1] / alone[name][0].weight for name in parts]
    expected = jax.tree.map(
        lambda *leaves: sum(s * x for s, x in zip(scales, leaves, strict=True)), *[alone[name][1] for name in parts]
    )
    assert_close(grads, expected)
    total = sum(s * alone[name][0].loss_sum for s, name in zip(scales, parts, strict=True))
    np.testing.assert_allclose(output.loss_sum, total, rtol=1e-5)
    assert {"mlm_loss", "mlm_top10_accuracy", "next_visit_probability", "contrastive_accuracy"} < set(output.metrics)


def test_both_kinds_of_next_visit_can_be_summed():
    batch = make_token_batch([2, 3], is_fresh=True)
    model = Pretraining(Bag(), VOCAB_SIZE, heads=("next_visit", "pooled_next_visit"))
    params = random_params(model, batch)["params"]
    objective = combine(
        {
            "next_visit": (make_next_visit_objective(model), 1.0),
            "pooled_next_visit": (make_pooled_next_visit_objective(model), 1.0),
        }
    )
    assert {"next_visit_probability", "pooled_next_visit_probability"} < set(
        loss_and_grads(objective, params, batch)[0].metrics
    )
