"""Pure training and evaluation steps over an objective; the caller jits them.

An objective is `objective(params, batch, key, train) -> LossOutput`. Step metrics are pairs (sum, weight), so they add
up over steps and batches and are divided once, on the host.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ehrjax.train.optimizer import current_learning_rate
from ehrjax.train.state import TrainState
from ehrjax.types import LossOutput

Objective = Callable[[Any, Any, Any, bool], LossOutput]
Metrics = dict[str, tuple[Any, Any]]


def make_train_step(
    objective: Objective, tx: optax.GradientTransformation
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, Metrics]]:
    """`step(state, batch, base_key) -> (state, metrics)`, to be jitted with the state donated.

    The step's randomness is `fold_in(base_key, state.step)`, so a resumed run equals an uninterrupted one. A batch
    whose weight is 0 (no label that counts) changes nothing but the step counter. Metrics: those of the objective,
    `loss`, `grad_norm` (before clipping) and `learning_rate`.
    """

    def step(state: TrainState, batch: Any, base_key: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(base_key, state.step)

        def mean_loss(params: Any) -> tuple[jax.Array, LossOutput]:
            output = objective(params, batch, key, True)
            return output.loss_sum / jnp.where(output.weight > 0, output.weight, 1.0), output

        grads, output = jax.grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = (optax.apply_updates(state.params, updates), opt_state)
        # Without this select, momentum and weight decay would still move the parameters.
        params, opt_state = jax.tree.map(
            lambda n, o: jnp.where(output.weight > 0, n, o), new, (state.params, state.opt_state)
        )
        one = jnp.ones((), jnp.float32)
        metrics = {**output.metrics, "loss": (output.loss_sum, output.weight)}
        metrics["grad_norm"] = (optax.tree.norm(grads), one)
        rate = current_learning_rate(opt_state)
        if rate is not None:
            metrics["learning_rate"] = (rate, one)
        return TrainState(state.step + 1, params, opt_state), metrics

    return step


def make_eval_step(objective: Objective) -> Callable[[Any, Any], Metrics]:
    """`step(params, batch) -> metrics` (pairs of sum and weight, `loss` among them), with `train=False`."""

    def step(params: Any, batch: Any) -> Metrics:
        # An objective that masks at random must see the same draw in every evaluation: hence a constant key.
        output = objective(params, batch, jax.random.key(0), False)
        return {**output.metrics, "loss": (output.loss_sum, output.weight)}

    return step


def mean_metrics(rows: Iterable[Mapping[str, tuple[Any, Any]]], *, prefix: str = "") -> dict[str, float]:
    """Add up (sum, weight) over `rows` in float64 and divide; NaN where the weight is 0.

    >>> mean_metrics([{"loss": (2.0, 1.0)}, {"loss": (4.0, 2.0)}], prefix="val/")
    {'val/loss': 2.0}
    """
    totals: dict[str, tuple[float, float]] = {}
    for row in rows:
        for name, (total, weight) in row.items():
            old_total, old_weight = totals.get(name, (0.0, 0.0))
            totals[name] = (old_total + float(total), old_weight + float(weight))
    return {prefix + name: total / weight if weight else math.nan for name, (total, weight) in totals.items()}
