"""Members of an ensemble trained in one compiled program: the training step mapped over their stacked states.

Every member has its own initialisation, dropout, early stopping, learning-rate plateau and best weights, and equals, up
to rounding, what training it alone on the same batches gives. All members read the same batch at a step: it is built
and sent to the device once, and its shape fits all. So the spread between members is that of initialisation and
dropout; the order of the batches, which also moves a result, is not in it.

A member that has run out of patience is frozen while the others go on, and training ends when all have.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float, Int

from ehrjax.train.loop import FitResult, fit
from ehrjax.train.optimizer import Plateau, reduce_on_plateau
from ehrjax.train.state import TrainState
from ehrjax.types import Array

MONITOR = "val/loss"


class Members(NamedTuple):
    """What K members have in the place of an optimiser's state; every leaf has the members on axis 0.

    Their best parameters are the `params` of the TrainState: those a checkpoint is loaded for.
    """

    params: Any
    opt_state: Any
    best_value: Float[Array, "K"]
    best_step: Int[Array, "K"]
    num_bad_evals: Int[Array, "K"]


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves have the members on axis 0."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member_of(stacked: Any, index: int) -> Any:
    """The tree of one member."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def create_members(members: Sequence[Any], tx: optax.GradientTransformation) -> TrainState:
    """State before the first step, from each member's initial parameters."""
    params, count = stack(members), len(members)
    best = jax.tree.map(jnp.copy, params)  # a state that names one buffer twice cannot be donated
    value = jnp.full(count, jnp.inf, jnp.float32)  # with a dtype: a weak type would change, and compile again
    step, num_bad = jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.int32)
    return TrainState(jnp.zeros((), jnp.int32), best, Members(params, jax.vmap(tx.init)(params), value, step, num_bad))


def make_members_step(train_step: Callable[..., Any], *, patience: int | None) -> Callable[..., Any]:
    """`step(state, batch, base_keys) -> (state, metrics)` from the step of one model (see `make_train_step`).

    `base_keys` are [K]. Metrics add up over the members that still train, so their means are over these.
    """

    def member_step(count: Array, member: Members, batch: Any, base_key: Array) -> tuple[Members, Any]:
        new, metrics = train_step(TrainState(count, member.params, member.opt_state), batch, base_key)
        is_active = _is_active(member, patience)
        params, opt_state = _choose(is_active, (new.params, new.opt_state), (member.params, member.opt_state))
        metrics = jax.tree.map(lambda figure: jnp.where(is_active, figure, 0), metrics)
        return member._replace(params=params, opt_state=opt_state), metrics

    def step(state: TrainState, batch: Any, base_keys: Array) -> tuple[TrainState, Any]:
        own = (state.opt_state, base_keys)
        members, metrics = _over_members(lambda each: member_step(state.step, each[0], batch, each[1]), own)
        return TrainState(state.step + 1, state.params, members), jax.tree.map(lambda each: each.sum(0), metrics)

    return step


def fit_members(
    members: Sequence[Any],
    tx: optax.GradientTransformation,
    train_step: Callable[..., Any],
    *,
    base_keys: Array,
    eval_fn: Callable[[Any], Mapping[str, float]],
    patience: int | None = None,
    plateau: Plateau | None = None,
    **settings: Any,
) -> FitResult:
    """`fit` for K members at once; `train_step` and `eval_fn` are those of one model, `settings` those of `fit`.

    `base_keys` [K] seed the members' dropout. Members are evaluated one after another, so validation takes the memory
    of one. The result's `params` hold each member's best on axis 0, `state.opt_state` (`Members`) when those were, and
    `history` means over the members that still trained.
    """
    observe = make_observe(eval_fn, patience=patience, plateau=plateau)
    return fit(
        state=create_members(members, tx),
        train_step=make_members_step(train_step, patience=patience),
        base_key=base_keys,
        observe=observe,
        monitor=MONITOR,
        patience=patience,
        **settings,
    )


def make_observe(
    eval_fn: Callable[[Any], Mapping[str, float]], *, patience: int | None, plateau: Plateau | None
) -> Callable[[TrainState], tuple[TrainState, dict[str, float], int]]:
    """`observe(state)` for `fit`: evaluates the members that still train and keeps the weights of their best losses."""
    update = jax.jit(partial(_keep_best, patience=patience, plateau=plateau))

    def observe(state: TrainState) -> tuple[TrainState, dict[str, float], int]:
        members = state.opt_state
        active = np.flatnonzero(_is_active(members, patience))
        rows = [eval_fn(member_of(members.params, index)) for index in active]
        losses = np.full(len(members.best_value), np.inf, np.float32)
        losses[active] = [row[MONITOR] for row in rows]
        state = update(state, losses)
        figures = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        figures["num_training_members"] = float(len(active))
        return state, figures, int(state.opt_state.num_bad_evals.min())

    return observe


def _over_members(function: Callable[[Any], Any], stacked: Any) -> Any:
    """Side by side where that fills the device; one after another on a CPU, whose batched products are slow.

    Five members took 5.1 (BEHRT small) and 6.0 (LSTM small) times one step on a core, and 6.8 and 7.5 side by side.
    """
    return jax.lax.map(function, stacked) if jax.default_backend() == "cpu" else jax.vmap(function)(stacked)


def _keep_best(
    state: TrainState, losses: Float[Array, "K"], *, patience: int | None, plateau: Plateau | None
) -> TrainState:
    members, is_active = state.opt_state, _is_active(state.opt_state, patience)
    is_better = is_active & (losses < members.best_value)
    opt_state = members.opt_state
    if plateau is not None:
        lowered = jax.vmap(partial(reduce_on_plateau, plateau=plateau))(opt_state, losses)
        opt_state = jax.vmap(_choose)(is_active, lowered, opt_state)
    kept = members._replace(
        opt_state=opt_state,
        best_value=jnp.where(is_better, losses, members.best_value),
        best_step=jnp.where(is_better, state.step, members.best_step),
        num_bad_evals=jnp.where(is_better, 0, members.num_bad_evals + is_active),
    )
    return TrainState(state.step, jax.vmap(_choose)(is_better, members.params, state.params), kept)


def _is_active(members: Members, patience: int | None) -> Bool[Array, "*K"]:
    return members.num_bad_evals < (np.iinfo(np.int32).max if patience is None else patience)


def _choose(condition: Bool[Array, ""], new: Any, old: Any) -> Any:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
