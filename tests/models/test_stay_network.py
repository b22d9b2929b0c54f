"""Stay network: stated size, branches that may be absent, masks, dropout by feature and channel, learning."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ehrjax.data.stay_batching import StayBatches
from ehrjax.models.stay_network import StayNetwork
from ehrjax.objectives.supervised import make_supervised_objective
from tests.sequences import random_params
from tests.stays import NUM_SUMMARIES, NUM_TIMES, NUM_VARIABLES, make_stays

TINY = {"hidden_dim": 6, "num_ramps": 2}
LENGTHS = [1, 5, 0, 3]
GRID = ("values", "observed", "hours_since")


def make_batch(lengths=LENGTHS):
    return next(StayBatches(make_stays(lengths), batch_size=len(lengths)).eval_batches())


def make(batch, **options):
    model = StayNetwork(**{**TINY, **options})
    return model, random_params(model, batch)["params"]


def without_statics(batch):
    return batch._replace(statics=batch.statics[:, :0], summaries=batch.summaries[:, :0])


def without_grid(batch):
    empty = {name: getattr(batch, name)[:, :0] for name in (*GRID, "time_mask")}
    return batch._replace(**empty, has_vitals=np.zeros_like(batch.has_vitals))


@partial(jax.jit, static_argnums=0)
def run(model, params, batch):
    """Loss, gradients and outputs without dropout."""
    objective = make_supervised_objective(model, "binary")
    loss, grads = jax.value_and_grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
    return loss, grads, model.apply({"params": params}, batch)


@pytest.mark.parametrize(
    ("change", "pooled_dim"), [(lambda batch: batch, 18 + 256), (without_statics, 12 + 224), (without_grid, 6)]
)
def test_either_branch_may_be_absent(change, pooled_dim):
    batch = change(make_batch())
    loss, grads, outputs = run(*make(batch), batch)
    chex.assert_tree_all_finite((loss, grads, outputs))
    assert outputs.logits.shape == (4, 1) and outputs.pooled.shape == (4, pooled_dim)
    assert (outputs.hidden is None) == (change is without_grid)


def test_a_batch_with_neither_branch_is_refused():
    batch = without_statics(without_grid(make_batch()))
    with pytest.raises(ValueError, match="neither statics nor a grid"):
        StayNetwork(**TINY).init(jax.random.key(0), batch)


def test_number_of_parameters():
    num_rows, num_times, num_variables, num_statics, num_summaries = 2, 12, 37, 12, 488
    batch = make_batch([1, 1])
    grid = np.zeros((num_rows, num_times, num_variables), np.float32)
    batch = batch._replace(
        **dict.fromkeys(GRID, grid),
        time_mask=np.ones((num_rows, num_times), bool),
        statics=np.zeros((num_rows, num_statics), np.float32),
        summaries=np.zeros((num_rows, num_summaries), np.float32),
    )
    shapes = jax.eval_shape(StayNetwork().init, jax.random.key(0), batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 234_912


def test_what_a_mask_covers_and_more_padding_change_nothing():
    batch = make_batch()
    model, params = make(batch)
    padded = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 2), *((0, 0),) * (leaf.ndim - 1))), batch)
    grid = {name: np.pad(getattr(padded, name), ((0, 0), (0, 3), (0, 0))) for name in GRID}
    time_mask = np.pad(padded.time_mask, ((0, 0), (0, 3)))
    junk = ~time_mask[..., None]
    grid = {name: np.where(junk, True if name == "observed" else np.nan, array) for name, array in grid.items()}
    padded = padded._replace(**grid, time_mask=time_mask)
    loss, grads, outputs = run(model, params, batch)
    padded_loss, padded_grads, padded_outputs = run(model, params, padded)
    chex.assert_trees_all_close((loss, grads), (padded_loss, padded_grads), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(padded_outputs.logits[:4], outputs.logits, rtol=1e-5, atol=1e-6)
    assert (padded_outputs.hidden[:, NUM_TIMES:] == 0).all()


def test_each_channel_and_each_number_counts():
    batch = make_batch()
    model, params = make(batch, hidden_dim=32)

    def logit(parts):
        return model.apply({"params": params}, batch._replace(**parts)).logits[1, 0]

    parts = {name: jnp.asarray(getattr(batch, name), jnp.float32) for name in (*GRID, "statics", "summaries")}
    slopes = jax.jit(jax.grad(logit))(parts)
    assert all((slopes[name][1] != 0).all() for name in parts), jax.tree.map(lambda s: s[1], slopes)
    assert all((slopes[name][jnp.array([0, 2, 3])] == 0).all() for name in parts)


def test_a_dropped_summary_takes_its_ramps_with_it():
    batch = without_grid(make_batch())
    model, params = make(batch, dropout_rate=0.0, feature_dropout_rate=0.5, triplet_share=0.0)

    def logit(summaries, key):
        outputs = model.apply(
            {"params": params}, batch._replace(summaries=summaries), train=True, rngs={"dropout": key}
        )
        return outputs.logits.sum()

    slope = jax.jit(jax.grad(logit))
    slopes = np.stack([slope(jnp.asarray(batch.summaries), jax.random.key(seed)) for seed in range(40)])
    is_dropped = slopes == 0
    assert slopes.shape == (40, 4, NUM_SUMMARIES) and 0.3 < is_dropped.mean() < 0.7


def test_a_channel_is_dropped_at_every_time_point_or_none():
    batch = without_statics(make_batch([NUM_TIMES] * 4))
    model, params = make(batch, dropout_rate=0.0, series_dropout_rate=0.5, triplet_share=0.0)

    def logit(values):
        changed = batch._replace(values=values)
        return model.apply({"params": params}, changed, train=True, rngs={"dropout": jax.random.key(3)}).logits.sum()

    is_kept = (jax.jit(jax.grad(logit))(jnp.asarray(batch.values)) != 0).any(axis=1)
    assert is_kept.shape == (4, NUM_VARIABLES) and is_kept.any() and not is_kept.all()


def test_prediction_is_the_mean_of_both_networks_and_training_reads_one_of_them():
    batch = make_batch([NUM_TIMES] * 64)
    model, params = make(batch, dropout_rate=0.0, feature_dropout_rate=0.0, series_dropout_rate=0.0)

    @partial(jax.jit, static_argnums=0)
    def logits_of(share):
        return model.clone(triplet_share=share).apply({"params": params}, batch).logits

    mean = (2 * logits_of(1e-9) + logits_of(1.0)) / 3
    np.testing.assert_allclose(logits_of(1 / 3), mean, rtol=1e-4, atol=1e-5)

    @jax.jit
    def slopes_of(bias, key):
        def logits(bias):
            known = params | {name: params[name] | {"bias": bias[name]} for name in bias}
            return model.apply({"params": known}, batch, train=True, rngs={"dropout": key}).logits[:, 0]

        return jax.jacfwd(logits)(bias)

    bias = {name: jnp.zeros(1) for name in ("wide", "triplet_head")}
    found = [slopes_of(bias, jax.random.key(seed)) for seed in range(4)]
    slopes = np.stack([np.concatenate([each[name][:, 0] for each in found]) for name in bias])
    assert set(map(tuple, slopes.T.tolist())) == {(1.0, 0.0), (0.0, 1.0)}  # one of both, never a mixture
    assert 0.2 < slopes[1].mean() < 0.5
    absent = jax.eval_shape(model.clone(triplet_share=0.0).init, jax.random.key(0), batch)["params"]
    assert set(params) - set(absent) == {"triplets", "triplet_head"}


def test_a_share_of_one_trains_the_triplets_alone_and_more_is_refused():
    batch = make_batch()
    model, params = make(batch, triplet_share=1.0)

    def total(params):
        return model.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(0)}).logits.sum()

    slopes = jax.jit(jax.grad(total))(params)
    assert slopes["triplet_head"]["bias"] == len(batch.labels) and slopes["wide"]["bias"] == 0
    with pytest.raises(ValueError, match=r"triplet_share=1\.5 must be at least 0 and at most 1"):
        model.clone(triplet_share=1.5).init(jax.random.key(0), batch)


@pytest.mark.parametrize(
    ("share", "change"),
    [(0.0, without_grid), (0.0, without_statics), (1.0, without_statics)],
    ids=["table", "series", "triplets"],
)
def test_learns_what_only_the_middle_of_a_static_or_the_series_tells(share, change):
    """A U-shaped effect of one number, which no linear model finds, and whether one variable rises."""
    stays = make_stays([NUM_TIMES] * 64)
    is_rising = np.arange(64)[:, None] % 2 == 0
    values, observed = stays.values.copy(), stays.observed.copy()
    values[..., 0] = np.linspace(-1, 1, NUM_TIMES)[None] * np.where(is_rising, 1, -1)
    observed[..., 0] = True
    batch = StayBatches(stays, batch_size=64).collate(np.arange(64))
    is_middle = np.abs(batch.statics[:, :1]) > 0.7
    labels = (is_middle if change is without_grid else is_rising).astype(np.float32)
    batch = change(batch._replace(values=values, observed=observed, labels=labels))
    rates = {"dropout_rate": 0.0, "feature_dropout_rate": 0.0, "series_dropout_rate": 0.0}
    model = StayNetwork(hidden_dim=16, triplet_share=share, **rates)
    objective, tx = make_supervised_objective(model, "binary"), optax.adam(2e-2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: objective(p, batch, None, False).loss_sum / 64)(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
    _, losses = jax.lax.scan(step, (params, tx.init(params)), None, length=100)
    assert losses[-1] < 0.1
