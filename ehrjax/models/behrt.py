"""BEHRT: codes, ages, visits and positions -> transformer encoder -> state of each token, visit and patient.

Parameters at vocabulary 1000, and with an untied masked-code head (Dense, LayerNorm, decoder with bias):

    positions   small    with head   medium     with head   large       with head
    rotary      485,120  630,888     3,352,576  3,675,880   19,366,912  20,143,592
    learned     488,320  634,088     3,365,376  3,688,680   19,418,112  20,194,792
    (classic)   506,624  652,392     3,401,984  3,725,288   19,491,328  20,268,008

Learned positions are `max_tokens` rows of width E, which rotary and sinusoidal ones do without. The classic encoders
have 290 rows more than ours with learned positions (540 for ages, visits, segments and norms beside codes and
positions; ours: 120 ages, 128 visits and a norm) and no LayerNorm behind the last block, which is 2 H; the heads are
equal.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from ehrjax.nn.dropout import Dropout
from ehrjax.nn.sequence_pooling import SEQUENCE_POOLINGS, gather_visits, pool_sequences, token_visits
from ehrjax.nn.transformer import Encoder, LayerNorm, sinusoids
from ehrjax.types import Outputs, TokenBatch

SIZES = {
    "small": {"embed_dim": 64, "hidden_dim": 128, "num_layers": 2, "num_heads": 4, "max_tokens": 50},
    "medium": {"embed_dim": 128, "hidden_dim": 256, "num_layers": 4, "num_heads": 8, "max_tokens": 100},
    "large": {"embed_dim": 256, "hidden_dim": 512, "num_layers": 6, "num_heads": 8, "max_tokens": 200},
}
NUM_GAP_BUCKETS = 16

# What a token is outweighs when it happened. Masked codes of simulated patients, val accuracy in single runs with visit
# heads and learned positions: 0.118 after 500 steps with 0.02 for both, 0.182 after 300 with these.
_CODE_STD, _TIME_STD = 0.1, 0.02
POSITIONS = ("rotary", "learned", "sinusoidal")


class Behrt(nn.Module):
    """BEHRT (Li et al., 2020, Scientific Reports 10:7155).

    Differs from the paper: pre-LN blocks, packed rows, embeddings narrower than the encoder, causal unless told, rotary
    positions (`position`; a token's neighbours say most, and these find them at once), and `visit_heads`: half of the
    heads see their own visit only. Masked codes of simulated patients, small size, rows of 128, 1,000 steps of 8 rows,
    val accuracy: 0.05 with neither, 0.17 with visit heads, 0.33 with both (single runs, 2026-11-21; all three had
    learned positions, the last one beside the rotary ones).
    """

    reads_columns = True  # not a field: what models/pretraining.py asks of an encoder

    vocab_size: int
    embed_dim: int = 64
    hidden_dim: int = 128
    num_layers: int = 2
    num_heads: int = 4
    max_tokens: int = 50
    num_outputs: int = 0
    dropout_rate: float = 0.1
    level: str = "patient"
    pooling: str = "last"
    causal: bool = True
    position: str = "rotary"
    visit_heads: bool = True
    visit_parity: bool = False
    gap: bool = False
    num_ages: int = 120
    max_visit_ids: int = 128
    dtype: DTypeLike | None = None
    remat: bool = False
    unroll: int | None = None
    path: str | None = None

    @nn.compact
    def __call__(
        self,
        batch: TokenBatch,
        *,
        train: bool = False,
        causal: bool | None = None,
        columns: Int[Array, "B M"] | None = None,
    ) -> Outputs:
        """Return `tokens` [B T H], `hidden` [B V H] (at each visit's [SEP]), `pooled` [B S H] and logits.

        With `columns`, only `tokens` [B M H] at these: what is asked of some tokens costs less than a whole pass. A
        head on visits (pooling "last", or level "visit") asks for those alone, and then `tokens` is None.
        """
        causal = self.causal if causal is None else causal
        self._check(causal)
        dropout = Dropout(self.dropout_rate)
        embedded = LayerNorm(dtype=self.dtype, name="embedding_norm")(self._embed(batch))
        inputs = nn.Dense(self.hidden_dim, dtype=self.dtype, name="project")(dropout(embedded, train=train))
        encoder = Encoder(
            self.num_layers,
            self.num_heads,
            4 * self.hidden_dim,
            self.dropout_rate,
            dtype=self.dtype,
            remat=self.remat,
            unroll=self.unroll,
            path=self.path,
            name="encoder",
        )
        segments = (visit_segments(batch), batch.segment_ids) if self.visit_heads else batch.segment_ids
        positions = batch.positions if self.position == "rotary" else None
        if columns is not None:
            return Outputs(tokens=encoder(inputs, segments, positions, columns, causal=causal, train=train))
        if self.num_outputs and self.pooling == "last":
            tokens, states = None, encoder(inputs, segments, positions, batch.visit_ends, causal=causal, train=train)
            hidden = jnp.where(batch.visit_mask[..., None], states, 0)
        else:
            tokens = encoder(inputs, segments, positions, causal=causal, train=train)
            hidden = gather_visits(tokens, batch)
        pooled = pool_sequences(self.pooling, tokens, hidden, batch)
        logits = None
        if self.num_outputs:
            states = pooled if self.level == "patient" else hidden
            logits = nn.Dense(self.num_outputs, name="head")(dropout(states.astype(jnp.float32), train=train))
        return Outputs(logits=logits, pooled=pooled, hidden=hidden, tokens=tokens)

    def _embed(self, batch: TokenBatch) -> Float[Array, "B T E"]:
        """Sum of the embeddings of what a token is and when it happened."""
        total = self._table("embedding", self.vocab_size, batch.tokens, std=_CODE_STD)
        total += self._table("age_embedding", self.num_ages, batch.ages)
        total += self._table("visit_embedding", self.max_visit_ids, batch.visit_ids)
        if self.position == "learned":
            total += self._table("position_embedding", self.max_tokens, batch.positions)
        elif self.position == "sinusoidal":
            total += _TIME_STD * sinusoids(batch.positions, self.embed_dim)
        if self.visit_parity:
            parity = jnp.where(batch.visit_ids > 0, 1 + batch.visit_ids % 2, 0)
            total += self._table("parity_embedding", 3, parity)
        if self.gap:
            total += self._table("gap_embedding", NUM_GAP_BUCKETS, gap_buckets(batch))
        return total

    def _table(self, name, num_rows, ids, std=_TIME_STD):
        table = nn.Embed(num_rows, self.embed_dim, embedding_init=nn.initializers.normal(std), name=name)
        return table(jnp.clip(ids, 0, num_rows - 1))

    def _check(self, causal):
        if self.level not in ("patient", "visit"):
            raise ValueError(f"level={self.level!r} is not known: use 'patient' or 'visit'.")
        if self.level == "visit" and not causal:
            raise ValueError(
                "level='visit' with causal=False would let a visit's logits read later visits: "
                "use causal=True or level='patient'."
            )
        if self.pooling not in SEQUENCE_POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is not known: use one of {', '.join(SEQUENCE_POOLINGS)}.")
        if self.pooling == "cls" and causal and self.num_outputs and self.level == "patient":
            raise ValueError(
                "pooling='cls' with causal=True reads [CLS], which sees itself alone: every patient would get the same "
                "logits. Use pooling='last', or causal=False."
            )
        if self.position not in POSITIONS:
            raise ValueError(f"position={self.position!r} is not known: use one of {', '.join(POSITIONS)}.")


def visit_segments(batch: TokenBatch) -> Int[Array, "B T"]:
    """Segment ids by visit: a visit's codes and its [SEP] share one; each [CLS] and the padding have their own."""
    owners = token_visits(batch)
    return jnp.where(owners >= 0, owners, batch.visit_mask.shape[1] + batch.segment_ids)


def gap_buckets(batch: TokenBatch) -> Int[Array, "B T"]:
    """Days since the previous visit as 1 + log2 of days + 1, rounded up (0 days: 1); 0 on special tokens."""
    columns = jnp.maximum(batch.code_visits, 0)
    days = jnp.take_along_axis(jnp.maximum(batch.visit_gap_days, 0.0), columns, axis=1)
    buckets = 1 + jnp.ceil(jnp.log2(1.0 + days)).astype(jnp.int32)
    return jnp.where(batch.code_visits >= 0, jnp.minimum(buckets, NUM_GAP_BUCKETS - 1), 0)
