"""What was measured in a stay as a set of (time, variable, value) triplets -> a vector, by attention pooling.

A triplet is the sum of an embedding of its variable and of small networks of its value and of its time (Tipirneni &
Reddy 2022, arXiv:2107.14293). Learned queries pool them, as in Lee et al. (2019, arXiv:1810.00825), without attention
between triplets: nothing is filled in, and no order is read but that of the times.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ehrjax.nn.dropout import Dropout


class TripletPooling(nn.Module):
    """The cells of a grid that are `observed`, pooled, beside the statics, and a layer that reads both.

    Returns [B (Q+4)*D], or [B (Q+3)*D] without statics (S = 0): what each of Q queries finds, the mean, statics, and
    that layer. A stay without a measurement has zeros for the first two. In training a stay shows at most `num_shown`
    of its triplets, drawn anew each time; `dropout_rate` acts within them, `head_dropout_rate` on the vector.
    """

    dim: int = 32
    num_queries: int = 4
    num_shown: int = 80
    dropout_rate: float = 0.2
    head_dropout_rate: float = 0.3

    @nn.compact
    def __call__(
        self,
        values: Float[Array, "B T K"],
        times: Float[Array, "B T"],
        observed: Bool[Array, "B T K"],
        statics: Float[Array, "B S"],
        *,
        train: bool,
    ) -> Float[Array, "B F"]:
        """`times` of the grid's bins are on any scale that stays have in common."""
        num_variables, mask = values.shape[2], observed.reshape(len(values), -1)
        cells = jnp.broadcast_to(jnp.arange(mask.shape[1])[None], mask.shape)
        if train and self.num_shown < mask.shape[1]:
            cells = _draw(self.make_rng("dropout"), mask, self.num_shown)
            mask = jnp.take_along_axis(mask, cells, axis=1)
        # Zeros, not only masked: a NaN behind the mask would still reach the gradient.
        value = jnp.where(mask, jnp.take_along_axis(values.reshape(len(values), -1), cells, axis=1), 0.0)
        time = jnp.where(mask, jnp.take_along_axis(times, cells // num_variables, axis=1), 0.0)
        triplets = nn.Embed(num_variables, self.dim, name="variable")(cells % num_variables)
        triplets += self._embed(value, "value") + self._embed(time, "time")
        states = self._pool(self._transform(triplets, train), mask)
        if statics.shape[1] > 0:
            hidden = jnp.tanh(nn.Dense(2 * self.dim, name="statics_0")(statics))
            states = jnp.concatenate([states, nn.Dense(self.dim, name="statics_1")(hidden)], axis=-1)
        hidden = Dropout(self.head_dropout_rate, name="states_dropout")(states, train=train)
        hidden = nn.relu(nn.Dense(2 * self.dim, name="deep")(hidden))
        states = jnp.concatenate([states, hidden], axis=-1)
        return Dropout(self.head_dropout_rate, name="dropout")(states, train=train)

    def _embed(self, numbers: Float[Array, "B M"], name: str) -> Float[Array, "B M D"]:
        bends = jnp.tanh(nn.Dense(round(self.dim**0.5), name=f"{name}_0")(numbers[..., None]))
        return nn.Dense(self.dim, use_bias=False, name=f"{name}_1")(bends)

    def _transform(self, states: Float[Array, "B M D"], train: bool) -> Float[Array, "B M D"]:
        """The feed-forward half of a transformer block."""
        hidden = nn.relu(nn.Dense(2 * self.dim, name="block_0")(nn.LayerNorm(name="block_norm")(states)))
        hidden = nn.Dense(self.dim, name="block_1")(hidden)
        states += Dropout(self.dropout_rate, name="block_dropout")(hidden, train=train)
        return nn.LayerNorm(name="norm")(states)

    def _pool(self, states: Float[Array, "B M D"], mask: Bool[Array, "B M"]) -> Float[Array, "B F"]:
        """Weighted means by the queries, then the mean."""
        scores = jnp.tanh(nn.Dense(2 * self.dim, name="keys")(states))
        scores = nn.Dense(self.num_queries, use_bias=False, name="queries")(scores)
        is_real = mask[..., None]
        weights = jnp.where(is_real, nn.softmax(jnp.where(is_real, scores, -1e9), axis=1), 0.0)
        found = jnp.einsum("bmq,bmd->bqd", weights, states).reshape(len(states), -1)
        mean = jnp.where(is_real, states, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        return jnp.concatenate([found, mean], axis=-1)


def _draw(key: Array, mask: Bool[Array, "B M"], count: int) -> Int[Array, "B C"]:
    """`count` cells of each row without replacement, real ones before masked ones."""
    return jax.lax.top_k(jax.random.uniform(key, mask.shape) + mask, count)[1]
