"""Med2Vec: visit vectors against a loop, running means, packing, causality, the context table only when asked."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.models.med2vec import SIZES, Med2Vec
from tests.models.test_hierarchical import all_padding, only
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch, pad_token_batch

VISITS = [1, 4, 2, 6, 3]


def make(batch, **options):
    model = Med2Vec(VOCAB_SIZE, **{"embed_dim": 4, "dropout_rate": 0.0, **options})
    return model, random_params(model, batch)["params"]


@partial(jax.jit, static_argnums=(0, 3))
def forward(model, params, batch, causal=None):
    return model.apply({"params": params}, batch, causal=causal)


def test_nothing_but_padding_and_visits_without_codes_are_finite():
    batch = make_token_batch(VISITS, max_codes=1)
    model, params = make(batch, num_outputs=1)
    empty = all_padding(batch)
    outputs = forward(model, params, empty)
    assert all((getattr(outputs, name) == 0).all() for name in ("tokens", "hidden", "pooled"))
    gradient = jax.jit(jax.grad(lambda p, b: jnp.square(model.apply({"params": p}, b).logits).sum()))
    for inputs in (batch, empty):
        chex.assert_tree_all_finite(gradient(params, inputs))


def test_vectors_equal_a_loop_over_visits():
    batch = make_token_batch(VISITS, row_tokens=40)
    model, params = make(batch)
    table = params["embedding"]["embedding"]
    visits, causal = forward(model, params, batch, False).hidden, forward(model, params, batch)
    num_empty = 0
    for row, slot in np.argwhere(batch.example_ids >= 0):
        expected = []
        for visit in np.nonzero(batch.visit_segments[row] == slot + 1)[0]:
            codes = table[batch.tokens[row][batch.code_visits[row] == visit]]
            num_empty += not len(codes)
            expected.append(np.maximum(codes.mean(0), 0) if len(codes) else np.zeros(4, np.float32))
            np.testing.assert_allclose(visits[row, visit], expected[-1], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(causal.hidden[row, visit], np.mean(expected, 0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(causal.pooled[row, slot], np.mean(expected, 0), rtol=1e-5, atol=1e-6)
    assert num_empty
    is_code = batch.code_visits >= 0
    np.testing.assert_array_equal(causal.tokens[is_code], table[batch.tokens[is_code]])
    assert (causal.tokens[~is_code] == 0).all()


def test_packed_alone_and_padded_give_the_same():
    batch = make_token_batch(VISITS, row_tokens=40)
    model, params = make(batch, num_outputs=2)
    together = forward(model, params, batch)
    for row, slot in np.argwhere(batch.example_ids >= 0):
        alone = forward(model, params, only(batch, row, slot + 1))
        np.testing.assert_allclose(together.logits[row, slot], alone.logits[0, 0], atol=1e-6)
    padded = forward(model, params, pad_token_batch(batch, rows=1, tokens=3, visits=2, slots=1))
    np.testing.assert_allclose(padded.pooled[:-1, :-1], together.pooled, atol=1e-6)
    assert (padded.pooled[:, -1] == 0).all() and (padded.hidden[-1] == 0).all()


def test_no_bit_before_a_visit_moves_when_it_changes():
    batch = make_token_batch([6, 2], level="visit", row_tokens=60)
    model, params = make(batch, level="visit", num_outputs=1)
    column = 3
    in_future = batch.code_visits >= column
    changed = batch._replace(tokens=np.where(in_future, 5 + (batch.tokens + 1) % (VOCAB_SIZE - 5), batch.tokens))
    before, after = forward(model, params, batch).logits, forward(model, params, changed).logits
    np.testing.assert_array_equal(before[:, :column], after[:, :column])
    assert (before[:, column:] != after[:, column:]).any()


@pytest.mark.parametrize(("size", "expected"), [("small", 64_000), ("medium", 128_000), ("large", 256_000)])
def test_number_of_parameters_doubles_with_the_context_table(size, expected):
    batch = make_token_batch([2])
    for with_context in (False, True):
        model = Med2Vec(1000, **SIZES[size], with_context=with_context)
        params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected * (1 + with_context)
        assert ("context" in params) == with_context


def test_options_that_do_not_exist_or_mean_nothing_are_refused():
    batch = make_token_batch([2])
    for options, message in (
        ({"level": "day"}, "level='day' is not known"),
        ({"pooling": "max"}, "pooling='max' is not known here: use one of last, mean"),
        ({"level": "visit", "causal": False}, "nothing but that visit"),
    ):
        with pytest.raises(ValueError, match=message):
            make(batch, **options)
