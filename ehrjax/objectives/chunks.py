"""An objective over a few rows of the batch at a time: the same gradient, without the whole batch's activations.

On two CPU threads a step of BEHRT large on 32 rows of 200 tokens is 1.8 times as fast in chunks of four rows as in
one, of medium on 32 rows of 100 tokens 1.5 times in chunks of eight (experiments/benchmarks/behrt_throughput.py).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ehrjax.types import LossOutput, TokenBatch

# What stays near the caches: from 800 to 1,600 were as fast, whole batches of 6,400 half as fast.
CPU_CHUNK_TOKENS = 2048


def in_chunks(objective: Callable[..., LossOutput], chunk_tokens: int | None = None) -> Callable[..., LossOutput]:
    """`objective(params, batch, key, train)` of token batches, in training over a few rows after another.

    For objectives that are sums over rows (not those that set rows against each other, as contrast and the Cox
    likelihood do). Loss, weight, metrics and gradient are the whole batch's up to rounding; dropout draws from a key a
    chunk. Each chunk's gradient is computed with its loss, so nothing is computed twice and memory holds the
    activations of one chunk. The gradient is with respect to `params` alone. A chunk is as many rows as
    `chunk_tokens` hold and divide the batch's; None: 2,048 on a CPU, while an accelerator takes all rows at once.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def summed(num_chunks, params, batch, key):
        return _sum_over_chunks(objective, num_chunks, params, batch, key)[1]

    def forward(num_chunks, params, batch, key):
        grads, output = _sum_over_chunks(objective, num_chunks, params, batch, key)
        return output, grads

    def backward(_, grads, cotangent):
        return jax.tree.map(lambda grad: (grad * cotangent.loss_sum).astype(grad.dtype), grads), None, None

    summed.defvjp(forward, backward)

    def chunked(params, batch: TokenBatch, key: Array | None, train: bool) -> LossOutput:
        num_chunks = count_chunks(*batch.tokens.shape, chunk_tokens)
        if not train or num_chunks == 1:
            return objective(params, batch, key, train)
        return summed(num_chunks, params, batch, key)

    return chunked


def count_chunks(num_rows: int, row_tokens: int, chunk_tokens: int | None = None) -> int:
    """Into how many equal parts to cut the rows so that each holds at most `chunk_tokens` tokens, or one row."""
    if chunk_tokens is None:
        if jax.default_backend() != "cpu":
            return 1
        chunk_tokens = CPU_CHUNK_TOKENS
    most = max(chunk_tokens // row_tokens, 1)
    return min(parts for parts in range(1, num_rows + 1) if num_rows % parts == 0 and num_rows // parts <= most)


def _sum_over_chunks(objective, num_chunks, params, batch, key):
    """Gradient of the loss sum, and the output, each summed over the chunks."""

    def loss_sum(params, rows, key):
        output = objective(params, rows, key, True)
        return output.loss_sum, output

    def add(total, chunk):
        return jax.tree.map(jnp.add, total, jax.grad(loss_sum, has_aux=True)(params, *chunk)), None

    chunks = jax.tree.map(lambda x: x.reshape(num_chunks, x.shape[0] // num_chunks, *x.shape[1:]), batch)
    keys = jax.random.split(key, num_chunks)
    first = jax.tree.map(lambda x: x[0], (chunks, keys))
    shapes = jax.eval_shape(lambda: jax.grad(loss_sum, has_aux=True)(params, *first))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(add, zeros, (chunks, keys))[0]
