"""The hierarchical transformer: empty visits, packing, causality, linear cost, stated sizes."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.models.hierarchical import SIZES, Hierarchical, VisitBlock, attend_by_visit, time_waves
from ehrjax.types import TokenBatch
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch, pad_token_batch

TINY = {
    "embed_dim": 4,
    "hidden_dim": 8,
    "num_visit_layers": 1,
    "num_sequence_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
}
VISITS = [1, 4, 2, 6, 3]


def make(batch, **options):
    model = Hierarchical(VOCAB_SIZE, **{**TINY, **options})
    return model, random_params(model, batch)["params"]


@partial(jax.jit, static_argnums=(0, 3))
def forward(model, params, batch, causal=None):
    return model.apply({"params": params}, batch, causal=causal)


def squares(outputs):
    return sum(jnp.square(getattr(outputs, name)).sum() for name in ("tokens", "hidden", "pooled"))


@partial(jax.jit, static_argnums=0)
def gradients(model, params, batch):
    return jax.grad(lambda p: squares(model.apply({"params": p}, batch)))(params)


def only(batch, row, segment):
    """One sequence of a packed row in a row of its own, padded to the shape of the batch with one slot."""
    tokens, visits = batch.segment_ids[row] == segment, batch.visit_segments[row] == segment
    first_token, first_visit = np.argmax(tokens), np.argmax(visits)

    def cut(array, keep):
        return array[row : row + 1, keep]

    own = batch._replace(
        **{name: cut(getattr(batch, name), tokens) for name in ("tokens", "ages", "visit_ids", "positions")},
        segment_ids=cut(batch.segment_ids, tokens) // segment,
        code_visits=np.where(cut(batch.code_visits, tokens) < 0, -1, cut(batch.code_visits, tokens) - first_visit),
        visit_ends=cut(batch.visit_ends, visits) - first_token,
        visit_segments=cut(batch.visit_segments, visits) // segment,
        **{name: cut(getattr(batch, name), visits) for name in ("visit_mask", "visit_ages", "visit_gap_days")},
        **{name: getattr(batch, name)[row : row + 1, segment - 1 : segment] for name in ("labels", "label_mask")},
        example_mask=batch.example_mask[row : row + 1],
        example_ids=batch.example_ids[row : row + 1, segment - 1 : segment],
    )
    more_tokens = batch.tokens.shape[1] - own.tokens.shape[1]
    return pad_token_batch(own, tokens=more_tokens, visits=batch.visit_mask.shape[1] - own.visit_mask.shape[1])


def all_padding(batch):
    """The batch's shape without a single sequence in it."""
    empty = jax.tree.map(np.zeros_like, batch)
    return empty._replace(code_visits=empty.code_visits - 1, example_ids=empty.example_ids - 1)


def test_empty_visits_and_rows_of_padding_leave_everything_finite():
    batch = make_token_batch(VISITS, max_codes=1)
    has_codes = np.zeros(batch.visit_mask.shape, bool)
    rows, columns = np.nonzero(batch.code_visits >= 0)
    has_codes[rows, batch.code_visits[rows, columns]] = True
    empty = batch.visit_mask & ~has_codes
    assert empty.any()
    batch = pad_token_batch(batch, rows=1)
    model, params = make(batch)
    outputs = forward(model, params, batch)
    chex.assert_tree_all_finite((outputs, gradients(model, params, batch)))
    assert (np.abs(outputs.hidden[:-1][empty]).sum(-1) > 0).all()
    assert (outputs.hidden[-1] == 0).all() and (outputs.pooled[-1] == 0).all() and (outputs.tokens[-1] == 0).all()


def test_a_batch_of_nothing_but_padding_is_zeros():
    batch = all_padding(make_token_batch(VISITS))
    model, params = make(batch)
    outputs = forward(model, params, batch)
    assert all((getattr(outputs, name) == 0).all() for name in ("tokens", "hidden", "pooled"))
    chex.assert_tree_all_finite(gradients(model, params, batch))


def test_attention_equals_a_loop_over_visits_and_heads():
    rng = np.random.default_rng(0)
    code_visits = np.array([[-1, 0, 0, -1, -1, 2, 2, 2, -1]])
    scores = (50 * rng.normal(size=(1, 9, 2))).astype(np.float32)
    values = rng.normal(size=(1, 9, 6)).astype(np.float32)
    pooled = attend_by_visit(scores, values, code_visits, 4)
    expected = np.zeros((1, 4, 6), np.float32)
    for visit in (0, 2):
        found = np.nonzero(code_visits[0] == visit)[0]
        for head in range(2):
            weights = np.asarray(jax.nn.softmax(scores[0, found, head]))
            expected[0, visit, 3 * head : 3 * head + 3] = weights @ values[0, found, 3 * head : 3 * head + 3]
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
    assert (pooled[0, [1, 3]] == 0).all()


def test_time_waves_number_the_visits_of_each_sequence_from_zero():
    batch = make_token_batch([2, 3], row_tokens=60)
    assert batch.visit_segments[0, :5].max() == 2
    width = time_waves(batch).shape[-1] // 3
    numbers = time_waves(batch)[0, :5, -width]  # the sine of the number itself
    expected = [n for segment in (1, 2) for n in range((batch.visit_segments[0] == segment).sum())]
    np.testing.assert_allclose(numbers, np.sin(expected), atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"pooling": "last", "causal": True}, {"pooling": "mean", "causal": False, "num_visit_layers": 2}]
)
def test_packed_alone_and_padded_give_the_same(options):
    batch = make_token_batch(VISITS, row_tokens=40)
    assert batch.tokens.shape[0] < len(VISITS)
    model, params = make(batch, **options)
    together, total = forward(model, params, batch), gradients(model, params, batch)
    alone = []
    for row, slot in np.argwhere(batch.example_ids >= 0):
        segment = slot + 1
        own = only(batch, row, segment)
        outputs = forward(model, params, own)
        tokens, visits = batch.segment_ids[row] == segment, batch.visit_segments[row] == segment
        np.testing.assert_allclose(together.tokens[row, tokens], outputs.tokens[0, : tokens.sum()], atol=1e-5)
        np.testing.assert_allclose(together.hidden[row, visits], outputs.hidden[0, : visits.sum()], atol=1e-5)
        np.testing.assert_allclose(together.pooled[row, slot], outputs.pooled[0, 0], atol=1e-5)
        alone.append(gradients(model, params, own))
    assert len(alone) == len(VISITS)
    summed = jax.tree.map(lambda *parts: sum(parts), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), total, summed)


def test_special_tokens_are_ignored():
    batch = make_token_batch(VISITS)
    model, params = make(batch)
    changed = batch._replace(tokens=np.where(batch.code_visits < 0, 9, batch.tokens))
    chex.assert_trees_all_equal(forward(model, params, batch), forward(model, params, changed))


def test_no_bit_before_a_visit_moves_when_it_changes():
    batch = make_token_batch(VISITS, row_tokens=60, level="visit")
    model, params = make(batch, level="visit", num_outputs=1)
    number = np.zeros(batch.visit_mask.shape, int)
    for segment in range(1, batch.visit_segments.max() + 1):
        own = batch.visit_segments == segment
        number = np.where(own, own.cumsum(1), number)
    is_future = number > 2
    in_future = np.take_along_axis(is_future, np.maximum(batch.code_visits, 0), 1) & (batch.code_visits >= 0)
    changed = batch._replace(
        tokens=np.where(in_future, 5 + (batch.tokens + 1) % (VOCAB_SIZE - 5), batch.tokens),
        visit_ages=batch.visit_ages + is_future,
        visit_gap_days=batch.visit_gap_days + is_future,
    )
    before, after = forward(model, params, batch), forward(model, params, changed)
    past = batch.visit_mask & ~is_future
    np.testing.assert_array_equal(before.hidden[past], after.hidden[past])
    np.testing.assert_array_equal(before.logits[past], after.logits[past])
    np.testing.assert_array_equal(before.tokens[~in_future], after.tokens[~in_future])
    assert (before.hidden[batch.visit_mask & is_future] != after.hidden[batch.visit_mask & is_future]).any(-1).all()


def test_a_code_hears_of_later_visits_only_where_not_causal():
    batch = make_token_batch([3], max_codes=4, seed=1)
    model, params = make(batch)
    last = batch.code_visits == 2
    first = batch.code_visits == 0
    assert last.any() and first.any()
    changed = batch._replace(tokens=np.where(last, 5 + (batch.tokens + 1) % (VOCAB_SIZE - 5), batch.tokens))
    for causal in (True, False):
        before, after = (forward(model, params, b, causal).tokens for b in (batch, changed))
        assert (before[first] == after[first]).all() == causal


def test_options_that_do_not_exist_or_leak_are_refused():
    batch = make_token_batch(VISITS)
    for options, message in (
        ({"level": "day"}, "level='day' is not known"),
        ({"pooling": "cls"}, r"pooling='cls' is not known here.*last, mean, max"),
        ({"level": "visit", "causal": False}, "read later visits"),
        ({"num_heads": 3}, "num_heads=3 must divide hidden_dim=8"),
    ):
        with pytest.raises(ValueError, match=message):
            make(batch, **options)


def test_dropout_draws_only_in_training():
    batch = make_token_batch(VISITS)
    model, params = make(batch, dropout_rate=0.5, num_outputs=2)
    train = jax.jit(lambda key: model.apply({"params": params}, batch, train=True, rngs={"dropout": key}).logits)
    one, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and one.shape == (*batch.example_ids.shape, 2)


def test_bfloat16_is_near_float32():
    batch = make_token_batch(VISITS)
    model, params = make(batch, num_outputs=1)
    half = Hierarchical(VOCAB_SIZE, **TINY, num_outputs=1, dtype=jnp.bfloat16)
    one, other = forward(model, params, batch), forward(half, params, batch)
    assert other.hidden.dtype == jnp.bfloat16 and other.logits.dtype == jnp.float32
    np.testing.assert_allclose(np.float32(other.hidden), one.hidden, atol=0.1)


@pytest.mark.parametrize(("size", "expected"), [("small", 664_576), ("medium", 4_604_672), ("large", 26_469_376)])
def test_number_of_parameters(size, expected):
    shapes = jax.eval_shape(Hierarchical(1000, **SIZES[size]).init, jax.random.key(0), make_token_batch([2]))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
    assert shapes["params"]["embedding"]["embedding"].shape == (1000, SIZES[size]["embed_dim"])


def test_recomputing_blocks_changes_no_gradient():
    batch = make_token_batch(VISITS)
    model, params = make(batch, num_visit_layers=2)
    kept, again = gradients(model, params, batch), gradients(model.clone(remat=True), params, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept, again)


def test_cost_is_linear_in_the_codes_of_a_visit():
    block = VisitBlock(4)

    def flops(num_codes):
        codes, code_visits = jnp.zeros((1, num_codes, 16)), jnp.zeros((1, num_codes), jnp.int32)
        params = random_params(one_visit, codes, code_visits)
        return jax.jit(one_visit.apply).lower(params, codes, code_visits).compile().cost_analysis()["flops"]

    one_visit = _OneVisit(block)
    costs = [flops(num_codes) for num_codes in (256, 512, 1024)]
    assert costs[1] < 2.05 * costs[0] and costs[2] < 2.05 * costs[1]


class _OneVisit:
    """A VisitBlock over a single visit, so that only codes are left to count."""

    def __init__(self, block):
        self.block = block

    def init(self, key, codes, code_visits):
        return self.block.init(key, codes, code_visits, 1)

    def apply(self, params, codes, code_visits):
        return self.block.apply(params, codes, code_visits, 1)


def test_visits_may_hold_any_number_of_codes_in_one_program():
    batch = make_token_batch([2, 2], row_tokens=40)
    assert isinstance(batch, TokenBatch)
    uneven = batch._replace(code_visits=np.where(batch.code_visits >= 0, np.minimum(batch.code_visits, 1), -1))
    model, params = make(batch)
    traced = chex.assert_max_traces(lambda p, b: model.apply({"params": p}, b).hidden, n=1)
    run = jax.jit(traced)
    assert run(params, batch).shape == run(params, uneven).shape
