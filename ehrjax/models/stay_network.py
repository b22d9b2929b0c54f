"""Stay network: a table of summaries and a series of bins of one hospital stay -> logits ("wide and deep").

    statics, summaries [F] -> E ramps each -> wide: Dense 1
                                           -> deep: Dense D -> Dense D -> Dense 1
    series [T 3 K]         -> Dense D -> LSTM D, last state and mean -> Dense 1

whose logits are added. A second network reads the same stay,

    (time, variable, value) of what was measured -> attention pooling, beside the statics -> Dense 1

and the prediction is a weighted mean of both logits. Wide and deep learning is of Cheng et al. (2016,
arXiv:1606.07792); ramps are the piecewise linear embedding of numbers of Gorishniy et al. (2022, arXiv:2203.05556) with
learned knots, which let one layer bend a feature's effect, as trees do; for triplets see `nn/triplets.py`. Parameters
with 12 statics, 488 summaries, 37 variables and one output: 234,912.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ehrjax.nn.dropout import Dropout, random_bytes
from ehrjax.nn.recurrent import Lstm
from ehrjax.nn.triplets import TripletPooling
from ehrjax.types import Outputs, StayBatch

_LAST_KNOT = 1.5  # standard deviations: beyond it too few train rows are left to learn a bend from
_MEMORY_HOURS = 12.0  # after which a measurement says e times less


class StayNetwork(nn.Module):
    """Stay network over statics, summaries and the grid of a `StayBatch`.

    Statics and summaries are expected on a common scale, such as normal scores; what is missing is 0. A batch without
    any (S + U = 0) or without time points (T = 0) leaves that branch out. A stay without vital signs has zeros for its
    series. In training `feature_dropout_rate` drops a static or summary with all of its ramps, `series_dropout_rate` a
    channel of a variable at all time points; `dropout_rate` acts on hidden units. Notes are not read.

    `triplet_share` is the weight of the triplets' logit. In training it is the chance that a stay is read by them
    alone, else by the rest alone: each has to predict by itself, and their errors differ. 0 leaves them out.
    """

    reads_stays = True  # a StayBatch, where other models read visits or tokens

    hidden_dim: int = 64
    num_ramps: int = 4
    num_outputs: int = 1
    dropout_rate: float = 0.5
    feature_dropout_rate: float = 0.4
    series_dropout_rate: float = 0.3
    triplet_share: float = 1 / 3

    @nn.compact
    def __call__(self, batch: StayBatch, *, train: bool = False) -> Outputs:
        """Return logits [B O], `pooled` [B F] (what their heads read, joined) and, with a grid, `hidden` [B T D].

        `hidden` is the LSTM's state after each time point, and zeros at masked ones.
        """
        if not 0.0 <= self.triplet_share <= 1.0:
            raise ValueError(f"triplet_share={self.triplet_share} must be at least 0 and at most 1.")
        table = jnp.concatenate([batch.statics, batch.summaries], axis=1)
        has_table, has_series = table.shape[1] > 0, 0 not in batch.values.shape[1:]
        if not (has_table or has_series):
            raise ValueError("these stays have neither statics nor a grid of vital signs: there is nothing to read.")
        logits, pooled, hidden = jnp.zeros((1, self.num_outputs)), [], None
        if has_table:
            features = self._ramps(table, train)
            logits += nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="wide")(features)
            pooled.append(self._deep(features, train))
            logits += nn.Dense(self.num_outputs, name="deep_head")(pooled[-1])
        if has_series:
            hidden, states = self._series(batch, train)
            pooled.append(states)
            logits += nn.Dense(self.num_outputs, name="series_head")(states)
        if has_series and self.triplet_share > 0:
            pooled.append(self._triplets(batch, train))
            of_triplets = nn.Dense(self.num_outputs, name="triplet_head")(pooled[-1])
            logits = self._mix(logits, of_triplets, train)
        return Outputs(logits=logits, pooled=jnp.concatenate(pooled, axis=-1), hidden=hidden)

    def _ramps(self, table: Float[Array, "B F"], train: bool) -> Float[Array, "B F*(1+E)"]:
        """The numbers themselves, then relu(slope * number + offset) for each of their ramps."""
        shape = (table.shape[1], self.num_ramps)
        slopes = self.param("ramp_slopes", nn.initializers.normal(1.0), shape)
        offsets = self.param("ramp_offsets", _uniform, shape)
        ramps = 0.5 * nn.relu(table[..., None] * slopes[None] + offsets[None])
        # Ramps of one number tell each other's, so that they are dropped together.
        keep = Dropout(self.feature_dropout_rate, name="statics_dropout")(jnp.ones_like(table), train=train)
        kept = (ramps * keep[..., None]).reshape(len(table), -1)
        return jnp.concatenate([table * keep, kept], axis=-1)

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

    def _triplets(self, batch: StayBatch, train: bool) -> Float[Array, "B F"]:
        mask = batch.time_mask & batch.has_vitals[:, None]
        bins_to_go = mask.sum(axis=1, keepdims=True) - jnp.arange(mask.shape[1])[None]  # until the index time
        times = jnp.log(jnp.maximum(bins_to_go, 1))
        observed = jnp.asarray(batch.observed, bool) & mask[..., None]
        return TripletPooling(name="triplets")(batch.values, times, observed, batch.statics, train=train)

    def _mix(self, logits: Float[Array, "B O"], of_triplets: Float[Array, "B O"], train: bool) -> Float[Array, "B O"]:
        """The weighted mean; in training one of both for each stay, by chances like the weights."""
        if not train:
            return logits + self.triplet_share * (of_triplets - logits)
        drawn = random_bytes(self.make_rng("dropout"), (len(logits), 1)).astype(jnp.int32)  # 256 is no byte
        return jnp.where(drawn < round(256 * self.triplet_share), of_triplets, logits)


def _uniform(key: Array, shape: tuple[int, int], dtype=jnp.float32) -> Float[Array, "F E"]:
    return jax.random.uniform(key, shape, dtype, -_LAST_KNOT, _LAST_KNOT)
