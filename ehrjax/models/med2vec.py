"""Med2Vec: a vector for each code, and the rectified mean of its codes' vectors for a visit.

Choi et al. (2016, KDD, arXiv:1602.05568), learnt by skip-gram with negative sampling (Mikolov et al., 2013,
arXiv:1310.4546; `ehrjax.objectives.skip_gram`). Differs from the paper: one width for codes and visits, no layer
between them, no demographics. Parameters at vocabulary 1000, with as many again in the context table: small 64,000,
medium 128,000, large 256,000.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ehrjax.nn.dropout import Dropout
from ehrjax.nn.pooling import pool_sum
from ehrjax.nn.sequence_pooling import pool_sequences
from ehrjax.types import Outputs, TokenBatch

# The widths of BEHRT's embeddings, so that a table learnt here fits there.
SIZES = {"small": {"embed_dim": 64}, "medium": {"embed_dim": 128}, "large": {"embed_dim": 256}}
POOLINGS = ("last", "mean")


class Med2Vec(nn.Module):
    """Code vectors as `tokens`, visit vectors as `hidden` and their mean as `pooled`.

    In a causal pass `hidden` of a visit is the mean of its sequence's visit vectors so far, which a head of
    level="visit" reads. With `with_context` there is a second table, "context", of the codes as targets: the skip-gram
    objective needs it, nothing else does.
    """

    vocab_size: int
    embed_dim: int = 64
    num_outputs: int = 0
    dropout_rate: float = 0.1
    level: str = "patient"
    pooling: str = "mean"
    causal: bool = True
    with_context: bool = False

    @nn.compact
    def __call__(self, batch: TokenBatch, *, train: bool = False, causal: bool | None = None) -> Outputs:
        """Return `tokens` [B T E], `hidden` [B V E], `pooled` [B S E] (mean of the visits, or last) and logits.

        Dropout acts before the head. Vectors of special tokens and of padding are zeros.
        """
        causal = self.causal if causal is None else causal
        self._check(causal)
        embedding = nn.Embed(
            self.vocab_size, self.embed_dim, embedding_init=nn.initializers.normal(0.1), name="embedding"
        )
        if self.with_context:
            zeros = nn.initializers.zeros  # as word2vec starts
            _ = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=zeros, name="context").embedding
        tokens = jnp.where(batch.code_visits[..., None] >= 0, embedding(batch.tokens), 0)
        visits = nn.relu(mean_by_visit(tokens, batch))
        means = running_mean(visits, batch)
        hidden = means if causal else visits
        pooled = pool_sequences("last", tokens, hidden if self.pooling == "last" else means, batch)
        logits = None
        if self.num_outputs:
            states = Dropout(self.dropout_rate)(pooled if self.level == "patient" else hidden, train=train)
            logits = nn.Dense(self.num_outputs, name="head")(states)
        return Outputs(logits=logits, pooled=pooled, hidden=hidden, tokens=tokens)

    def _check(self, causal):
        if self.level not in ("patient", "visit"):
            raise ValueError(f"level={self.level!r} is not known: use 'patient' or 'visit'.")
        if self.level == "visit" and not causal:
            raise ValueError(
                "level='visit' with causal=False would let a visit's logits read nothing but that visit: "
                "use causal=True or level='patient'."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} is not known here: use one of {', '.join(POOLINGS)}.")


def mean_by_visit(codes: Float[Array, "B T D"], batch: TokenBatch) -> Float[Array, "B V D"]:
    """Mean over the codes of each visit, zeros for a visit without; `codes` are zeros outside of visits."""
    return sum_by_visit(codes, batch) / jnp.maximum(count_codes(batch), 1.0)[..., None]


def count_codes(batch: TokenBatch) -> Float[Array, "B V"]:
    """How many codes each visit holds."""
    return sum_by_visit((batch.code_visits >= 0).astype(jnp.float32)[..., None], batch)[..., 0]


def sum_by_visit(codes: Float[Array, "B T D"], batch: TokenBatch) -> Float[Array, "B V D"]:
    """Sum over the codes of each visit; `codes` are zeros outside of visits."""
    # Special tokens, being zeros, may count as codes of the visit before them: so the columns ascend.
    columns = jnp.maximum(jax.lax.cummax(jnp.asarray(batch.code_visits), axis=1), 0)
    return pool_sum(codes, columns, batch.visit_mask.shape[1])


def running_mean(visits: Float[Array, "B V D"], batch: TokenBatch) -> Float[Array, "B V D"]:
    """Mean of each visit and those before it in its sequence; zeros for padding."""
    before = jnp.pad(batch.visit_segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = (batch.visit_segments != before)[..., None]
    counted = jnp.concatenate([visits, jnp.ones_like(visits[..., :1])], axis=-1)
    sums, _ = jax.lax.associative_scan(_add_unless_start, (counted, starts), axis=1)
    return jnp.where(batch.visit_mask[..., None], sums[..., :-1] / sums[..., -1:], 0)


def _add_unless_start(
    left: tuple[Float[Array, "*v D"], Bool[Array, "*v 1"]], right: tuple[Float[Array, "*v D"], Bool[Array, "*v 1"]]
) -> tuple[Float[Array, "*v D"], Bool[Array, "*v 1"]]:
    """Sum of two neighbouring runs of visits, of the right one alone where a sequence starts in it."""
    (left_sum, left_starts), (right_sum, right_starts) = left, right
    return jnp.where(right_starts, right_sum, left_sum + right_sum), left_starts | right_starts
