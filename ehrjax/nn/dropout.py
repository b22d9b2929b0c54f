"""Dropout from one random byte an element: a quarter of the random bits that a float takes."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


class Dropout(nn.Module):
    """Zero elements at `rate`, rounded to a multiple of 1/256, and scale the others by the exact inverse of the rest.

    Takes its key from the "dropout" collection; the identity when not `train` or when the rate rounds to 0.
    """

    rate: float

    @nn.compact
    def __call__(self, inputs: Float[Array, "*shape"], *, train: bool) -> Float[Array, "*shape"]:
        if not 0.0 <= self.rate < 1.0:
            raise ValueError(f"rate={self.rate} must be at least 0 and below 1.")
        dropped = min(round(256 * self.rate), 255)
        if not train or dropped == 0:
            return inputs
        keep = random_bytes(self.make_rng("dropout"), inputs.shape) >= dropped
        return jnp.where(keep, inputs * (256 / (256 - dropped)), 0)


def random_bytes(key: Array, shape: tuple[int, ...]) -> UInt8[Array, "*shape"]:
    """Four from each random word; `jax.random.bits` would draw a word for each."""
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 4),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:size].reshape(shape)
