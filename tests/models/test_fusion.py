"""Fusion LSTM: stated sizes, masks that let nothing through, missing modalities, modality dropout, learning."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ehrjax.data.stay_batching import StayBatches
from ehrjax.models.fusion import INPUTS, MODALITIES, FusionLstm, drop_modalities
from ehrjax.objectives.supervised import make_supervised_objective
from ehrjax.types import StayBatch
from tests.sequences import random_params
from tests.stays import NUM_TIMES, make_stays

TINY = {"hidden_dim": 6, "dropout_rate": 0.0, "modality_dropout_rate": 0.0}
LENGTHS, HAS_NOTES = [1, 5, 0, 3, 0], [True, False, True, True, False]
FORMS = [
    {},
    {"inputs": INPUTS},
    {"modalities": ("vitals",)},
    {"modalities": ("notes",)},
    {"modalities": ("notes",), "inputs": ("statics",)},
]
GRID = ("values", "observed", "hours_since")


def make_batch(lengths=LENGTHS, has_notes=HAS_NOTES, **options):
    return StayBatches(make_stays(lengths, has_notes=has_notes, **options), batch_size=len(lengths)).batch_at(0)


def make(batch, **options):
    model = FusionLstm(**{**TINY, **options})
    return model, random_params(model, batch)["params"]


def pad(batch, *, rows, times):
    """The batch with so many more rows and time points; NaN stands where a mask covers it."""
    with_times = {name: np.pad(getattr(batch, name), ((0, 0), (0, times), (0, 0))) for name in GRID}
    batch = batch._replace(time_mask=np.pad(batch.time_mask, ((0, 0), (0, times))), **with_times)
    batch = jax.tree.map(lambda leaf: np.pad(leaf, ((0, rows), *((0, 0),) * (leaf.ndim - 1))), batch)
    is_junk = ~batch.time_mask[..., None]
    return batch._replace(
        values=np.where(is_junk, np.nan, batch.values).astype(np.float32),
        hours_since=np.where(is_junk, np.nan, batch.hours_since).astype(np.float32),
        observed=batch.observed | is_junk,
        notes=np.where(batch.has_notes[:, None], batch.notes, np.nan).astype(np.float32),
        labels=np.where(batch.label_mask, batch.labels, np.nan).astype(np.float32),
    )


@partial(jax.jit, static_argnums=0)
def run(model, params, batch):
    """Loss, gradients and outputs (linen modules hash by their options, so equal ones share a compilation)."""
    objective = make_supervised_objective(model, "binary")
    loss, grads = jax.value_and_grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
    return loss, grads, model.apply({"params": params}, batch)


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


@pytest.mark.parametrize("options", FORMS)
def test_stays_that_lack_one_modality_or_both_leave_everything_finite(options):
    batch = make_batch()
    loss, grads, outputs = run(*make(batch, **options), batch)
    chex.assert_tree_all_finite((loss, grads, outputs))
    assert outputs.logits.shape == (5, 1) and outputs.pooled.shape == (5, 16)
    assert (outputs.hidden is None) == ("vitals" not in options.get("modalities", MODALITIES))


@pytest.mark.parametrize(("lengths", "has_notes"), [([0, 0], [False, False]), ([0, 0], [True, True])])
def test_a_batch_without_any_vitals_trains(lengths, has_notes):
    batch = make_batch(lengths, has_notes)
    model, params = make(batch)
    objective = make_supervised_objective(model, "binary")
    grads = jax.grad(lambda p: objective(p, batch, jax.random.key(0), True).loss_sum)(params)
    chex.assert_tree_all_finite(grads)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["lstm"]))
    assert (grads["vitals_absent"] != 0).any()
    assert (grads["notes_absent"] != 0).any() != any(has_notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modalities": ("vitals", "images")}, r"modalities=\('vitals', 'images'\) must be a tuple of some of vitals"),
        ({"modalities": ()}, r"modalities=\(\) must be"),
        ({"modalities": "vitals"}, "modalities='vitals' must be a tuple"),
        ({"inputs": ("value",)}, "some of values, observed, hours_since, statics"),
        ({"inputs": ("statics",)}, "gives the LSTM nothing: add 'values'"),
        ({"modality_dropout_rate": 0.6}, "modality_dropout_rate=0.6 must be from 0 to 0.5"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(make_batch(), **options)


def test_a_modality_that_the_source_lacks_is_refused():
    batch = make_batch()
    no_notes = batch._replace(notes=batch.notes[:, :0])
    no_grid = batch._replace(time_mask=batch.time_mask[:, :0], **{name: getattr(batch, name)[:, :0] for name in GRID})
    with pytest.raises(ValueError, match=r"no note vectors: use modalities=\('vitals',\)"):
        make(no_notes)
    with pytest.raises(ValueError, match=r"no grid of vital signs: use modalities=\('notes',\)"):
        make(no_grid)
    make(no_notes, modalities=("vitals",))
    make(no_grid, modalities=("notes",))


@pytest.mark.parametrize(
    ("modalities", "expected"), [(MODALITIES, 234_241), (("vitals",), 206_465), (("notes",), 28_353)]
)
def test_number_of_parameters(modalities, expected):
    batch = make_batch()
    grids = {name: np.zeros((5, 24, 6), getattr(batch, name).dtype) for name in GRID}
    batch = batch._replace(notes=np.zeros((5, 384), np.float32), time_mask=np.ones((5, 24), bool), **grids)
    shapes = jax.eval_shape(FusionLstm(modalities=modalities).init, jax.random.key(0), batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize("options", FORMS)
def test_padding_changes_no_logit_loss_or_gradient(options):
    batch = make_batch()
    model, params = make(batch, **options)
    loss, grads, outputs = run(model, params, batch)
    padded_loss, padded_grads, padded = run(model, params, pad(batch, rows=2, times=3))
    assert_close((padded_loss, padded_grads), (loss, grads))
    assert_close((padded.logits[:5], padded.pooled[:5]), (outputs.logits, outputs.pooled))
    if outputs.hidden is not None:
        assert_close(padded.hidden[:5, :NUM_TIMES], outputs.hidden)
        assert (padded.hidden[:, NUM_TIMES:] == 0).all()


def test_a_stay_has_the_logits_that_it_has_alone():
    stays = make_stays(LENGTHS, has_notes=HAS_NOTES)
    together = next(StayBatches(stays, batch_size=5).eval_batches())
    model, params = make(together, inputs=INPUTS)
    alone = [run(model, params, batch)[2].logits[0] for batch in StayBatches(stays, batch_size=1).eval_batches()]
    assert_close(np.stack(alone), run(model, params, together)[2].logits)


@pytest.mark.parametrize("options", [{}, {"inputs": INPUTS}])
def test_what_a_mask_covers_changes_no_bit(options):
    batch = make_batch()
    model, params = make(batch, **options)
    rng = np.random.default_rng(5)
    junk = {
        name: np.where(batch.time_mask[..., None], getattr(batch, name), rng.normal(50, 9, batch.values.shape)).astype(
            getattr(batch, name).dtype
        )
        for name in GRID
    }
    notes = np.where(batch.has_notes[:, None], batch.notes, rng.normal(50, 9, batch.notes.shape)).astype(np.float32)
    jax.tree.map(
        np.testing.assert_array_equal,
        run(model, params, batch),
        run(model, params, batch._replace(notes=notes, **junk)),
    )
    seen = batch._replace(notes=np.where(batch.has_notes[:, None], batch.notes + 1, batch.notes))
    changed = (run(model, params, seen)[2].logits != run(model, params, batch)[2].logits)[:, 0]
    np.testing.assert_array_equal(changed, batch.has_notes)


def test_vitals_count_only_where_the_stay_has_them():
    batch = make_batch([4, 4, 0], [True] * 3)
    batch = batch._replace(has_vitals=np.ones(3, bool))
    model, params = make(batch)
    hidden = run(model, params, batch)[2]
    without = run(model, params, batch._replace(has_vitals=np.zeros(3, bool)))[2]
    is_empty = ~batch.time_mask.any(axis=1)
    assert is_empty.sum() == 1 and (without.hidden == 0).all()
    # A stay that claims vital signs and has no time point is one without.
    np.testing.assert_array_equal((hidden.logits == without.logits)[:, 0], is_empty)


def test_states_do_not_change_by_a_bit_when_the_future_does():
    batch = make_batch([5, 5, 4], [True] * 3)
    model, params = make(batch, inputs=INPUTS)
    cut = 3
    later = {name: getattr(batch, name).copy() for name in GRID}
    later["values"][:, cut:] += 3
    later["observed"][:, cut:] ^= True
    later["hours_since"][:, cut:] += 9
    before, after = (run(model, params, b)[2].hidden for b in (batch, batch._replace(**later)))
    np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
    assert (before[:, cut] != after[:, cut]).any()


@pytest.mark.parametrize("name", INPUTS)
def test_the_model_reads_an_input_only_where_it_is_named(name):
    batch = make_batch([5, 5], [True, True])
    changed = batch._replace(**{name: np.asarray(getattr(batch, name) == 0, getattr(batch, name).dtype)})
    others = tuple(other for other in INPUTS if other != name)
    for inputs, is_read in ((INPUTS, True), (others, False)):
        model, params = make(batch, inputs=inputs)
        one, other = (run(model, params, b)[2].logits for b in (batch, changed))
        assert (one != other).all() == is_read


def test_modality_dropout_leaves_out_one_at_most_and_only_where_both_are():
    rng = np.random.default_rng(0)
    present = rng.random((20_000, 2)) < 0.7
    kept = np.asarray(drop_modalities(jax.random.key(1), jnp.asarray(present), rate=0.3))
    assert (kept <= present).all()
    np.testing.assert_array_equal(kept.any(axis=1), present.any(axis=1))
    both = present.all(axis=1)
    np.testing.assert_array_equal(kept[~both], present[~both])
    # 9,800 rows have both: five standard deviations of a share are 0.023.
    np.testing.assert_allclose(1 - kept[both].mean(axis=0), [0.3, 0.3], atol=0.023)
    half = drop_modalities(jax.random.key(1), jnp.ones((1000, 2), bool), rate=0.5)
    assert (half.sum(axis=1) == 1).all()
    one = jnp.ones((50, 1), bool)
    np.testing.assert_array_equal(drop_modalities(jax.random.key(1), one, rate=0.5), one)


def test_a_modality_left_out_gives_the_logits_of_a_stay_without_it():
    batch = make_batch([5] * 12, [True] * 12)
    model, params = make(batch, modality_dropout_rate=0.5)
    predict = jax.jit(partial(model.apply, {"params": params}))
    trained = jax.jit(partial(model.apply, train=True))({"params": params}, batch, rngs={"dropout": jax.random.key(3)})
    nothing = np.zeros(12, bool)
    lacking = [predict(batch._replace(**{name: nothing})).logits for name in ("has_vitals", "has_notes")]
    is_like = np.stack([np.isclose(trained.logits, logits, atol=1e-6)[:, 0] for logits in lacking])
    assert (is_like.sum(axis=0) == 1).all() and is_like.any(axis=1).all()
    assert not np.isclose(trained.logits, predict(batch).logits).any()


def test_randomness_needs_training_and_follows_its_key():
    batch = make_batch([5] * 8, [True] * 8)
    model, params = make(batch, dropout_rate=0.5)
    objective = jax.jit(make_supervised_objective(model, "binary"), static_argnums=3)
    keys = jax.random.split(jax.random.key(0))
    losses = [float(objective(params, batch, key, True).loss_sum) for key in (keys[0], keys[0], keys[1])]
    assert losses[0] == losses[1] != losses[2]
    assert float(objective(params, batch, None, False).loss_sum) not in losses


def test_one_compilation():
    batches = StayBatches(make_stays(np.arange(23) % 6), batch_size=4)
    model, params = make(batches.batch_at(0))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def forward(batch: StayBatch):
        return model.apply({"params": params}, batch).logits

    for batch in [*map(batches.batch_at, range(7)), *batches.eval_batches()]:
        assert np.isfinite(forward(batch)).all()


@pytest.mark.parametrize("modalities", [MODALITIES, ("vitals",), ("notes",)])
def test_overfits_eight_stays(modalities):
    batch = make_batch([5, 4, 3, 2] * 2, [True] * 8, seed=2)
    assert 0 < batch.labels.mean() < 1
    model = FusionLstm(**TINY | {"hidden_dim": 16}, modalities=modalities)
    objective = make_supervised_objective(model, "binary")
    tx = optax.adam(0.01)

    @jax.jit
    def train(params):
        def step(state, _):
            params, opt_state = state
            grads = jax.grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=200)[0][0]

    params = train(jax.jit(model.init)(jax.random.key(0), batch)["params"])
    result = jax.jit(objective, static_argnums=3)(params, batch, None, False)
    assert result.loss_sum / result.weight < 0.05 and result.metrics["accuracy"][0] == 8
