"""Attention over packed rows: a token sees the tokens of its own segment and, if causal, only columns up to its own.

One function, `attend`, with several ways to compute the same numbers. "dense" is the reference with an explicit mask;
"chunked" needs memory linear in the row's length; "pallas" and "cudnn" are GPU kernels. Padding is segment 0 and sees
padding, so every token sees at least itself and no softmax runs over nothing. There is no dropout on attention
probabilities on any path: fused kernels have none.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

PATHS = ("dense", "chunked", "pallas", "cudnn")
BLOCK = 64  # query columns that the chunked path handles at a time: 32 to 256 were slower
BANDS = 4
# Row length from which the chunked path is taken: there it is a third faster on CPU, at 200 half as fast.
CHUNKED_FROM = 512
_PALLAS_BLOCK = 128
_MASKED = -1e30  # finite, so that a difference of two masked scores is no NaN


def attend(
    q: Float[Array, "B M N H"],
    k: Float[Array, "B T N H"],
    v: Float[Array, "B T N H"],
    segment_ids: Int[Array, "B T"],
    columns: Int[Array, "B M"] | None = None,
    *,
    causal: bool,
    path: str | None = None,
) -> Float[Array, "B M N H"]:
    """Softmax(q k / sqrt(H)) v within segments, in the dtype of `v`; scores and softmax are float32.

    The queries are those of all T columns in order, or of `columns`. `path` is one of PATHS, or None for the best one
    on the default device (see `choose_path`); the kernels of a GPU take queries of all columns only.
    """
    if path is None:
        path = choose_path(jax.default_backend(), q.shape[1], q.shape[-1], q.dtype)
    if path not in PATHS:
        raise ValueError(f"path={path!r} is not known: use None or one of {', '.join(PATHS)}.")
    if columns is not None:
        path = path if path in ("dense", "chunked") else choose_path("cpu", k.shape[1], k.shape[-1], k.dtype)
    compute = {"dense": _dense, "chunked": _chunked, "pallas": _pallas, "cudnn": _cudnn}[path]
    return compute(q, k, v, segment_ids, causal, *(() if columns is None else (columns,)))


def choose_path(backend: str, num_tokens: int, head_dim: int, dtype) -> str:
    """The path for rows of `num_tokens` on a backend ("cpu", "gpu", ..); kernels of a GPU only there."""
    if backend == "gpu" and dtype in (jnp.bfloat16, jnp.float16) and head_dim in (32, 64, 128):
        return "pallas"
    return "chunked" if num_tokens >= CHUNKED_FROM else "dense"


def segment_mask(
    segment_ids: Int[Array, "B T"], columns: Int[Array, "B M"] | None = None, *, causal: bool
) -> Bool[Array, "B M T"]:
    """Which of the T keys each query sees; the queries are those of all columns in order, or of `columns`."""
    num_keys = segment_ids.shape[1]
    if columns is None:
        columns, asking = jnp.arange(num_keys)[None], segment_ids
    else:
        asking = jnp.take_along_axis(jnp.asarray(segment_ids), columns, axis=1)
    mask = asking[:, :, None] == segment_ids[:, None, :]
    return mask & (columns[:, :, None] >= jnp.arange(num_keys)[None, None]) if causal else mask


def _dense(q, k, v, segment_ids, causal, columns=None):
    return _attend_masked(q, k, v, segment_mask(segment_ids, columns, causal=causal))


def _attend_masked(q, k, v, mask):
    # Heads before tokens, once: on CPU products that leave that to the compiler took a tenth longer. The outputs are
    # divided by the softmax's sum, not the probabilities: one pass less over all scores, half of the time at 256 keys.
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    products = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32)
    scores = products * q.shape[-1] ** -0.5 + jnp.where(mask, 0.0, _MASKED)[:, None]
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    outputs = jnp.einsum("bnts,bnsh->bnth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return jnp.swapaxes((outputs / weights.sum(axis=-1, keepdims=True)).astype(v.dtype), 1, 2)


def _chunked(q, k, v, segment_ids, causal, columns=None):
    """A loop over blocks of queries, each recomputed in the backward pass: one block's scores live at a time.

    Causal queries of all columns go in a few bands, each with the keys up to its end: later ones are seen by none of
    it.
    """
    num_queries, in_order = q.shape[1], columns is None
    columns = jnp.broadcast_to(jnp.arange(num_queries)[None], q.shape[:2]) if in_order else columns
    missing = ((0, 0), (0, -num_queries % BLOCK))
    blocks = (_to_blocks(jnp.pad(q, (*missing, (0, 0), (0, 0)))), _to_blocks(jnp.pad(columns, missing)))
    num_blocks = len(blocks[0])
    band = -(-num_blocks // BANDS) if causal and in_order else num_blocks
    outputs = []
    for first in range(0, num_blocks, band):
        last = min(first + band, num_blocks)
        keys = slice(0, last * BLOCK if band < num_blocks else None)
        attend_block = _make_attend_block(k[:, keys], v[:, keys], segment_ids[:, keys], causal)
        outputs.append(jax.lax.map(attend_block, jax.tree.map(lambda x, f=first, n=last: x[f:n], blocks)))
    outputs = jnp.moveaxis(jnp.concatenate(outputs), 0, 1)
    return outputs.reshape(len(q), -1, *q.shape[2:])[:, :num_queries]


def _make_attend_block(k, v, segment_ids, causal):
    @jax.checkpoint
    def attend_block(block):
        q, columns = block
        return _attend_masked(q, k, v, segment_mask(segment_ids, columns, causal=causal))

    return attend_block


def _to_blocks(array):
    """[B M ..] -> [M / BLOCK, B, BLOCK, ..]."""
    return jnp.moveaxis(array.reshape(array.shape[0], -1, BLOCK, *array.shape[2:]), 1, 0)


def _pad_tokens(q, k, v, segment_ids, *, multiple):
    """Rows of a multiple of so many tokens; the tokens added are no padding's segment, so nothing else sees them."""
    missing = -q.shape[1] % multiple
    q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (q, k, v))
    return q, k, v, jnp.pad(segment_ids, ((0, 0), (0, missing)), constant_values=-1)


def _pallas(q, k, v, segment_ids, causal, *, interpret=False):
    """The flash attention kernel that comes with JAX; rows are padded to whole blocks of its grid."""
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    num_tokens = q.shape[1]
    block = min(_PALLAS_BLOCK, max(16, 1 << (num_tokens - 1).bit_length()))
    q, k, v, segment_ids = _pad_tokens(q, k, v, segment_ids, multiple=block)
    small = min(block, 32)
    sizes = BlockSizes(block, block, block_q_dkv=small, block_kv_dkv=small, block_q_dq=small, block_kv_dq=small)
    scale = q.shape[-1] ** -0.5
    outputs = mha(q, k, v, segment_ids, sm_scale=scale, causal=causal, block_sizes=sizes, interpret=interpret)
    return outputs[:, :num_tokens]


def _cudnn(q, k, v, segment_ids, causal):
    mask = segment_mask(segment_ids, causal=causal)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")
