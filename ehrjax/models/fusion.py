"""Fusion LSTM: vital signs as a time series and a note vector -> logits of a hospital stay.

Joint fusion in the sense of Huang et al. (2020, npj Digital Medicine 3:136), for vitals and notes as in Khadanga et al.
(2019, arXiv:1909.09702):

    vitals [T K]  -> 2-layer LSTM 128, last state -> Dense 32
    notes  [D]    -> Dense 64 -> Dense 32
    both   [64]   -> Dense 32 -> Dense 16 -> Dense 1

with ReLU after each Dense but the last. Parameters with six vitals as values, note vectors of 384 and one output: both
234,241; vitals alone 206,465; notes alone 28,353.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ehrjax.nn.dropout import Dropout
from ehrjax.nn.recurrent import Lstm
from ehrjax.types import Outputs, StayBatch

MODALITIES = ("vitals", "notes")
CHANNELS = ("values", "observed", "hours_since")  # of each variable at each time point
INPUTS = (*CHANNELS, "statics")
BRANCH_DIM, NOTE_DIM, FUSED_DIMS = 32, 64, (32, 16)


class FusionLstm(nn.Module):
    """Fusion LSTM over the `modalities` that it is given, each of which a stay may lack.

    A missing branch gives a learned vector, zeros at first, in place of its own: that a stay has no notes says
    something of its own, and zeros could not be told from a branch whose units are all off. In training each modality
    is left out at `modality_dropout_rate` (Neverova et al., 2016, arXiv:1501.00102), only where both are there and
    never both, so that either is learnt to stand alone.

    `inputs` names what the LSTM reads at each time point; without "observed" and "hours_since" it cannot tell a
    measurement from a filled value. "statics" join where the branches meet, since they are
    known without vitals too, and summaries with them.
    Dropout acts between LSTM layers, on its last state and on the notes' first layer.
    """

    reads_stays = True  # a StayBatch, where other models read visits or tokens

    hidden_dim: int = 128
    num_layers: int = 2
    num_outputs: int = 1
    dropout_rate: float = 0.3
    modality_dropout_rate: float = 0.1
    modalities: tuple[str, ...] = MODALITIES
    inputs: tuple[str, ...] = ("values",)

    @nn.compact
    def __call__(self, batch: StayBatch, *, train: bool = False) -> Outputs:
        """Return logits [B O], `pooled` [B 16] (what the head reads) and, with vitals, `hidden` [B T H].

        `hidden` is the LSTM's state after each time point, and zeros at masked ones.
        """
        self._check(batch)
        used = [name for name in MODALITIES if name in self.modalities]
        present = jnp.stack([_is_present(batch, name) for name in used], axis=1)
        if train and self.modality_dropout_rate:
            present = drop_modalities(self.make_rng("dropout"), present, rate=self.modality_dropout_rate)
        hidden, branches = None, []
        for name, is_present in zip(used, present.T, strict=True):
            if name == "vitals":
                hidden, branch = self._vitals(batch, is_present, train)
            else:
                branch = self._notes(batch, is_present, train)
            absent = self.param(f"{name}_absent", nn.initializers.zeros, (BRANCH_DIM,))
            branches.append(jnp.where(is_present[:, None], branch, absent[None]))
        tables = [batch.statics, batch.summaries] if "statics" in self.inputs else []
        pooled = jnp.concatenate([*branches, *tables], axis=-1)
        for layer, width in enumerate(FUSED_DIMS):
            pooled = nn.relu(nn.Dense(width, name=f"fusion_{layer}")(pooled))
        return Outputs(logits=nn.Dense(self.num_outputs, name="head")(pooled), pooled=pooled, hidden=hidden)

    def _vitals(self, batch, is_present, train):
        """LSTM states [B T H] and the branch [B 32]."""
        mask = batch.time_mask & is_present[:, None]
        channels = [_channel(batch, name) for name in CHANNELS if name in self.inputs]
        # Zeros, not only masked: a NaN behind the mask would still reach the gradient.
        inputs = jnp.where(mask[..., None], jnp.concatenate(channels, axis=-1), 0.0)
        lstm = Lstm(self.hidden_dim, self.num_layers, self.dropout_rate, name="lstm")
        hidden, last = lstm(inputs, mask, train=train)
        last = Dropout(self.dropout_rate, name="vitals_dropout")(last, train=train)
        return hidden, nn.relu(nn.Dense(BRANCH_DIM, name="vitals")(last))

    def _notes(self, batch, is_present, train):
        """The branch [B 32]."""
        notes = jnp.where(is_present[:, None], batch.notes, 0.0)
        notes = nn.relu(nn.Dense(NOTE_DIM, name="notes_0")(notes))
        notes = Dropout(self.dropout_rate, name="notes_dropout")(notes, train=train)
        return nn.relu(nn.Dense(BRANCH_DIM, name="notes_1")(notes))

    def _check(self, batch):
        for option, names in (("modalities", MODALITIES), ("inputs", INPUTS)):
            given = getattr(self, option)
            unknown = [name for name in given if name not in names]
            if isinstance(given, str) or unknown or not given:
                raise ValueError(f"{option}={given!r} must be a tuple of some of {', '.join(names)}.")
        if not 0.0 <= self.modality_dropout_rate <= 0.5:
            raise ValueError(
                f"modality_dropout_rate={self.modality_dropout_rate} must be from 0 to 0.5: never are both left out."
            )
        if "vitals" in self.modalities:
            if not any(name in self.inputs for name in CHANNELS):
                raise ValueError(f"inputs={self.inputs!r} gives the LSTM nothing: add 'values'.")
            if 0 in batch.values.shape[1:]:
                raise ValueError("these stays have no grid of vital signs: use modalities=('notes',).")
        if "notes" in self.modalities and batch.notes.shape[1] == 0:
            raise ValueError("these stays have no note vectors: use modalities=('vitals',).")


def drop_modalities(key: Array, present: Bool[Array, "B M"], *, rate: float) -> Bool[Array, "B M"]:
    """`present` with each modality left out at `rate` (at most 1 / M), one a row at most, and only in rows with all."""
    num_modalities = present.shape[1]
    if num_modalities == 1:
        return present
    draws = jax.random.uniform(key, (present.shape[0], 1))
    columns = jnp.arange(num_modalities)[None]
    is_drawn = (draws >= columns * rate) & (draws < (columns + 1) * rate)
    return present & ~(is_drawn & present.all(axis=1, keepdims=True))


def _is_present(batch: StayBatch, name: str) -> Bool[Array, "B"]:
    """A stay without a time point has no vital signs, whatever it says."""
    return jnp.asarray(batch.has_vitals & batch.time_mask.any(axis=1) if name == "vitals" else batch.has_notes)


def _channel(batch: StayBatch, name: str) -> Float[Array, "B T K"]:
    """Hours as their log, scaled so that a day is 1."""
    channel = jnp.asarray(getattr(batch, name), jnp.float32)
    return jnp.log1p(jnp.maximum(channel, 0.0)) / jnp.log1p(24.0) if name == "hours_since" else channel
