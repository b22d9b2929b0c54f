"""What pre-training shows an encoder of a batch: nothing it has to predict, and all the rest."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.data.token_batching import TokenBatches, count_tokens
from ehrjax.models.pretraining import HEADS, Pretraining, is_last_visit, keep_only, show_masked
from ehrjax.nn.heads import MaskedCodeHead, NextVisitHead, ProjectionHead
from ehrjax.nn.sequence_pooling import token_visits
from tests.encoders import assert_close, first_visits, make_encoder
from tests.sequences import VOCAB_SIZE, make_sequences, random_params
from tests.tokens import make_token_batch, pad_token_batch

LENGTHS = [1, 3, 2, 5, 1, 4]
BATCH = make_token_batch(LENGTHS, mask_rate=0.3, is_fresh=True)
PLAIN = BATCH._replace(masked=None, next_visits=None)
ENCODERS = ("bag", "behrt", "hierarchical", "lstm")


def make(name="bag", *, heads=None, encoder=None, **options):
    heads = heads or (HEADS[1:] if name == "lstm" else HEADS)
    model = Pretraining(make_encoder(name, **(encoder or {})), VOCAB_SIZE, heads=heads, projection_dim=3, **options)
    return model, random_params(model, PLAIN)["params"]


@partial(jax.jit, static_argnums=(0, 3))
def apply(model, params, batch, method):
    """Modules hash by their options, so equal ones share a compilation."""
    return model.apply({"params": params}, batch, method=method)


def other_codes(batch, where):
    """The batch with other codes at these tokens."""
    return batch._replace(tokens=np.where(where, 5 + (batch.tokens + 1) % (VOCAB_SIZE - 5), batch.tokens))


def test_rows_without_sequences_have_finite_outputs():
    batch = jax.tree.map(np.zeros_like, BATCH)
    batch = batch._replace(code_visits=np.full_like(batch.code_visits, -1), example_ids=batch.example_ids - 1)
    for name in ENCODERS:
        model, params = make(name)
        for method in ("masked_logits", "next_visit_logits", "pooled_next_visit_logits", "project"):
            if name != "lstm" or method != "masked_logits":
                assert np.isfinite(apply(model, params, batch, method)).all()


def test_init_from_a_plain_batch_makes_the_heads_asked_for():
    _, params = make(heads=("mlm",))
    assert set(params) == {"encoder", "mlm_head"}
    shapes = jax.tree.map(np.shape, make()[1])
    assert set(shapes) == {"encoder", "mlm_head", "next_visit_head", "projection"}
    assert shapes["mlm_head"]["dense"]["kernel"] == (6, 5) and "decoder" not in shapes["mlm_head"]
    untied = jax.tree.map(np.shape, make(tie_embeddings=False)[1])["mlm_head"]
    assert untied["dense"]["kernel"] == (6, 6) and untied["decoder"] == (VOCAB_SIZE, 6)
    assert set(make(heads=("pooled_next_visit",))[1]) == {"encoder", "next_visit_head"}


def test_calling_the_model_gives_the_outputs_of_its_encoder():
    model, params = make("behrt")
    outputs = apply(model, params, PLAIN, None)
    assert_close(outputs, apply(model.encoder, params["encoder"], PLAIN, None))


def test_a_head_that_does_not_exist_and_masked_codes_of_visits_are_refused():
    with pytest.raises(ValueError, match="heads='gpt' is not known"):
        make(heads=("gpt",))
    with pytest.raises(ValueError, match=r"VisitLstm has states of visits .* pre-train it by next_visit"):
        make("lstm", heads=("mlm",))
    model, params = make("lstm")
    with pytest.raises(ValueError, match=r"VisitLstm has states of visits .* take a model of tokens"):
        model.apply({"params": params}, BATCH, method="masked_logits")
    model, params = make()
    with pytest.raises(ValueError, match="no `masked`: build the token batches with mask_rate"):
        model.apply({"params": params}, PLAIN, method="masked_logits")


@pytest.mark.parametrize("tie", [True, False])
def test_masked_logits_are_the_head_on_the_states_of_the_shown_tokens(tie):
    model, params = make(tie_embeddings=tie)
    logits = apply(model, params, BATCH, "masked_logits")
    tokens = BATCH.tokens.copy()
    for row, slot in np.argwhere(BATCH.masked.mask):
        tokens[row, BATCH.masked.positions[row, slot]] = BATCH.masked.shown[row, slot]
    states = model.encoder.apply({"params": params["encoder"]}, BATCH._replace(tokens=tokens), causal=False).tokens
    table = params["encoder"]["embedding"]["embedding"] if tie else None
    every = np.asarray(MaskedCodeHead(VOCAB_SIZE).apply({"params": params["mlm_head"]}, states, table))
    for row, slot in np.argwhere(BATCH.masked.mask):
        np.testing.assert_allclose(logits[row, slot], every[row, BATCH.masked.positions[row, slot]], rtol=1e-4)


def test_padding_slots_leave_the_first_token_alone():
    padded = pad_token_batch(BATCH, masked=2)
    np.testing.assert_array_equal(show_masked(padded, padded.masked).tokens, show_masked(BATCH, BATCH.masked).tokens)
    assert (show_masked(padded, padded.masked).tokens[:, 0] == BATCH.tokens[:, 0]).all()


@pytest.mark.parametrize("name", ENCODERS[:3])
def test_true_tokens_never_reach_the_input(name):
    model, params = make(name)
    columns = np.where(BATCH.masked.mask, BATCH.masked.positions, -1)
    is_masked = (columns[:, :, None] == np.arange(BATCH.tokens.shape[1])).any(1)
    assert is_masked.sum() == BATCH.masked.mask.sum() > 5
    before = apply(model, params, BATCH, "masked_logits")
    np.testing.assert_array_equal(apply(model, params, other_codes(BATCH, is_masked), "masked_logits"), before)
    shown = BATCH.masked._replace(shown=5 + (BATCH.masked.shown + 3) % 15)
    assert (apply(model, params, BATCH._replace(masked=shown), "masked_logits") != before).any()


@pytest.mark.parametrize("name", ENCODERS)
def test_next_visit_logits_do_not_change_by_a_bit_when_the_future_does(name):
    model, params = make(name)
    before = apply(model, params, BATCH, "next_visit_logits")
    cut = 2
    is_future = np.arange(BATCH.visit_mask.shape[1])[None] >= cut
    changed = other_codes(BATCH, BATCH.code_visits >= cut)
    changed = changed._replace(
        visit_ages=np.where(is_future, 1.0, BATCH.visit_ages).astype(np.float32),
        visit_gap_days=np.where(is_future, 999.0, BATCH.visit_gap_days).astype(np.float32),
        ages=np.where(BATCH.code_visits >= cut, 3, BATCH.ages),
    )
    after = apply(model, params, changed, "next_visit_logits")
    np.testing.assert_array_equal(after[:, :cut], before[:, :cut])
    assert (after[:, cut:] != before[:, cut:]).any()


@pytest.mark.parametrize(
    ("name", "pooling"), [("bag", "mean"), ("behrt", "last"), ("behrt", "max"), ("hierarchical", "mean"), ("lstm", "")]
)
def test_pooled_history_is_the_record_without_its_last_visit(name, pooling):
    model, params = make(name, encoder={"pooling": pooling} if pooling else {})
    logits = apply(model, params, BATCH, "pooled_next_visit_logits")
    last = np.asarray(is_last_visit(BATCH))
    in_last = (BATCH.code_visits >= 0) & np.take_along_axis(last, np.maximum(BATCH.code_visits, 0), axis=1)
    changed = other_codes(BATCH, in_last)._replace(visit_ages=np.where(last, 1, BATCH.visit_ages).astype(np.float32))
    assert (changed.tokens != BATCH.tokens).any()
    np.testing.assert_array_equal(apply(model, params, changed, "pooled_next_visit_logits"), logits)
    short = first_visits(make_sequences(LENGTHS), [length - 1 for length in LENGTHS])
    alone = TokenBatches(short, row_tokens=int(count_tokens(short).max()), batch_size=9).batch_at(0)
    states = apply(model.encoder, params["encoder"], alone, None).pooled
    expected = NextVisitHead(VOCAB_SIZE).apply({"params": params["next_visit_head"]}, states)
    numbers = np.flatnonzero(np.array(LENGTHS) > 1)
    for row, slot in np.argwhere(alone.example_ids >= 0):
        here = BATCH.example_ids == numbers[alone.example_ids[row, slot]]
        np.testing.assert_allclose(logits[here][0], expected[row, slot], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bag", "lstm"])
def test_projection_reads_the_mean_code_or_the_pooled_visits(name):
    model, params = make(name, encoder={"causal": False} if name == "bag" else None)
    outputs = apply(model.encoder, params["encoder"], BATCH, None)
    pooled = np.asarray(outputs.pooled).copy()
    if name == "bag":
        for row, slot in np.argwhere(BATCH.example_ids >= 0):
            own = (BATCH.segment_ids[row] == slot + 1) & (BATCH.code_visits[row] >= 0)
            pooled[row, slot] = np.asarray(outputs.tokens)[row, own].mean(0) if own.any() else 0
        pooled[BATCH.example_ids < 0] = 0
    expected = ProjectionHead(3).apply({"params": params["projection"]}, jnp.asarray(pooled))
    np.testing.assert_allclose(apply(model, params, BATCH, "project"), expected, rtol=1e-4, atol=1e-6)


def test_token_visits_counts_a_separator_to_the_visit_it_closes():
    visits = np.asarray(token_visits(BATCH))
    for row in range(len(BATCH.tokens)):
        expected = np.full(BATCH.tokens.shape[1], -1)
        column = -1
        for t in np.flatnonzero(BATCH.segment_ids[row])[::-1]:  # backwards, a [SEP] opens its visit
            if BATCH.tokens[row, t] == 4:
                column = int(np.flatnonzero((BATCH.visit_ends[row] == t) & BATCH.visit_mask[row])[0])
            expected[t] = -1 if BATCH.tokens[row, t] == 3 else column
        np.testing.assert_array_equal(visits[row], expected)


def test_keep_only_turns_the_rest_into_padding():
    rng = np.random.default_rng(0)
    visits, codes = rng.random(BATCH.visit_mask.shape) < 0.5, rng.random(BATCH.tokens.shape) < 0.5
    kept = jax.tree.map(np.asarray, keep_only(PLAIN, visits=visits, codes=codes))
    owners = np.asarray(token_visits(BATCH))
    stays = np.where(owners < 0, True, np.take_along_axis(visits, np.maximum(owners, 0), 1))
    stays &= codes | (BATCH.code_visits < 0)
    assert 0 < stays.sum() < stays.size
    for name in ("tokens", "ages", "visit_ids", "positions", "segment_ids"):
        np.testing.assert_array_equal(getattr(kept, name), np.where(stays, getattr(BATCH, name), 0))
    np.testing.assert_array_equal(kept.code_visits, np.where(stays, BATCH.code_visits, -1))
    np.testing.assert_array_equal(kept.visit_mask, visits & BATCH.visit_mask)
    np.testing.assert_array_equal(kept.visit_segments, np.where(visits, BATCH.visit_segments, 0))
    everything = jax.tree.map(np.asarray, keep_only(PLAIN, visits=np.ones_like(visits)))
    chex.assert_trees_all_equal(everything, PLAIN)


def test_left_out_visits_do_not_exist_for_any_model():
    sequences = make_sequences([4], max_codes=3)
    whole = TokenBatches(sequences, row_tokens=20, batch_size=1).batch_at(0)
    start = np.array([[True, True, False, False]])
    short = first_visits(sequences, [2])
    alone = TokenBatches(short, row_tokens=20, batch_size=1).batch_at(0)
    for name in ENCODERS:
        model, params = make(name)
        kept = apply(model, params, keep_only(whole, visits=start), "next_visit_logits")
        assert_close(kept[:, :2], apply(model, params, alone, "next_visit_logits"))


def test_heads_compute_in_the_type_of_the_states_and_return_float32():
    states = jnp.ones((2, 4), jnp.bfloat16)
    for head in (MaskedCodeHead(7), NextVisitHead(7), ProjectionHead(7)):
        params = random_params(head, states)
        result = head.apply(params, states)
        assert result.dtype == jnp.float32 and result.shape == (2, 7)
        np.testing.assert_allclose(result, head.apply(params, states.astype(jnp.float32)), rtol=0.1, atol=0.1)


def test_value_bins_are_read_and_their_code_is_predicted():
    code_tokens = np.arange(VOCAB_SIZE)
    code_tokens[6] = 5  # two bins of one code
    model, params = make(code_tokens=tuple(code_tokens.tolist()))
    for method in ("masked_logits", "next_visit_logits", "pooled_next_visit_logits"):
        logits = np.asarray(apply(model, params, BATCH, method))
        assert (logits[..., 6] < -1e29).all(), "a bin is never predicted"
        assert (np.abs(np.delete(logits, 6, axis=-1)) < 1e3).all()
    assert model.predicted_as(np.array([[5, 6, 7]])).tolist() == [[5, 5, 7]]
