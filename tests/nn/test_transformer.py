"""Encoder: scan = loop over blocks, remat = none, bfloat16 near float32, groups of heads, rotation, dropout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.nn.attention import attend
from ehrjax.nn.dropout import Dropout, random_bytes
from ehrjax.nn.transformer import Block, Encoder, LayerNorm, SelfAttention, gelu, rotate

SEGMENTS = np.array([[1] * 4 + [2] * 3, [1] * 5 + [0] * 2])
VISITS = np.array([[1, 1, 2, 2, 3, 3, 4], [1, 2, 2, 2, 3, 0, 0]])  # within the segments
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 0]])
INPUTS = np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32)
SIZES = {"num_layers": 3, "num_heads": 2, "ffn_dim": 12}


@pytest.fixture(scope="module")
def params():
    params = Encoder(**SIZES).init(jax.random.key(0), INPUTS, SEGMENTS, causal=True)["params"]
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(params)))
    noise = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda x, k: x + 0.1 * jax.random.normal(k, x.shape), params, noise)


def run(params, train=False, **options):
    """Outputs and gradients, with one dropout key."""

    def loss(params):
        outputs = Encoder(**SIZES, **options).apply(
            {"params": params}, INPUTS, SEGMENTS, causal=True, train=train, rngs={"dropout": jax.random.key(5)}
        )
        return (outputs.astype(jnp.float32) ** 3).sum(), outputs

    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(params)
    return outputs, gradients


def assert_close(one, other, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other)


@pytest.mark.parametrize("context", [(SEGMENTS,), ((VISITS, SEGMENTS), POSITIONS)])
def test_scan_equals_a_loop_over_blocks(params, context):
    states = INPUTS
    for layer in range(3):
        block = jax.tree.map(lambda x, layer=layer: x[layer], params["layers"])
        states = Block(2, 12).apply({"params": block}, states, *context, causal=True, train=False)
    expected = LayerNorm().apply({"params": params["norm"]}, states)
    for options in ({}, {"remat": True, "unroll": 1}):
        outputs = Encoder(**SIZES, **options).apply({"params": params}, INPUTS, *context, causal=True)
        assert_close(outputs, expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 1}, {"remat": True, "unroll": 1}, {"path": "chunked"}])
def test_states_of_some_columns_are_those_of_all(params, options, causal):
    columns = np.array([[6, 2, 2], [0, 4, 6]])
    sizes = SIZES | options
    params = params | {"layers": jax.tree.map(lambda x: x[: sizes["num_layers"]], params["layers"])}

    def loss(params, columns):
        context = ((VISITS, SEGMENTS), POSITIONS)
        states = Encoder(**sizes).apply({"params": params}, INPUTS, *context, columns, causal=causal)
        states = states if columns is not None else states[np.arange(2)[:, None], chosen]
        return (states**3).sum(), states

    chosen = columns
    expected = jax.grad(loss, has_aux=True)(params, None)
    result = jax.grad(loss, has_aux=True)(params, columns)
    assert_close(result[1], expected[1])
    assert_close(result[0], expected[0], 1e-4)


@pytest.mark.parametrize("options", [{"unroll": 1}, {"remat": True}, {"remat": True, "unroll": 2}])
def test_unrolling_and_recomputing_change_no_number(params, options):
    expected = run(params, train=True, dropout_rate=0.3)
    result = run(params, train=True, dropout_rate=0.3, **options)
    assert_close(result[0], expected[0])
    assert_close(result[1], expected[1], 3e-4)  # the largest is 177
    assert not np.allclose(expected[0], run(params)[0], atol=0.1)


def test_bfloat16_is_near_and_leaves_parameters_alone(params):
    outputs, gradients = run(params, dtype=jnp.bfloat16)
    assert outputs.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}
    expected, _ = run(params)
    np.testing.assert_allclose(outputs.astype(np.float32), expected, atol=0.1)
    initial = Encoder(**SIZES, dtype=jnp.bfloat16).init(jax.random.key(0), INPUTS, SEGMENTS, causal=True)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(initial, params)


def test_every_layer_drops_other_elements():
    """With blocks that add nothing but their biases, layers that dropped alike would add up to 0 or 3 everywhere."""
    sizes = {"num_layers": 3, "num_heads": 2, "ffn_dim": 12, "dropout_rate": 0.5}
    params = Encoder(**sizes).init(jax.random.key(0), INPUTS, SEGMENTS, causal=True)["params"]
    params = jax.tree.map(jnp.zeros_like, params)
    params["layers"]["ffn"]["out"]["bias"] += 1.0
    params["norm"]["scale"] += 1.0
    outputs = Encoder(**sizes).apply(
        {"params": params}, 0 * INPUTS, SEGMENTS, causal=True, train=True, rngs={"dropout": jax.random.key(5)}
    )
    assert all(len(np.unique(np.round(token, 3))) >= 3 for token in outputs.reshape(-1, 8)[:3])


@pytest.mark.parametrize(
    ("num_heads", "segment_ids", "message"),
    [
        (3, SEGMENTS, "num_heads=3 must divide width=8"),
        (4, (VISITS, SEGMENTS, SEGMENTS), "num_heads=4 must divide width=8 and be a multiple of 3"),
        (1, (VISITS, SEGMENTS), "be a multiple of 2, the number of groups of heads"),
    ],
)
def test_heads_that_do_not_divide_the_width_or_into_groups_are_refused(num_heads, segment_ids, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention(num_heads).init(jax.random.key(0), INPUTS, segment_ids, causal=False)


@pytest.mark.parametrize("causal", [False, True])
def test_groups_of_heads_equal_attention_for_each(params, causal):
    own = jax.tree.map(lambda x: x[0], params["layers"]["attention"])
    outputs = SelfAttention(4).apply({"params": own}, INPUTS, (VISITS, SEGMENTS), POSITIONS, causal=causal)
    q, k, v = np.split(INPUTS @ own["qkv"]["kernel"] + own["qkv"]["bias"][None, None], 3, axis=-1)
    q, k, v = (x.reshape(2, 7, 4, 2) for x in (q, k, v))
    q, k = rotate(q, POSITIONS), rotate(k, POSITIONS)
    parts = [
        attend(q[:, :, heads], k[:, :, heads], v[:, :, heads], ids, causal=causal)
        for heads, ids in ((slice(0, 2), VISITS), (slice(2, 4), SEGMENTS))
    ]
    states = np.concatenate(parts, axis=2).reshape(2, 7, 8)
    assert_close(outputs, states @ own["out"]["kernel"] + own["out"]["bias"][None, None])


def test_one_group_is_no_group():
    alone, grouped = (
        SelfAttention(2).init_with_output(jax.random.key(0), INPUTS, ids, causal=True)[0]
        for ids in (SEGMENTS, (SEGMENTS,))
    )
    np.testing.assert_array_equal(alone, grouped)


def test_heads_of_a_visit_are_blind_to_other_visits(params):
    """The last product is the identity, so that the first half of the states comes from the visits' heads."""
    own = jax.tree.map(lambda x: x[0], params["layers"]["attention"])
    own["out"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}

    def states(inputs):
        return SelfAttention(2).apply({"params": own}, inputs, (VISITS, SEGMENTS), POSITIONS, causal=False)

    changed = INPUTS.copy()
    changed[0, 2:4] += 1.0  # the second visit of the first sequence
    before, after = states(INPUTS), states(changed)
    np.testing.assert_array_equal(before[0, :2, :4], after[0, :2, :4])
    assert (before[0, :2, 4:] != after[0, :2, 4:]).all() and (before[0, 2:4, :4] != after[0, 2:4, :4]).all()
    np.testing.assert_array_equal(before[0, 4:], after[0, 4:])  # the other sequence
    np.testing.assert_array_equal(before[1], after[1])


def test_rotation_keeps_norms_and_only_differences_of_positions_count():
    q, k = np.random.default_rng(1).normal(size=(2, 2, 7, 3, 8)).astype(np.float32)

    def products(shift):
        return np.einsum("btnh,bsnh->bnts", rotate(q, POSITIONS + shift), rotate(k, POSITIONS + shift))

    np.testing.assert_allclose(products(300), products(0), rtol=1e-4, atol=2e-4)
    far = np.einsum("btnh,bsnh->bnts", rotate(q, POSITIONS + 300), rotate(k, POSITIONS))
    assert not np.allclose(far, products(0), atol=0.1)
    turned = rotate(q, POSITIONS + 300)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(rotate(q, 0 * POSITIONS), q)
    assert rotate(q.astype(jnp.bfloat16), POSITIONS).dtype == jnp.bfloat16


def test_rotation_by_hand_and_its_longest_wave():
    """The first pair turns by one radian a position, the last by 1000^-(1 - 1 / pairs)."""
    states = np.tile(np.float32([1.0, 1.0, 0.0, 0.0]), (1, 2, 1, 1))
    turned = rotate(states, np.array([[1, 40]]))[0, :, 0]
    for state, position in zip(turned, (1, 40), strict=True):
        angles = position * np.array([1.0, 1000**-0.5])
        np.testing.assert_allclose(state, [*np.cos(angles), *np.sin(angles)], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="3 numbers a head"):
        rotate(states[..., :3], np.array([[1, 40]]))


def test_dropout_keeps_the_mean_and_is_off_outside_training():
    ones = np.ones((300, 400), np.float32)

    def drop(rate, train=True, key=0):
        return np.asarray(Dropout(rate).apply({}, ones, train=train, rngs={"dropout": jax.random.key(key)}))

    dropped = drop(0.1)
    assert set(np.unique(dropped)) == {0.0, np.float32(256 / 230)}
    assert abs((dropped == 0).mean() - 26 / 256) < 0.005 and abs(dropped.mean() - 1.0) < 0.005
    for axis in (0, 1):  # rows and columns are dropped at the same rate too
        assert abs((dropped == 0).mean(axis) - 26 / 256).max() < 0.1
    assert not np.array_equal(dropped, drop(0.1, key=1))
    assert np.array_equal(drop(0.1, train=False), ones) and np.array_equal(drop(0.0), ones)
    with pytest.raises(ValueError, match=r"rate=1\.0"):
        drop(1.0)


def test_gelu_has_the_gradient_of_its_formula():
    inputs = np.linspace(-6, 6, 101, dtype=np.float32)
    for ours, theirs in ((gelu, jax.nn.gelu), (jax.vmap(jax.grad(gelu)), jax.vmap(jax.grad(jax.nn.gelu)))):
        np.testing.assert_allclose(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gelu(inputs), jax.nn.gelu(inputs, approximate=False), atol=1e-3)


def test_no_random_byte_comes_twice():
    """Bytes of one word differ from each other and over words, and an odd number of them is cut, not refused."""
    found = np.asarray(random_bytes(jax.random.key(0), (7, 3001)))
    counts = np.bincount(found.reshape(-1), minlength=256)
    assert abs(counts / found.size - 1 / 256).max() < 0.002
    for shift in (1, 2, 3, 4, 3001):
        flat = found.reshape(-1)
        assert abs((flat[shift:] == flat[:-shift]).mean() - 1 / 256) < 0.002
