"""What a training step reads and returns: step counter, parameters, optimiser state."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Int

from ehrjax.types import Array


class TrainState(NamedTuple):
    """A pytree; `step` counts finished updates, so it is also the index of the next batch."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any


def create_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """State before the first step, with the optimiser's own state initialised for `params`."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))
