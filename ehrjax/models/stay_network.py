"""Stay network: a table of summaries and a series of bins of one hospital stay -> logits ("wide and deep").

    summaries, statics [S] -> E ramps each -> wide: Dense 1
                                           -> deep: Dense D -> Dense D -> Dense 1
    series [T 3 K]         -> Dense D -> LSTM D, last state and mean -> Dense 1

whose logits are added. Wide and deep learning is of Cheng et al. (2016, arXiv:1606.07792); ramps are the piecewise
linear embedding of numbers of Gorishniy et al. (2022, arXiv:2203.05556) with learned knots, which let one layer bend a
feature's effect, as trees do. Parameters with 500 summaries, 37 variables and one output: 211,111.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ehrjax.nn.dropout import Dropout
from ehrjax.nn.recurrent import Lstm
from ehrjax.types import Outputs, StayBatch

_LAST_KNOT = 1.5  # standard deviations: beyond it too few train rows are left to learn a bend from
_MEMORY_HOURS = 12.0  # after which a measurement says e times less


class StayNetwork(nn.Module):
    """Stay network over `statics` (with the summaries of `data/vital_summaries.py` among them) and the grid.

    `statics` are expected on a common scale, such as normal scores; what is missing is 0 and told by another column.
    A batch without statics (S = 0) or without time points (T = 0) leaves that branch out. A stay without vital signs
    has zeros for its series. In training `feature_dropout_rate` drops a static with all of its ramps, and of the series
    a channel of a variable at all time points; `dropout_rate` acts on hidden units. Notes are not read.
    """

    reads_stays = True  # a StayBatch, where other models read visits or tokens

    hidden_dim: int = 64
    num_ramps: int = 4
    num_outputs: int = 1
    dropout_rate: float = 0.5
    feature_dropout_rate: float = 0.4
    series_dropout_rate: float = 0.3

    @nn.compact
    def __call__(self, batch: StayBatch, *, train: bool = False) -> Outputs:
        """Return logits [B O], `pooled` [B D or 2D or 3D] (what their heads read) and, with a grid, `hidden` [B T D].

        `hidden` is the LSTM's state after each time point, and zeros at masked ones.
        """
        has_statics, has_series = batch.statics.shape[1] > 0, 0 not in batch.values.shape[1:]
        if not (has_statics or has_series):
            raise ValueError("these stays have neither statics nor a grid of vital signs: there is nothing to read.")
        logits, pooled, hidden = jnp.zeros((1, self.num_outputs)), [], None
        if has_statics:
            features = self._ramps(batch.statics, train)
            logits += nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="wide")(features)
            pooled.append(self._deep(features, train))
            logits += nn.Dense(self.num_outputs, name="deep_head")(pooled[-1])
        if has_series:
            hidden, states = self._series(batch, train)
            pooled.append(states)
            logits += nn.Dense(self.num_outputs, name="series_head")(states)
        return Outputs(logits=logits, pooled=jnp.concatenate(pooled, axis=-1), hidden=hidden)

    def _ramps(self, statics: Float[Array, "B S"], train: bool) -> Float[Array, "B S*(1+E)"]:
        """The numbers themselves, then relu(slope * number + offset) for each of their ramps."""
        shape = (statics.shape[1], self.num_ramps)
        slopes = self.param("ramp_slopes", nn.initializers.normal(1.0), shape)
        offsets = self.param("ramp_offsets", _uniform, shape)
        ramps = 0.5 * nn.relu(statics[..., None] * slopes[None] + offsets[None])
        # Ramps of one number tell each other's, so that they are dropped together.
        keep = Dropout(self.feature_dropout_rate, name="statics_dropout")(jnp.ones_like(statics), train=train)
        kept = (ramps * keep[..., None]).reshape(len(statics), -1)
        return jnp.concatenate([statics * keep, kept], axis=-1)

    def _deep(self, states: Float[Array, "B F"], train: bool) -> Float[Array, "B D"]:
        for layer in range(2):
            states = nn.relu(nn.Dense(self.hidden_dim, name=f"deep_{layer}")(states))
            states = Dropout(self.dropout_rate, name=f"deep_dropout_{layer}")(states, train=train)
        return states

    def _series(self, batch: StayBatch, train: bool) -> tuple[Float[Array, "B T D"], Float[Array, "B 2*D"]]:
        """LSTM states, and the last of them beside their mean."""
        mask = batch.time_mask & batch.has_vitals[:, None]
        recency = jnp.exp(-jnp.maximum(batch.hours_since, 0.0) / _MEMORY_HOURS)
        inputs = jnp.concatenate([batch.values, jnp.asarray(batch.observed, jnp.float32), recency], axis=-1)
        # Zeros, not only masked: a NaN behind the mask would still reach the gradient.
        inputs = jnp.where(mask[..., None], inputs, 0.0)
        keep = jnp.ones_like(inputs[:, :1])
        inputs = inputs * Dropout(self.series_dropout_rate, name="channel_dropout")(keep, train=train)
        inputs = nn.relu(nn.Dense(self.hidden_dim, name="series")(inputs))
        inputs = Dropout(self.series_dropout_rate, name="series_dropout")(inputs, train=train)
        hidden, last = Lstm(self.hidden_dim, name="lstm")(inputs, mask, train=train)
        mean = hidden.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        states = jnp.concatenate([last, mean], axis=-1)
        return hidden, Dropout(self.dropout_rate, name="states_dropout")(states, train=train)


def _uniform(key: Array, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "S E"]:
    return jax.random.uniform(key, shape, dtype, -_LAST_KNOT, _LAST_KNOT)
