"""The visit LSTM: stated sizes, padding invariance, causality, losses patient by patient, learning."""

from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest

from ehrjax.data.batching import VisitBatches
from ehrjax.data.packing import pack_visits
from ehrjax.models.visit_lstm import SIZES, VisitLstm, in_visit_order
from ehrjax.nn.pooling import POOLINGS
from ehrjax.objectives.supervised import make_supervised_objective
from tests.sequences import VOCAB_SIZE, make_sequences, pad_batch, random_params
from tests.tokens import make_token_batch

TINY = {"embed_dim": 4, "hidden_dim": 6, "num_layers": 2, "dropout_rate": 0.0}
LENGTHS = [1, 4, 2, 6, 3]


def make(batch, **options):
    model = VisitLstm(VOCAB_SIZE, **{**TINY, **options})
    return model, random_params(model, batch)["params"]


@partial(jax.jit, static_argnums=0)
def run(model, params, batch):
    """Loss, gradients and logits (linen modules hash by their options, so equal ones share a compilation)."""
    objective = make_supervised_objective(model, "binary")
    loss, grads = jax.value_and_grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
    return loss, grads, model.apply({"params": params}, batch).logits


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, other)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_empty_visits_and_an_empty_row_leave_gradients_finite(pooling):
    sequences = make_sequences(LENGTHS, max_codes=1)
    assert (np.diff(sequences.visit_offsets) == 0).any()
    batch = pad_batch(VisitBatches(sequences, batch_size=8).batch_at(0), rows=1)
    chex.assert_tree_all_finite(run(*make(batch, pooling=pooling, num_layers=1), batch))


def test_options_that_do_not_exist_or_leak_are_refused():
    batch = VisitBatches(make_sequences(LENGTHS), batch_size=8).batch_at(0)
    with pytest.raises(ValueError, match="level='day' is not known"):
        make(batch, level="day")
    with pytest.raises(ValueError, match="read later visits"):
        make(batch, level="visit", bidirectional=True)


@pytest.mark.parametrize(("size", "expected"), [("small", 522_497), ("medium", 3_930_625), ("large", 23_593_985)])
def test_number_of_parameters(size, expected):
    batch = VisitBatches(make_sequences([2]), batch_size=1).batch_at(0)
    shapes = jax.eval_shape(VisitLstm(1000, **SIZES[size]).init, jax.random.key(0), batch)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "attention", "bidirectional": True},
        {"level": "visit", "use_time_features": True, "num_layers": 1},
    ],
)
def test_padding_changes_no_logit_loss_or_gradient(options):
    level = options.get("level", "patient")
    sequences = make_sequences(LENGTHS, level=level)
    together = VisitBatches(sequences, batch_size=5, level=level).batch_at(0)
    model, params = make(together, **options)
    loss, grads, logits = run(model, params, together)
    alone = VisitBatches(sequences, batch_size=1, level=level, num_buckets=1).eval_batches()
    width = together.codes.shape[1] + 5
    padded = [pad_batch(batch, rows=2, visits=3, codes=width - batch.codes.shape[1]) for batch in alone]
    results = {int(batch.example_ids[0]): run(model, params, batch) for batch in padded}
    assert_close(jax.tree.map(lambda *parts: sum(parts), *[r[:2] for r in results.values()]), (loss, grads))
    for row, example in enumerate(together.example_ids):
        own, length = results[example][2][0], LENGTHS[example]
        assert_close(*((own, logits[row]) if level == "patient" else (own[:length], logits[row, :length])))


@pytest.mark.parametrize("level", ["patient", "visit"])
def test_packed_rows_give_the_loss_and_gradient_of_single_patients(level):
    sequences = make_sequences(LENGTHS, level=level)
    single = VisitBatches(sequences, batch_size=5, level=level, num_buckets=1).batch_at(0)
    packed = pack_visits(sequences, level=level)
    assert len(packed.offsets) - 1 < len(LENGTHS)
    rows = VisitBatches(packed.sequences, batch_size=5, level="visit", num_buckets=1).batch_at(0)
    options = {"use_time_features": True, "pooling": "attention"}
    model, params = make(single, level=level, **options)
    in_rows, _ = make(rows, level="visit", **options)
    assert_close(run(in_rows, params, rows)[:2], run(model, params, single)[:2])


def test_packed_rows_have_no_patient_level():
    packed = pack_visits(make_sequences(LENGTHS))
    with pytest.raises(ValueError, match="holds several patients"):
        make(VisitBatches(packed.sequences, batch_size=5, level="visit").batch_at(0))


def test_visit_logits_do_not_change_by_a_bit_when_the_future_does():
    batch = VisitBatches(make_sequences(LENGTHS, level="visit"), batch_size=5, level="visit").batch_at(0)
    model, params = make(batch, level="visit", use_time_features=True, pooling="attention")
    forward = jax.jit(model.apply)
    cut = 2
    is_future = np.arange(batch.visit_mask.shape[1]) >= cut
    changed = batch._replace(
        codes=np.where(batch.code_visits >= cut, 5 + (batch.codes + 1) % (VOCAB_SIZE - 5), batch.codes),
        ages=np.where(is_future, 1.0, batch.ages),
        gap_days=np.where(is_future, 999.0, batch.gap_days),
    )
    before, after = (np.asarray(forward({"params": params}, b).logits) for b in (batch, changed))
    np.testing.assert_array_equal(before[:, :cut], after[:, :cut])
    assert (before[:, cut:] != after[:, cut:]).any()


def test_time_features_add_parameters_only_when_on():
    batch = VisitBatches(make_sequences(LENGTHS), batch_size=5).batch_at(0)
    counts = [sum(leaf.size for leaf in jax.tree.leaves(make(batch, use_time_features=on)[1])) for on in (False, True)]
    assert counts[1] - counts[0] == 8 * TINY["hidden_dim"]


def test_dropout_needs_training_and_follows_its_key():
    batch = VisitBatches(make_sequences(LENGTHS), batch_size=5).batch_at(0)
    model, params = make(batch, dropout_rate=0.5, num_layers=1)
    objective = jax.jit(make_supervised_objective(model, "binary"), static_argnums=3)
    keys = jax.random.split(jax.random.key(0))
    losses = [float(objective(params, batch, key, True).loss_sum) for key in (keys[0], keys[0], keys[1])]
    assert losses[0] == losses[1] != losses[2]
    assert float(objective(params, batch, None, False).loss_sum) not in losses


def test_one_compilation_a_bucket():
    batches = VisitBatches(make_sequences(np.arange(1, 25)), batch_size=4, num_buckets=1)
    model, params = make(batches.batch_at(0))

    @jax.jit
    @chex.assert_max_traces(n=len(batches.shapes))
    def forward(batch):
        return model.apply({"params": params}, batch).logits

    for step in range(3 * batches.num_batches_per_epoch):
        assert np.isfinite(forward(batches.batch_at(step))).all()


def test_token_rows_come_in_the_order_that_poolings_count_on():
    rows = make_token_batch(LENGTHS)
    batch = in_visit_order(rows)
    for row in range(len(rows.tokens)):
        is_code = rows.code_visits[row] >= 0
        num = is_code.sum()
        np.testing.assert_array_equal(batch.codes[row, :num], rows.tokens[row, is_code])
        np.testing.assert_array_equal(batch.code_visits[row, :num], rows.code_visits[row, is_code])
        assert (batch.code_visits[row, num:] == -1).all()
        np.testing.assert_array_equal(np.sort(batch.codes[row]), np.sort(rows.tokens[row]))


@pytest.mark.parametrize(
    "options",
    [{"pooling": "max", "bidirectional": True}, {"pooling": "attention", "use_time_features": True, "level": "visit"}],
)
def test_token_rows_give_the_outputs_of_single_patients(options):
    level = options.get("level", "patient")
    sequences = make_sequences(LENGTHS, level=level)
    single = VisitBatches(sequences, batch_size=5, level=level, num_buckets=1).batch_at(0)
    rows = make_token_batch(LENGTHS, level=level)
    assert len(rows.tokens) < len(LENGTHS)
    model, params = make(single, num_layers=1, **options)
    alone, packed = (jax.jit(model.apply)({"params": params}, batch) for batch in (single, rows))
    for row, slot in np.argwhere(rows.example_ids >= 0):
        patient = int(np.flatnonzero(single.example_ids == rows.example_ids[row, slot])[0])
        own = rows.visit_segments[row] == slot + 1
        assert_close(packed.hidden[row, own], alone.hidden[patient, : own.sum()])
        assert_close(packed.pooled[row, slot], alone.pooled[patient])
        if level == "patient":
            assert_close(packed.logits[row, slot], alone.logits[patient])
        else:
            assert_close(packed.logits[row, own], alone.logits[patient, : own.sum()])
    assert (packed.pooled[rows.example_ids < 0] == 0).all() and (rows.example_ids < 0).any()


def test_without_outputs_there_is_no_head():
    rows = make_token_batch(LENGTHS)
    model, params = make(rows, num_outputs=0)
    assert "head" not in params and model.apply({"params": params}, rows).logits is None


def test_a_direction_that_the_model_does_not_read_in_is_refused():
    rows = make_token_batch(LENGTHS)
    model, params = make(rows)
    with pytest.raises(ValueError, match="causal=False needs an LSTM that reads both ways"):
        model.apply({"params": params}, rows, causal=False)
    outputs = [model.apply({"params": params}, rows, causal=causal).hidden for causal in (None, True)]
    np.testing.assert_array_equal(*outputs)
    model, params = make(rows, bidirectional=True)
    with pytest.raises(ValueError, match="its states read later visits"):
        model.apply({"params": params}, rows, causal=True)
    outputs = [model.apply({"params": params}, rows, causal=causal).hidden for causal in (None, False)]
    np.testing.assert_array_equal(*outputs)


def test_overfits_eight_patients():
    batch = VisitBatches(make_sequences([1, 2, 3, 4] * 2, seed=2), batch_size=8).batch_at(0)
    assert 0 < batch.labels.mean() < 1
    model, params = make(batch, num_layers=1, hidden_dim=16)
    objective = make_supervised_objective(model, "binary")
    tx = optax.adam(0.03)

    @jax.jit
    def train(params):
        def step(state, _):
            params, opt_state = state
            grads = jax.grad(lambda p: objective(p, batch, None, False).loss_sum)(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=120)[0][0]

    result = jax.jit(objective, static_argnums=3)(train(params), batch, None, False)
    assert result.loss_sum / result.weight < 0.05 and result.metrics["accuracy"][0] == 8
