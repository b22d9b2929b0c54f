"""AdamW with clipping, warm-up, cosine decay and reduce-on-plateau, all of it inside one checkpointable pytree.

The learning rate lives in the optimiser's state (`LearningRateState`): steps can report it, validation can lower it
through `reduce_on_plateau`, and a restored checkpoint continues with exactly the rate that it had.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from ehrjax.types import Array

NO_DECAY_SUFFIXES = ("bias", "scale", "embedding")


class LearningRateState(NamedTuple):
    """`learning_rate` is the one last used; `plateau_best` is kept as lower-is-better."""

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]
    plateau_scale: Float[Array, ""]
    plateau_best: Float[Array, ""]
    num_bad_evals: Int[Array, ""]


@dataclass(frozen=True)
class Plateau:
    """After `patience` validations in a row without a new best, the rate is multiplied by `factor`.

    All such factors together do not go below `min_scale`.
    """

    factor: float = 0.5
    patience: int = 3
    min_scale: float = 0.01

    def __post_init__(self):
        if not (0 < self.factor < 1 and 0 <= self.min_scale <= 1 and self.patience >= 1):
            raise ValueError(f"{self}: needs 0 < factor < 1, 0 <= min_scale <= 1 and patience >= 1.")


def decay_mask(params: Any) -> Any:
    """True for the leaves that weight decay applies to: matrices that are not biases, norm scales or embeddings.

    It goes by the leaf's own name as well as its rank, because layers stacked by a scan have biases of rank 2.
    """

    def decays(path: tuple, leaf: Array) -> bool:
        name = str(getattr(path[-1], "key", getattr(path[-1], "name", path[-1]))) if path else ""
        return jnp.ndim(leaf) >= 2 and not name.lower().endswith(NO_DECAY_SUFFIXES)

    return jax.tree_util.tree_map_with_path(decays, params)


def make_schedule(
    learning_rate: float, *, num_steps: int, warmup_steps: int = 0, schedule: str = "cosine"
) -> optax.Schedule:
    """Linear warm-up over `warmup_steps`, then `cosine` to 0 at `num_steps` (SGDR, arXiv:1608.03983) or `constant`."""
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0 and below num_steps={num_steps}.")
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    elif schedule == "constant":
        after = optax.constant_schedule(learning_rate)
    else:
        raise ValueError(f"schedule={schedule!r} is unknown: use 'cosine' or 'constant'.")
    if warmup_steps == 0:
        return after
    # The first step already moves: a rate of 0 would waste a batch.
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [warmup_steps])


def scale_by_stored_rate(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiply updates by minus `schedule(count) * plateau_scale`, and keep the rate in the state."""

    def init(params: Any) -> LearningRateState:
        del params
        zero = jnp.zeros((), jnp.int32)
        rate = jnp.asarray(schedule(zero), jnp.float32)
        scale, best = jnp.ones((), jnp.float32), jnp.full((), jnp.inf, jnp.float32)
        # Two arrays, since a state that names one buffer twice cannot be donated.
        return LearningRateState(zero, rate, scale, best, jnp.zeros((), jnp.int32))

    def update(updates: Any, state: LearningRateState, params: Any = None) -> tuple[Any, LearningRateState]:
        del params
        rate = jnp.asarray(schedule(state.count), jnp.float32) * state.plateau_scale
        updates = jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates)
        return updates, state._replace(count=state.count + 1, learning_rate=rate)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101): clip by global norm, Adam, decoupled weight decay (see `decay_mask`), learning rate."""
    rate = make_schedule(learning_rate, num_steps=num_steps, warmup_steps=warmup_steps, schedule=schedule)
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(
        clip,
        optax.scale_by_adam(b2=b2),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        scale_by_stored_rate(rate),
    )


def _is_rate(node: Any) -> bool:
    return isinstance(node, LearningRateState)


def current_learning_rate(opt_state: Any) -> Float[Array, ""] | None:
    """The rate that the last update used, or None for an optimiser that keeps no `LearningRateState`."""
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_rate) if _is_rate(node)]
    return found[0].learning_rate if found else None


def reduce_on_plateau(opt_state: Any, value: Float[Array, ""] | float, plateau: Plateau, *, mode: str = "min") -> Any:
    """Tell the optimiser a validation figure; returns its state, with the rate lowered where the figure has stalled.

    A pure function of arrays (no Python branch on `value`), so it can be mapped over a stack of ensemble members.
    """
    cost = jnp.asarray(value, jnp.float32) * (1.0 if mode == "min" else -1.0)

    def observe(node: Any) -> Any:
        if not _is_rate(node):
            return node
        is_better = cost < node.plateau_best
        num_bad = jnp.where(is_better, 0, node.num_bad_evals + 1)
        is_stalled = num_bad >= plateau.patience
        lowered = jnp.maximum(node.plateau_scale * plateau.factor, plateau.min_scale)
        return node._replace(
            plateau_scale=jnp.where(is_stalled, lowered, node.plateau_scale),
            plateau_best=jnp.where(is_better, cost, node.plateau_best),
            num_bad_evals=jnp.where(is_stalled, 0, num_bad),
        )

    return jax.tree.map(observe, opt_state, is_leaf=_is_rate)
