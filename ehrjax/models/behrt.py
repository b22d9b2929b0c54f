"""BEHRT: codes, ages, visits and positions -> transformer encoder -> state of each token, visit and patient.

Parameters at vocabulary 1000: small 488,320, medium 3,365,376, large 19,418,112; with an untied masked-code head
(Dense, LayerNorm, decoder with bias) 634,088, 3,688,680 and 20,194,792. The classic encoders (506,624, 3,401,984,
19,491,328) have 290 rows of width E more (540 for ages, visits, segments and norms beside codes and positions; ours:
120 ages, 128 visits and a norm) and no LayerNorm behind the last block, which is 2 H; the heads are equal.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from ehrjax.nn.dropout import Dropout
from ehrjax.nn.sequence_pooling import SEQUENCE_POOLINGS, gather_visits, pool_sequences
from ehrjax.nn.transformer import Encoder, LayerNorm, sinusoids
from ehrjax.types import Outputs, TokenBatch

SIZES = {
    "small": {"embed_dim": 64, "hidden_dim": 128, "num_layers": 2, "num_heads": 4, "max_tokens": 50},
    "medium": {"embed_dim": 128, "hidden_dim": 256, "num_layers": 4, "num_heads": 8, "max_tokens": 100},
    "large": {"embed_dim": 256, "hidden_dim": 512, "num_layers": 6, "num_heads": 8, "max_tokens": 200},
}
NUM_GAP_BUCKETS = 16

_EMBEDDING_STD = 0.02  # small, so that rare codes start near their neighbours
_EMBEDDING_INIT = nn.initializers.normal(_EMBEDDING_STD)


class Behrt(nn.Module):
    """BEHRT (Li et al., 2020, Scientific Reports 10:7155).

    Differs from the paper: pre-LN blocks, packed rows, embeddings narrower than the encoder, causal unless told.
    """

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
    position: str = "learned"
    visit_parity: bool = False
    gap: bool = False
    num_ages: int = 120
    max_visit_ids: int = 128
    dtype: DTypeLike | None = None
    remat: bool = False
    unroll: int | None = None
    path: str | None = None

    @nn.compact
    def __call__(self, batch: TokenBatch, *, train: bool = False, causal: bool | None = None) -> Outputs:
        """Return `tokens` [B T H], `hidden` [B V H] (at each visit's [SEP]), `pooled` [B S H] and logits."""
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
        tokens = encoder(inputs, batch.segment_ids, causal=causal, train=train)
        hidden = gather_visits(tokens, batch)
        pooled = pool_sequences(self.pooling, tokens, hidden, batch)
        logits = None
        if self.num_outputs:
            states = pooled if self.level == "patient" else hidden
            logits = nn.Dense(self.num_outputs, name="head")(dropout(states.astype(jnp.float32), train=train))
        return Outputs(logits=logits, pooled=pooled, hidden=hidden, tokens=tokens)

    def _embed(self, batch: TokenBatch) -> Float[Array, "B T E"]:
        """Sum of the embeddings of what a token is and when it happened."""
        total = self._table("embedding", self.vocab_size, batch.tokens)
        total += self._table("age_embedding", self.num_ages, batch.ages)
        total += self._table("visit_embedding", self.max_visit_ids, batch.visit_ids)
        if self.position == "learned":
            total += self._table("position_embedding", self.max_tokens, batch.positions)
        else:
            total += _EMBEDDING_STD * sinusoids(batch.positions, self.embed_dim)
        if self.visit_parity:
            parity = jnp.where(batch.visit_ids > 0, 1 + batch.visit_ids % 2, 0)
            total += self._table("parity_embedding", 3, parity)
        if self.gap:
            total += self._table("gap_embedding", NUM_GAP_BUCKETS, gap_buckets(batch))
        return total

    def _table(self, name, num_rows, ids):
        table = nn.Embed(num_rows, self.embed_dim, embedding_init=_EMBEDDING_INIT, name=name)
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
        if self.position not in ("learned", "sinusoidal"):
            raise ValueError(f"position={self.position!r} is not known: use 'learned' or 'sinusoidal'.")


def gap_buckets(batch: TokenBatch) -> Int[Array, "B T"]:
    """Days since the previous visit as 1 + log2 of days + 1, rounded up (0 days: 1); 0 on special tokens."""
    columns = jnp.maximum(batch.code_visits, 0)
    days = jnp.take_along_axis(jnp.maximum(batch.visit_gap_days, 0.0), columns, axis=1)
    buckets = 1 + jnp.ceil(jnp.log2(1.0 + days)).astype(jnp.int32)
    return jnp.where(batch.code_visits >= 0, jnp.minimum(buckets, NUM_GAP_BUCKETS - 1), 0)
