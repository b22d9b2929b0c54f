"""Sequences of a packed row: where each begins and ends, and passing values between sequences and their parts.

`segment_ids` says which of the row's S sequences a visit or token belongs to, from 1; 0 is padding.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def sequence_bounds(
    segment_ids: Int[Array, "B X"], num_sequences: int
) -> tuple[Int[Array, "B S"], Int[Array, "B S"], Int[Array, "B S"]]:
    """Column of the first and of the last part of each sequence, and how many it has (0: the columns mean nothing)."""
    is_part = segment_ids[:, None, :] == jnp.arange(1, num_sequences + 1)[None, :, None]
    first = is_part.argmax(axis=-1)
    last = segment_ids.shape[1] - 1 - is_part[..., ::-1].argmax(axis=-1)
    return first, last, is_part.sum(axis=-1)


def to_parts(values: Shaped[Array, "B S"], segment_ids: Int[Array, "B X"]) -> Shaped[Array, "B X"]:
    """The value of the sequence that each part belongs to; padding gets that of the row's first sequence."""
    return jnp.take_along_axis(values, jnp.maximum(segment_ids - 1, 0), axis=1)


def take_columns(states: Float[Array, "B X D"], columns: Int[Array, "B Y"]) -> Float[Array, "B Y D"]:
    """The states at these columns of each row."""
    return jnp.take_along_axis(states, columns[..., None], axis=1)
