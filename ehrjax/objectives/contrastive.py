"""Contrast: two views of a sequence must find each other among the views of all sequences in the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ehrjax.models.pretraining import Pretraining, keep_only
from ehrjax.nn.segments import sequence_bounds, to_parts
from ehrjax.types import LossOutput, TokenBatch


def make_contrastive_objective(
    model: Pretraining, *, temperature: float = 0.1, keep_rate: float = 0.8, chunk_rows: int | None = None
) -> Callable[..., LossOutput]:
    """`objective(params, batch, key, train)`: NT-Xent between two random views of each sequence.

    `keep_rate` is the share of codes that a view keeps. `chunk_rows` encodes so many rows of views at a time and again
    in the backward pass, so that memory holds one chunk's activations whatever the number of pairs; it must divide the
    2B rows of views. Views do not depend on it; dropout does, each chunk having its own key. A key of None draws the
    same views each time. Windows of one patient count as different sequences.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0: 0.05 to 0.5 is usual.")
    if not 0 < keep_rate <= 1:
        raise ValueError(f"keep_rate={keep_rate} must be above 0 and at most 1.")

    def objective(params, batch: TokenBatch, key: Array | None, train: bool) -> LossOutput:
        view_key, dropout_key = jax.random.split(jax.random.key(0) if key is None else key)
        one, other = (draw_view(batch, k, keep_rate=keep_rate) for k in jax.random.split(view_key))
        views = jax.tree.map(lambda *parts: jnp.concatenate(parts), one, other)

        def encode(rows: TokenBatch, key: Array) -> Float[Array, "R S P"]:
            rngs = {"dropout": key} if train else None
            return model.apply({"params": params}, rows, train, method="project", rngs=rngs)

        projected = encode_in_chunks(encode, views, dropout_key, chunk_rows)
        vectors = projected.reshape(2, -1, projected.shape[-1])
        is_real = (has_codes(one) & has_codes(other)).reshape(-1)
        return nt_xent(vectors[0], vectors[1], is_real, temperature=temperature)

    return objective


def draw_view(batch: TokenBatch, key: Array, *, keep_rate: float) -> TokenBatch:
    """A random run of at least half of each sequence's visits, and of their codes each with chance `keep_rate`.

    What is left out becomes padding where it stood. A sequence of one visit keeps it.
    """
    length_key, start_key, code_key = jax.random.split(key, 3)
    first, _, count = sequence_bounds(batch.visit_segments, batch.example_ids.shape[1])
    shortest = (count + 1) // 2
    length = shortest + _below(length_key, count - shortest + 1)
    start = first + _below(start_key, count - length + 1)
    columns = jnp.arange(batch.visit_mask.shape[1])[None]
    begins, ends = (to_parts(x, batch.visit_segments) for x in (start, start + length))
    codes = jax.random.bernoulli(code_key, keep_rate, batch.tokens.shape)
    view = keep_only(batch, visits=(columns >= begins) & (columns < ends), codes=codes)
    return view._replace(masked=None, next_visits=None)


def has_codes(batch: TokenBatch) -> Bool[Array, "B S"]:
    """Whether each sequence exists and holds a code."""
    _, _, count = sequence_bounds(
        jnp.where(batch.code_visits >= 0, batch.segment_ids, 0), num_sequences=batch.example_ids.shape[1]
    )
    return (batch.example_ids >= 0) & (count > 0)


def encode_in_chunks(
    encode: Callable[[TokenBatch, Array], Array], batch: TokenBatch, key: Array, chunk_rows: int | None
) -> Array:
    """`encode(rows, key)` of the whole batch, or of `chunk_rows` rows at a time, with activations computed twice."""
    num_rows = batch.tokens.shape[0]
    if chunk_rows is None:
        return encode(batch, key)
    if num_rows % chunk_rows:
        raise ValueError(f"chunk_rows={chunk_rows} must divide the {num_rows} rows of two views: use a divisor.")
    num_chunks = num_rows // chunk_rows
    chunks = jax.tree.map(lambda x: x.reshape(num_chunks, chunk_rows, *x.shape[1:]), batch)
    keys = jax.random.split(key, num_chunks)
    encoded = jax.lax.map(jax.checkpoint(lambda inputs: encode(*inputs)), (chunks, keys))
    return encoded.reshape(num_rows, *encoded.shape[2:])


def nt_xent(
    one: Float[Array, "N P"], other: Float[Array, "N P"], is_real: Bool[Array, "N"], *, temperature: float
) -> LossOutput:
    """Normalised temperature-scaled cross-entropy (Chen et al., 2020, arXiv:2002.05709, eq. 1), summed over views.

    Each of the two views of a real sequence has to tell its partner from the other views of all real sequences;
    `weight` counts the views, 0 where fewer than two sequences are real. Metric: `contrastive_accuracy`, the share of
    views whose partner is strictly the nearest.
    """
    num_pairs = one.shape[0]
    vectors = _normalise(jnp.concatenate([one, other]).astype(jnp.float32))
    real = jnp.concatenate([is_real, is_real])
    similarities = vectors @ vectors.T / temperature
    is_rival = real[None, :] & ~jnp.eye(2 * num_pairs, dtype=bool)
    similarities = jnp.where(is_rival, similarities, -1e30)
    rows = jnp.arange(2 * num_pairs)
    partners = (rows + num_pairs) % (2 * num_pairs)
    chosen = similarities[rows, partners]
    weights = (real & (is_real.sum() > 1)).astype(jnp.float32)
    weight = weights.sum()
    losses = jax.nn.logsumexp(similarities, axis=-1) - chosen
    best_other = similarities.at[rows, partners].set(-1e30).max(axis=-1)
    accuracy = ((chosen > best_other) * weights).sum()
    # Rows of padding have nothing but -1e30 in them; the select keeps them out of the sum and of the gradient.
    loss_sum = jnp.where(weights > 0, losses, 0.0).sum()
    return LossOutput(loss_sum, weight, {"contrastive_accuracy": (accuracy, weight)})


def _normalise(vectors):
    """Unit length; a vector of zeros stays one, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.square(vectors).sum(axis=-1, keepdims=True) + 1e-12)


def _below(key, bounds):
    """Uniform integers from 0 to below `bounds` (0 where the bound is 0)."""
    drawn = (jax.random.uniform(key, bounds.shape) * bounds).astype(bounds.dtype)
    return jnp.clip(drawn, 0, jnp.maximum(bounds - 1, 0))
