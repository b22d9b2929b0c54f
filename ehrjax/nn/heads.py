"""Heads of pre-training: codes at masked positions, codes of the next visit, projection for contrast.

Matrix products run in the type of the states that come in, and results are float32.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# Small, so that a head begins close to its bias: for the next visit, the base rates of the codes.
_OUTPUT_INIT = nn.initializers.normal(0.02)


class MaskedCodeHead(nn.Module):
    """States to logits over the vocabulary: Dense, GELU, LayerNorm, decoder (Devlin et al., 2019, arXiv:1810.04805).

    With a `table` [G E] the decoder is its transpose and a bias, and Dense maps to E; without one it is a matrix of its
    own, and Dense keeps the width.
    """

    vocab_size: int

    @nn.compact
    def __call__(
        self, states: Float[Array, "*rows D"], table: Float[Array, "G E"] | None = None
    ) -> Float[Array, "*rows G"]:
        width = states.shape[-1] if table is None else table.shape[1]
        states = nn.gelu(nn.Dense(width, dtype=states.dtype, name="dense")(states))
        states = nn.LayerNorm(dtype=states.dtype, name="norm")(states)
        if table is None:
            table = self.param("decoder", _OUTPUT_INIT, (self.vocab_size, width))
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        return _decode(states, table, bias)


class NextVisitHead(nn.Module):
    """States to one logit a code of the vocabulary: a matrix `kernel` [G D] and a bias."""

    vocab_size: int

    @nn.compact
    def __call__(self, states: Float[Array, "*rows D"]) -> Float[Array, "*rows G"]:
        kernel = self.param("kernel", _OUTPUT_INIT, (self.vocab_size, states.shape[-1]))
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        return _decode(states, kernel, bias)


class ProjectionHead(nn.Module):
    """Dense, ReLU, Dense to the space where views are compared (Chen et al., 2020, arXiv:2002.05709)."""

    projection_dim: int

    @nn.compact
    def __call__(self, states: Float[Array, "*rows D"]) -> Float[Array, "*rows P"]:
        states = nn.relu(nn.Dense(states.shape[-1], dtype=states.dtype, name="dense")(states))
        return nn.Dense(self.projection_dim, dtype=states.dtype, name="output")(states).astype(jnp.float32)


def _decode(states, kernel, bias):
    logits = jnp.einsum("...d,gd->...g", states, kernel.astype(states.dtype), preferred_element_type=jnp.float32)
    return logits + bias.reshape((1,) * (states.ndim - 1) + bias.shape)
