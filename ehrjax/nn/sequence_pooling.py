"""Token states of packed rows to one vector a visit and one a sequence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ehrjax.nn.segments import take_columns
from ehrjax.types import TokenBatch

SEQUENCE_POOLINGS = ("last", "cls", "mean", "max")
_LOWEST = -1e9  # below every state, yet finite in every dtype


def gather_visits(tokens: Float[Array, "B T D"], batch: TokenBatch) -> Float[Array, "B V D"]:
    """State of the [SEP] that closes each visit; zeros where `visit_mask` is False."""
    return jnp.where(batch.visit_mask[..., None], take_columns(tokens, batch.visit_ends), 0)


def pool_sequences(
    method: str, tokens: Float[Array, "B T D"], hidden: Float[Array, "B V D"], batch: TokenBatch
) -> Float[Array, "B S D"]:
    """One vector a sequence of the row, zeros for slots without one (S is the width of `batch.example_ids`).

    last: `hidden` of the sequence's last visit; cls: state of its first token; mean, max: over its code tokens (zeros
    if it has none).
    """
    num_sequences = batch.example_ids.shape[1]
    if method == "last":
        found = _members(batch.visit_segments, num_sequences)
        last = _last(found)
        return jnp.where(found.any(-1)[..., None], take_columns(hidden, last), 0)
    found = _members(batch.segment_ids, num_sequences)
    if method == "cls":
        return jnp.where(found.any(-1)[..., None], take_columns(tokens, jnp.argmax(found, axis=-1)), 0)
    is_code = batch.code_visits >= 0
    found &= is_code[:, None]
    if method == "mean":
        counts = jnp.maximum(found.sum(-1), 1).astype(tokens.dtype)
        return jnp.einsum("bst,btd->bsd", found.astype(tokens.dtype), tokens) / counts[..., None]
    if method == "max":
        highest = _running_max(jnp.where(is_code[..., None], tokens, _LOWEST), batch.segment_ids)
        last = _last(found)
        return jnp.where(found.any(-1)[..., None], take_columns(highest, last), 0)
    raise ValueError(f"pooling={method!r} is not known: use one of {', '.join(SEQUENCE_POOLINGS)}.")


def token_visits(batch: TokenBatch) -> Int[Array, "B T"]:
    """Column of the visit that each code or [SEP] belongs to; -1 on [CLS] and padding."""
    num_rows, num_visits = batch.visit_mask.shape
    ends = jnp.where(batch.visit_mask, batch.visit_ends, batch.tokens.shape[1])
    columns = jnp.broadcast_to(jnp.arange(num_visits)[None], (num_rows, num_visits))
    rows = jnp.arange(num_rows)[:, None]
    return jnp.asarray(batch.code_visits).at[rows, ends].set(columns.astype(batch.code_visits.dtype), mode="drop")


def _members(segment_ids: Int[Array, "B X"], num_sequences: int) -> Bool[Array, "B S X"]:
    """Which columns belong to each sequence of the row."""
    return segment_ids[:, None, :] == jnp.arange(1, num_sequences + 1)[None, :, None]


def _last(found: Bool[Array, "B S X"]) -> Int[Array, "B S"]:
    """The last True column."""
    return found.shape[-1] - 1 - jnp.argmax(found[..., ::-1], axis=-1)


def _running_max(states: Float[Array, "B T D"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Maximum over the columns of the segment so far; padding between them belongs to it.

    A scan and no segment maximum: to find the winners again by comparing, as the gradient of that needs, XLA may have
    rounded the states anew.
    """
    segment_ids = jax.lax.cummax(segment_ids, axis=1)
    starts = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]

    def merge(left, right):
        (left_starts, left_max), (right_starts, right_max) = left, right
        return left_starts | right_starts, jnp.where(right_starts, right_max, jnp.maximum(left_max, right_max))

    return jax.lax.associative_scan(merge, (starts[..., None], states), axis=1)[1]
