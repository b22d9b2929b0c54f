"""Contrast: NT-Xent by hand, what a view keeps, and chunks that change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.models.pretraining import Pretraining
from ehrjax.objectives.contrastive import draw_view, has_codes, make_contrastive_objective, nt_xent
from tests.encoders import assert_close, fit, loss_and_grads, make_encoder
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch, pad_token_batch

RNG = np.random.default_rng(0)
BATCH = make_token_batch([1, 3, 2, 7, 4, 6], seed=1)
TEMPERATURE = 0.3


def make(name="bag", **options):
    model = Pretraining(make_encoder(name, **options), VOCAB_SIZE, heads=("contrastive",), projection_dim=3)
    return model, random_params(model, BATCH)["params"]


def contrast(one, other, is_real):
    return jax.jit(lambda *args: nt_xent(*args, temperature=TEMPERATURE))(one, other, np.asarray(is_real))


def naive(one, other):
    """Loss and hits by a loop over all views."""
    views = np.concatenate([one, other]).astype(np.float64)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    loss, hits, num = 0.0, 0, len(one)
    for i, view in enumerate(views):
        partner = (i + num) % (2 * num)
        similarity = np.exp(views @ view / TEMPERATURE)
        similarity[i] = 0
        loss -= np.log(similarity[partner] / similarity.sum())
        hits += similarity.argmax() == partner
    return loss, hits


@pytest.mark.parametrize("num_real", [0, 1])
def test_fewer_than_two_sequences_have_no_weight_and_finite_gradients(num_real):
    is_real = np.arange(4) < num_real
    vectors = jnp.zeros((4, 3)).at[0].set(1.0)
    output, grads = jax.value_and_grad(lambda x: contrast(x, x, is_real)[:2], has_aux=True)(vectors)
    assert output == (0, 0) and (grads == 0).all()


def test_a_batch_of_padding_has_no_weight_and_finite_gradients():
    batch = jax.tree.map(np.zeros_like, BATCH)
    batch = batch._replace(code_visits=np.full_like(batch.code_visits, -1), example_ids=batch.example_ids * 0 - 1)
    model, params = make()
    output, grads = loss_and_grads(make_contrastive_objective(model), params, batch)
    assert output.loss_sum == output.weight == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_options_out_of_range_are_refused():
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        make_contrastive_objective(None, temperature=0)
    with pytest.raises(ValueError, match=r"keep_rate=1.5 must be above 0 and at most 1"):
        make_contrastive_objective(None, keep_rate=1.5)
    model, params = make()
    rows = 2 * len(BATCH.tokens)
    with pytest.raises(ValueError, match=f"chunk_rows={rows - 1} must divide the {rows} rows"):
        make_contrastive_objective(model, chunk_rows=rows - 1)(params, BATCH, None, False)


def test_loss_is_that_of_a_loop_over_views_and_padding_is_in_no_sum():
    one, other = RNG.normal(size=(2, 7, 4)).astype(np.float32)
    other = other + 1.5 * one
    is_real = np.array([1, 0, 1, 1, 0, 1, 1], bool)
    result = contrast(one, other, is_real)
    loss, hits = naive(one[is_real], other[is_real])
    np.testing.assert_allclose(result.loss_sum, loss, rtol=1e-5)
    assert result.weight == 10 and 0 < hits < 10
    assert result.metrics["contrastive_accuracy"] == (hits, 10)
    junk = np.where(is_real[:, None], one, 1e3)
    np.testing.assert_allclose(contrast(junk, other, is_real).loss_sum, result.loss_sum, rtol=1e-6)
    np.testing.assert_allclose(contrast(other, one, is_real).loss_sum, result.loss_sum, rtol=1e-6)


def test_identical_views_of_orthogonal_sequences_have_the_known_loss():
    result = contrast(*[2 * np.eye(3, dtype=np.float32)] * 2, [True] * 3)
    np.testing.assert_allclose(result.loss_sum / 6, np.log(1 + 4 * np.exp(-1 / TEMPERATURE)), rtol=1e-5)
    assert result.metrics["contrastive_accuracy"][0] == 6


def test_vectors_that_are_all_alike_find_nobody():
    result = contrast(*[np.ones((3, 4), np.float32)] * 2, [True] * 3)
    np.testing.assert_allclose(result.loss_sum / 6, np.log(5), rtol=1e-5)
    assert result.metrics["contrastive_accuracy"][0] == 0


def test_a_view_is_a_run_of_at_least_half_of_the_visits():
    lengths = {}
    draw = jax.jit(lambda key: draw_view(BATCH, key, keep_rate=1.0))
    for seed in range(40):
        view = jax.tree.map(np.asarray, draw(jax.random.key(seed)))
        for row, slot in np.argwhere(BATCH.example_ids >= 0):
            columns = np.flatnonzero(BATCH.visit_segments[row] == slot + 1)
            kept = np.flatnonzero(view.visit_segments[row] == slot + 1)
            assert len(kept) >= len(columns) / 2 and (np.diff(kept) == 1).all() and view.visit_mask[row, kept].all()
            codes = (BATCH.segment_ids[row] == slot + 1) & np.isin(BATCH.code_visits[row], kept)
            np.testing.assert_array_equal((view.segment_ids[row] == slot + 1) & (view.code_visits[row] >= 0), codes)
            lengths.setdefault(len(columns), set()).add((len(kept), kept[0] - columns[0]))
    assert lengths[1] == {(1, 0)} and lengths[2] == {(1, 0), (1, 1), (2, 0)}
    assert lengths[7] == {(n, start) for n in range(4, 8) for start in range(8 - n)}


def test_views_keep_their_share_of_codes_and_all_separators_of_their_visits():
    counts = np.zeros(2)
    draw = jax.jit(lambda key: draw_view(BATCH, key, keep_rate=0.7))
    for seed in range(40):
        view = jax.tree.map(np.asarray, draw(jax.random.key(seed)))
        shown = np.take_along_axis(view.visit_mask, np.maximum(BATCH.code_visits, 0), 1) & (BATCH.code_visits >= 0)
        counts += (view.code_visits >= 0).sum(), shown.sum()
        assert ((view.tokens == 4).sum(1) == view.visit_mask.sum(1)).all()
    # 40 draws of some 30 codes: a standard error of about 0.015.
    assert abs(counts[0] / counts[1] - 0.7) < 0.06


def test_sequences_without_a_code_are_not_compared():
    is_gone = (BATCH.segment_ids == 1) & (BATCH.code_visits >= 0)
    batch = BATCH._replace(code_visits=np.where(is_gone, -1, BATCH.code_visits))
    expected = np.asarray(has_codes(BATCH)).copy()
    assert expected[:, 0].all()
    expected[:, 0] = False
    np.testing.assert_array_equal(has_codes(batch), expected)
    assert not np.asarray(has_codes(pad_token_batch(BATCH, rows=1, slots=1)))[-1].any()


@pytest.mark.parametrize("name", ["bag", "lstm"])
def test_chunks_give_the_loss_and_gradients_of_the_whole(name):
    model, params = make(name)
    whole = loss_and_grads(make_contrastive_objective(model), params, BATCH)
    assert whole[0].weight > 6
    assert_close(loss_and_grads(make_contrastive_objective(model, chunk_rows=2), params, BATCH), whole)


def test_views_and_dropout_follow_the_key():
    model, params = make("lstm", dropout_rate=0.5)
    objective = jax.jit(make_contrastive_objective(model, chunk_rows=2), static_argnums=3)
    keys = jax.random.split(jax.random.key(3))
    losses = [float(objective(params, BATCH, key, True).loss_sum) for key in (keys[0], keys[0], keys[1])]
    assert losses[0] == losses[1] != losses[2]
    assert float(objective(params, BATCH, keys[0], False).loss_sum) != losses[0]


@pytest.mark.parametrize("name", ["bag", "behrt", "hierarchical"])
def test_gradients_reach_the_encoder_and_stay_finite(name):
    model, params = make(name)
    grads = loss_and_grads(make_contrastive_objective(model), params, BATCH)[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert (grads["encoder"]["embedding"]["embedding"][5:] != 0).any()


def test_patients_learn_to_find_their_own_views():
    model, params = make(width=12)
    objective = make_contrastive_objective(model, keep_rate=0.9)
    before = loss_and_grads(objective, params, BATCH)[0]
    after = fit(objective, params, BATCH, steps=150)[1]
    assert after.loss_sum < 0.5 * before.loss_sum
    assert after.metrics["contrastive_accuracy"][0] > before.metrics["contrastive_accuracy"][0]
