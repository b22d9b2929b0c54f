"""BEHRT: stated sizes, causality to the bit, packed = alone = padded, poolings, visit heads, the empty cases."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.models.behrt import SIZES, Behrt, gap_buckets, visit_segments
from ehrjax.models.pretraining import Pretraining, keep_only
from ehrjax.nn.sequence_pooling import SEQUENCE_POOLINGS
from ehrjax.types import TokenBatch
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import JUNK, make_token_batch, pad_token_batch

TINY = {"embed_dim": 6, "hidden_dim": 8, "num_layers": 2, "num_heads": 2, "max_tokens": 40, "dropout_rate": 0.0}
LENGTHS = [3, 1, 5, 2, 4]
EVERYTHING = {"visit_parity": True, "gap": True}
PLAIN = {"position": "learned", "visit_heads": False}


def make(batch, **options):
    model = Behrt(VOCAB_SIZE, **{**TINY, **options})
    return model, random_params(model, batch)["params"]


@partial(jax.jit, static_argnums=0)
def run(model, params, batch):
    return model.apply({"params": params}, batch)


def unpack(batch):
    """The same sequences, each in a row of its own."""
    owners = list(zip(*np.nonzero(batch.example_ids >= 0), strict=True))
    empty = jax.tree.map(lambda x: np.zeros((len(owners), *x.shape[1:]), x.dtype), batch)
    empty.code_visits[:] = -1
    for out, (row, slot) in enumerate(owners):
        tokens, visits = batch.segment_ids[row] == slot + 1, batch.visit_segments[row] == slot + 1
        for name, array in batch._asdict().items():
            if array is not None and name not in ("labels", "label_mask", "example_mask", "example_ids"):
                columns = visits if name.startswith("visit_") and name != "visit_ids" else tokens
                getattr(empty, name)[out, : columns.sum()] = array[row][columns]
        empty.visit_ends[out, : visits.sum()] -= np.argmax(tokens)
        codes = empty.code_visits[out]
        codes[codes >= 0] -= np.argmax(visits)
        empty.segment_ids[out] = empty.segment_ids[out] > 0
        empty.visit_segments[out] = empty.visit_segments[out] > 0
    ids = np.array([batch.example_ids[owner] for owner in owners])
    return empty._replace(example_ids=ids[:, None], example_mask=np.ones(len(owners), bool))


def examples(batch, outputs):
    """Sequence number -> its tokens, the states after its visits, its vector and its logits."""
    found = {}
    for row, slot in zip(*np.nonzero(batch.example_ids >= 0), strict=True):
        tokens, visits = batch.segment_ids[row] == slot + 1, batch.visit_segments[row] == slot + 1
        states = () if outputs.tokens is None else (outputs.tokens[row][tokens],)
        states += (outputs.hidden[row][visits], outputs.pooled[row, slot])
        found[int(batch.example_ids[row, slot])] = (*states, outputs.logits[row, slot])
    return found


@partial(jax.jit, static_argnums=0)
def run_with_gradients(model, params, batch):
    """Outputs, and gradients of a loss that reads each of them where it is real."""

    def loss(params):
        outputs = model.apply({"params": params}, batch)
        # A head with pooling "last" has states of visits alone.
        tokens = 0.0 if outputs.tokens is None else (outputs.tokens**3 * (batch.segment_ids > 0)[..., None]).sum()
        logits = (outputs.logits**2 * (batch.example_ids >= 0)[..., None]).sum()
        return tokens + (outputs.hidden**3).sum() + logits, outputs

    gradients, outputs = jax.grad(loss, has_aux=True)(params)
    return outputs, gradients


def assert_close(one, other, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


# As the docstring of the module states: encoder and with the head, for learned positions, then for rotary ones.
COUNTS = {
    "small": (488_320, 634_088, 485_120, 630_888),
    "medium": (3_365_376, 3_688_680, 3_352_576, 3_675_880),
    "large": (19_418_112, 20_194_792, 19_366_912, 20_143_592),
}
CLASSIC = {"small": (506_624, 652_392), "medium": (3_401_984, 3_725_288), "large": (19_491_328, 20_268_008)}


@pytest.mark.parametrize("size", SIZES)
def test_number_of_parameters(size):
    """Ours have 290 rows of width E fewer and a last norm; rotary positions have no table."""
    encoders = [_count(Behrt(1000, **SIZES[size], position=position)) for position in ("learned", "rotary")]
    heads = [
        _count(Pretraining(Behrt(1000, **SIZES[size]), 1000, heads=("mlm",), tie_embeddings=False)) - encoders[1]
    ] * 2
    assert COUNTS[size] == (encoders[0], encoders[0] + heads[0], encoders[1], encoders[1] + heads[1])
    assert _count(Behrt(1000, **SIZES[size], position="sinusoidal", visit_heads=False)) == encoders[1]
    embed_dim, hidden_dim, max_tokens = (SIZES[size][name] for name in ("embed_dim", "hidden_dim", "max_tokens"))
    assert CLASSIC[size][0] - encoders[0] == 290 * embed_dim - 2 * hidden_dim
    assert CLASSIC[size][0] - encoders[1] == (290 + max_tokens) * embed_dim - 2 * hidden_dim
    assert CLASSIC[size][1] - CLASSIC[size][0] == heads[0]


def _count(model):
    batch = make_token_batch([2], mask_rate=0.5)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), batch)))


@pytest.mark.parametrize(
    ("pooling", "options"), [*((pooling, EVERYTHING) for pooling in SEQUENCE_POOLINGS), ("last", PLAIN)]
)
def test_packed_equals_alone_equals_padded(pooling, options):
    packed = make_token_batch(LENGTHS, row_tokens=40)
    assert (packed.example_ids >= 0).sum(1).max() > 1
    model, params = make(packed, pooling=pooling, num_outputs=2, causal=pooling == "last", **options)
    expected, expected_gradients = run_with_gradients(model, params, packed)
    for batch in (unpack(packed), pad_token_batch(packed, rows=1, tokens=9, visits=3, slots=2)):
        outputs, gradients = run_with_gradients(model, params, batch)
        assert_close(examples(batch, outputs), examples(packed, expected))
        assert_close(gradients, expected_gradients, 1e-4)


def test_what_stands_in_padding_changes_nothing():
    batch = make_token_batch(LENGTHS, row_tokens=40)
    model, params = make(batch, num_outputs=1, pooling="mean", **EVERYTHING)
    padding = batch.segment_ids == 0
    junk = {
        name: np.where(padding, JUNK, getattr(batch, name)) for name in ("tokens", "ages", "visit_ids", "positions")
    }
    chex.assert_trees_all_equal(
        *(examples(other, run(model, params, other)) for other in (batch, batch._replace(**junk)))
    )


def test_padding_rows_are_finite_with_finite_gradients():
    batch = pad_token_batch(make_token_batch([1], max_codes=0), rows=1, slots=1)
    assert not (batch.code_visits >= 0).any()  # the only visit is empty
    for pooling in SEQUENCE_POOLINGS:
        model, params = make(batch, pooling=pooling, num_outputs=1, gap=True, causal=pooling == "last")
        outputs, gradients = run_with_gradients(model, params, batch)
        chex.assert_tree_all_finite((outputs, gradients))
        assert (outputs.pooled[1] == 0).all() and (outputs.hidden[1] == 0).all()
        assert (outputs.pooled[0, 0] == 0).all() == (pooling in ("mean", "max"))


def test_pooling_equals_a_loop_over_sequences():
    batch = make_token_batch(LENGTHS, row_tokens=40)
    for pooling in SEQUENCE_POOLINGS:
        model, params = make(batch, pooling=pooling, causal=pooling == "last")
        outputs = run(model, params, batch)
        for row, slot in zip(*np.nonzero(batch.example_ids >= 0), strict=True):
            mine = batch.segment_ids[row] == slot + 1
            codes = outputs.tokens[row][mine & (batch.code_visits[row] >= 0)]
            own = outputs.tokens[row][mine]
            expected = {"last": own[-1], "cls": own[0], "mean": codes.mean(0), "max": codes.max(0)}[pooling]
            np.testing.assert_allclose(outputs.pooled[row, slot], expected, rtol=1e-5, atol=1e-6)
        assert (outputs.pooled[batch.example_ids < 0] == 0).all()


@pytest.mark.parametrize("pooling", SEQUENCE_POOLINGS)
def test_padding_within_a_sequence_is_left_out(pooling):
    """Visits that an objective hides become padding where they stand."""
    batch = make_token_batch([3, 2], row_tokens=30, max_codes=3)
    model, params = make(batch, pooling=pooling, num_outputs=1, causal=False)
    hole = np.zeros((1, 30), bool)
    hole[0, batch.visit_ends[0, 0] + 1 : batch.visit_ends[0, 1] + 1] = True  # the first sequence's second visit
    assert hole.any()
    visits = np.arange(5)[None] != 1
    hidden = batch._replace(
        segment_ids=np.where(hole, 0, batch.segment_ids),
        code_visits=np.where(hole, -1, batch.code_visits),
        visit_segments=np.where(visits, batch.visit_segments, 0),
        visit_mask=batch.visit_mask & visits,
    )
    # The same without the hole: what follows it moves up, and the row ends in padding.
    order = np.argsort(hole[0], kind="stable")
    moved = {name: getattr(hidden, name)[:, order] for name in hidden._fields[:6]}
    moved["visit_ends"] = np.where(visits, batch.visit_ends - hole.sum() * (np.arange(5)[None] > 1), 0)
    pooled = run(model, params, hidden).pooled
    assert not np.allclose(pooled[0, 0], run(model, params, batch).pooled[0, 0], atol=1e-3)
    np.testing.assert_allclose(run(model, params, hidden._replace(**moved)).pooled, pooled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [EVERYTHING, PLAIN])
def test_the_future_changes_no_bit_of_the_past(options):
    batch = make_token_batch([5, 6], level="visit", row_tokens=60, max_codes=3)
    model, params = make(batch, level="visit", num_outputs=3, max_tokens=60, **options)
    before = run(model, params, batch)
    column = batch.visit_ends[0, 2]  # the third visit of the first sequence closes here
    later = np.arange(60)[None] > np.array([[column]])
    later_visits = np.arange(batch.visit_mask.shape[1])[None] > 2
    changed = batch._replace(
        tokens=np.where(later & (batch.code_visits >= 0), 6, batch.tokens),
        ages=np.where(later, 99, batch.ages),
        visit_gap_days=np.where(later_visits, 9.0, batch.visit_gap_days),
    )
    shortened = jax.tree.map(np.asarray, keep_only(batch, visits=~later_visits))
    for other in (changed, shortened):
        after = run(model, params, other)
        for name in ("hidden", "logits"):
            one, two = getattr(before, name)[0], getattr(after, name)[0]
            np.testing.assert_array_equal(one[:3], two[:3])
            assert not np.allclose(one[3:5], two[3:5])
        without_head = model.clone(num_outputs=0)
        one, two = (run(without_head, params, b).tokens[0, : column + 1] for b in (batch, other))
        np.testing.assert_array_equal(one, two)


def test_a_call_may_look_both_ways():
    batch = make_token_batch(LENGTHS)
    model, params = make(batch)
    both_ways = model.apply({"params": params}, batch, causal=False)
    assert not np.allclose(both_ways.hidden, run(model, params, batch).hidden)
    chex.assert_trees_all_close(both_ways, run(make(batch, causal=False)[0], params, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "day"}, "level='day' is not known"),
        ({"level": "visit", "causal": False}, "read later visits"),
        ({"pooling": "sum"}, "pooling='sum' is not known"),
        ({"position": "rotated"}, "position='rotated' is not known: use one of rotary, learned, sinusoidal"),
        ({"num_heads": 1}, "num_heads=1 must divide width=8 and be a multiple of 2"),
        ({"hidden_dim": 6}, "3 numbers a head"),
        ({"pooling": "cls", "num_outputs": 1}, "every patient would get the same"),
    ],
)
def test_options_that_do_not_exist_or_leak_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(make_token_batch([2]), **options)


@pytest.mark.parametrize("position", ["rotary", "sinusoidal"])
def test_positions_without_a_table_and_order_matters(position):
    batch = make_token_batch([3], max_codes=3)
    model, params = make(batch, position=position)
    assert "position_embedding" not in params
    shifted = batch._replace(positions=batch.positions[:, ::-1])
    assert not np.allclose(run(model, params, batch).tokens, run(model, params, shifted).tokens)
    # Rotary positions say where tokens stand to each other, not where they stand.
    moved = run(model, params, batch._replace(positions=batch.positions + 5)).tokens
    assert np.allclose(moved, run(model, params, batch).tokens, atol=1e-5) == (position == "rotary")


def test_visit_segments_of_a_row_written_by_hand():
    # [CLS] a b [SEP] [SEP] (an empty visit), [CLS] c [SEP], and two of padding; a fourth visit slot is padding.
    segment_ids = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    batch = TokenBatch(
        tokens=np.array([[3, 9, 8, 4, 4, 3, 7, 4, 0, 0]]),
        ages=np.where(segment_ids, 40, 0),
        visit_ids=np.array([[0, 1, 1, 0, 0, 0, 1, 0, 0, 0]]),
        positions=np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]]),
        segment_ids=segment_ids,
        code_visits=np.array([[-1, 0, 0, -1, -1, -1, 2, -1, -1, -1]], np.int32),
        visit_ends=np.array([[3, 4, 7, 0]]),
        visit_mask=np.array([[True, True, True, False]]),
        visit_segments=np.array([[1, 1, 2, 0]]),
        visit_ages=np.zeros((1, 4), np.float32),
        visit_gap_days=np.zeros((1, 4), np.float32),
        labels=np.zeros((1, 2, 1)),
        label_mask=np.ones((1, 2, 1), bool),
        example_mask=np.ones(1, bool),
        example_ids=np.array([[0, 1]]),
    )
    assert visit_segments(batch).tolist() == [[5, 0, 0, 0, 1, 6, 2, 2, 4, 4]]
    hidden = keep_only(batch, visits=np.array([[False, True, True, True]]))
    assert visit_segments(hidden).tolist() == [[5, 4, 4, 4, 1, 6, 2, 2, 4, 4]]
    nothing = keep_only(batch, visits=np.zeros((1, 4), bool))
    assert visit_segments(nothing).tolist() == [[5, 4, 4, 4, 4, 6, 4, 4, 4, 4]]


def test_visit_heads_have_no_parameters_and_change_what_is_read():
    batch = make_token_batch([3, 2], max_codes=3)
    model, params = make(batch)
    without, same = make(batch, visit_heads=False)
    chex.assert_trees_all_equal_shapes(params, same)
    assert not np.allclose(run(model, params, batch).tokens, run(without, params, batch).tokens, atol=1e-3)


def test_ages_and_visits_beyond_the_tables_take_the_last_row():
    batch = make_token_batch([3], max_codes=3)
    model, params = make(batch, num_ages=30, max_visit_ids=2)
    far = batch._replace(ages=np.where(batch.ages > 0, 130, 0), visit_ids=np.where(batch.visit_ids > 0, 500, 0))
    near = batch._replace(ages=np.where(batch.ages > 0, 29, 0), visit_ids=np.where(batch.visit_ids > 0, 1, 0))
    chex.assert_trees_all_equal(run(model, params, far), run(model, params, near))


def test_gap_buckets_are_logarithmic():
    batch = make_token_batch([4], max_codes=3, seed=1)
    batch = batch._replace(visit_gap_days=np.array([[0.0, 1.0, 100.0, 1e6]], np.float32))
    buckets = np.asarray(gap_buckets(batch))
    assert (buckets[batch.code_visits < 0] == 0).all()
    for visit, expected in enumerate([1, 2, 8, 15]):
        assert (buckets[batch.code_visits == visit] == expected).all()


def test_dropout_and_bfloat16():
    batch = make_token_batch(LENGTHS)
    model, params = make(batch, num_outputs=1)
    half = make(batch, num_outputs=1, dtype=jnp.bfloat16)[0]
    expected = run(model, params, batch)
    assert run(half, params, batch).logits.dtype == jnp.float32
    np.testing.assert_allclose(run(half, params, batch).logits, expected.logits, atol=0.3)
    noisy = make(batch, num_outputs=1, dropout_rate=0.3)[0]
    chex.assert_trees_all_equal(run(noisy, params, batch), expected)
    trained = [
        noisy.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(k)}).logits
        for k in (0, 0, 1)
    ]
    assert np.array_equal(trained[0], trained[1]) and not np.allclose(trained[0], trained[2])
