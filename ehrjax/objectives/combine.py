"""A weighted sum of objectives."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ehrjax.types import LossOutput


def combine(parts: Mapping[str, tuple[Callable[..., LossOutput], float]]) -> Callable[..., LossOutput]:
    """`objective(params, batch, key, train)` of `{name: (objective, factor)}`: factors times mean losses, summed.

    Each part draws from its own key. The loss is a mean already, so its weight is 1 (0 where no part counts anything).
    Metrics: those of the parts, and `{name}_loss`. A factor of 0 leaves a part's metrics and none of its gradient.
    """
    if not parts:
        raise ValueError("no objective to combine: name at least one.")
    for name, (_, factor) in parts.items():
        if not factor >= 0:
            raise ValueError(f"objective {name!r} has factor {factor}: it must be 0 or more.")

    def objective(params, batch, key: Array | None, train: bool) -> LossOutput:
        total, is_counted, metrics = jnp.zeros(()), jnp.zeros((), bool), {}
        for number, (name, (part, factor)) in enumerate(parts.items()):
            own_key = None if key is None else jax.random.fold_in(key, number)
            output = part(params if factor else jax.lax.stop_gradient(params), batch, own_key, train)
            has_weight = output.weight > 0
            # Selecting before dividing keeps a part without weight from bringing 0 / 0 into the gradient.
            mean = jnp.where(has_weight, output.loss_sum, 0.0) / jnp.where(has_weight, output.weight, 1.0)
            total += factor * mean
            is_counted |= has_weight & (factor > 0)
            _add(metrics, {f"{name}_loss": (output.loss_sum, output.weight), **output.metrics})
        return LossOutput(total, is_counted.astype(jnp.float32), metrics)

    return objective


def _add(metrics, more):
    twice = sorted(metrics.keys() & more.keys())
    if twice:
        raise ValueError(f"two objectives report the metric {twice[0]!r}: combine one of each kind.")
    metrics.update(more)
