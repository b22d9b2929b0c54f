"""Visit LSTM: codes -> embeddings -> pooled visits -> LSTM -> head.

The recurrent model of Choi et al. (2016, Doctor AI; JMLR W&C 56) with a choice of poolings. Parameters at vocabulary
1000 with mean pooling and one output: small 522,497, medium 3,930,625, large 23,593,985.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ehrjax.nn.pooling import VisitPooling
from ehrjax.nn.recurrent import Lstm
from ehrjax.nn.segments import sequence_bounds
from ehrjax.types import Outputs, TokenBatch, VisitBatch

SIZES = {
    "small": {"embed_dim": 128, "hidden_dim": 256, "num_layers": 1, "dropout_rate": 0.3},
    "medium": {"embed_dim": 256, "hidden_dim": 512, "num_layers": 2, "dropout_rate": 0.3},
    "large": {"embed_dim": 512, "hidden_dim": 1024, "num_layers": 3, "dropout_rate": 0.4},
}

# Small, so that codes seen too seldom to be learnt add next to nothing: from N(0, 1) they were learnt by heart.
_EMBEDDING_INIT = nn.initializers.normal(0.1)


class VisitLstm(nn.Module):
    """Visit LSTM with one logit vector a patient (`level="patient"`) or a visit (`level="visit"`).

    A patient's logits read the state after the last visit; a visit's logits read the state after that visit, so they
    depend on nothing later. `vocab_size` counts the special tokens. `use_time_features` appends age and the log of the
    gap to each visit vector (8 * hidden_dim more parameters a direction); without it the model sees order but no time.
    Dropout acts on visit vectors, between layers and before the head. `num_outputs=0` leaves out the head, and logits
    are None. Of a token batch, packed or not, the patient's state is that of each sequence of the row.
    """

    vocab_size: int
    embed_dim: int = 128
    hidden_dim: int = 256
    num_layers: int = 1
    num_outputs: int = 1
    dropout_rate: float = 0.3
    pooling: str = "mean"
    bidirectional: bool = False
    level: str = "patient"
    use_time_features: bool = False

    has_token_states = False  # not a field: what models/pretraining.py asks of an encoder

    @nn.compact
    def __call__(self, batch: VisitBatch | TokenBatch, *, train: bool = False, causal: bool | None = None) -> Outputs:
        """Return logits [B K] or [B V K], `hidden` [B V H], `pooled` [B H] and, for attention, code weights [B T].

        From a token batch pooled is [B S H], patient logits are [B S K], and code weights come in the order of
        `in_visit_order`. `causal` only states what the caller needs: False where the model is bidirectional, True
        where it is not.
        """
        self._check(batch, causal)
        num_sequences = batch.example_ids.shape[1] if isinstance(batch, TokenBatch) else None
        if num_sequences is not None:
            batch = in_visit_order(batch)
        num_visits = batch.visit_mask.shape[1]
        embedded = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=_EMBEDDING_INIT, name="embedding")(
            batch.codes
        )
        visits, attention = VisitPooling(self.pooling, name="pooling")(embedded, batch.code_visits, num_visits)
        if self.use_time_features:
            visits = jnp.concatenate([visits, time_features(batch)], axis=-1)
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        lstm = Lstm(self.hidden_dim, self.num_layers, self.dropout_rate, self.bidirectional, name="lstm")
        hidden, pooled = lstm(dropout(visits), batch.visit_mask, batch.segment_ids, train=train)
        if num_sequences is not None:
            pooled = self._pool_sequences(hidden, batch.segment_ids, num_sequences)
        logits = None
        if self.num_outputs:
            logits = nn.Dense(self.num_outputs, name="head")(dropout(pooled if self.level == "patient" else hidden))
        return Outputs(logits=logits, pooled=pooled, hidden=hidden, attention=attention)

    def _pool_sequences(self, hidden, segment_ids, num_sequences):
        """State [B S H] after the last visit of each sequence, backwards after its first; zeros where it has none."""
        first, last, count = sequence_bounds(segment_ids, num_sequences)
        pooled = jnp.take_along_axis(hidden, last[..., None], axis=1)
        if self.bidirectional:
            backward = jnp.take_along_axis(hidden, first[..., None], axis=1)
            pooled = jnp.concatenate([pooled[..., : self.hidden_dim], backward[..., self.hidden_dim :]], axis=-1)
        return jnp.where(count[..., None] > 0, pooled, 0.0)

    def _check(self, batch, causal):
        if causal is False and not self.bidirectional:
            raise ValueError("causal=False needs an LSTM that reads both ways: use bidirectional=True, or causal=None.")
        if causal and self.bidirectional:
            raise ValueError("causal=True with bidirectional=True: its states read later visits; use one direction.")
        if self.level not in ("patient", "visit"):
            raise ValueError(f"level={self.level!r} is not known: use 'patient' or 'visit'.")
        is_packed = isinstance(batch, VisitBatch) and batch.segment_ids is not None
        if self.level == "patient" and is_packed:
            raise ValueError(
                "a packed row holds several patients: use level='visit', with labels at their last visits."
            )
        if self.level == "visit" and self.bidirectional:
            raise ValueError(
                "level='visit' with bidirectional=True would let a visit's logits read later visits: "
                "use bidirectional=False or level='patient'."
            )


def in_visit_order(batch: TokenBatch) -> VisitBatch:
    """The batch for a model of visits, each row's codes first and special tokens behind them as padding.

    Poolings count on ascending visits, and in a token row [CLS], [SEP] and left-out codes stand in between.
    """
    is_code = batch.code_visits >= 0
    num_codes = is_code.sum(axis=1, keepdims=True)
    columns = jnp.where(is_code, is_code.cumsum(axis=1), num_codes + (~is_code).cumsum(axis=1)) - 1
    rows = jnp.arange(columns.shape[0])[:, None]
    codes, code_visits = (
        jnp.zeros_like(values).at[rows, columns].set(values, unique_indices=True)
        for values in (batch.tokens, batch.code_visits)
    )
    return VisitBatch(
        codes=codes,
        code_visits=code_visits,
        visit_mask=batch.visit_mask,
        ages=batch.visit_ages,
        gap_days=batch.visit_gap_days,
        labels=batch.labels,
        label_mask=batch.label_mask,
        example_mask=batch.example_mask,
        example_ids=batch.example_ids[:, 0],
        segment_ids=batch.visit_segments,
    )


def time_features(batch: VisitBatch) -> Float[Array, "B V 2"]:
    """Age in centuries and log1p of the gap in days, scaled so that a year is 1."""
    gaps = jnp.log1p(jnp.maximum(batch.gap_days, 0.0)) / jnp.log1p(365.25)
    return jnp.stack([batch.ages / 100.0, gaps], axis=-1)
