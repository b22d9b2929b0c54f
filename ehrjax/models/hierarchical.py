"""Hierarchical transformer: codes -> visit vectors -> a transformer over the visits.

Within a visit, codes meet through induced set attention (Lee et al., 2019, Set Transformer, arXiv:1810.00825) with one
inducing point a head: the visit pools its codes by a softmax for each head and hands the result back to them. That is
linear in the number of codes, and the codes stay ragged rows [B T], so no visit is padded to the longest.

Parameters at vocabulary 1000 without a head: small 664,576, medium 4,604,672, large 26,469,376.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from ehrjax.nn.dropout import Dropout
from ehrjax.nn.sequence_pooling import pool_sequences
from ehrjax.nn.transformer import Encoder, FeedForward, LayerNorm, sinusoids
from ehrjax.types import Outputs, TokenBatch

# The widths of BEHRT, as many layers for the codes as it has, and half as many over the visits. At small size on the
# simulator (one seed, masked-code loss after one epoch) a second layer for the codes brought 3.30 to 3.17, one more
# over the visits nothing. It costs little: no code attends to the row, and visits are a seventh of it.
SIZES = {
    "small": {"embed_dim": 64, "hidden_dim": 128, "num_visit_layers": 2, "num_sequence_layers": 1, "num_heads": 4},
    "medium": {"embed_dim": 128, "hidden_dim": 256, "num_visit_layers": 4, "num_sequence_layers": 2, "num_heads": 8},
    "large": {"embed_dim": 256, "hidden_dim": 512, "num_visit_layers": 6, "num_sequence_layers": 3, "num_heads": 8},
}
POOLINGS = ("last", "mean", "max")
TIME_WIDTH = 32  # sines and cosines for each of age, gap and number of the visit

_EMBEDDING_INIT = nn.initializers.normal(0.02)


class Hierarchical(nn.Module):
    """Induced set attention over the codes of each visit, then a transformer encoder over the visits of each patient.

    A code's state joins what its visit says of it with the state of the visit among the others, which reads all visits
    or, if `causal`, none later than its own. [CLS] and [SEP] are ignored: their states are zeros. `hidden` of a visit
    without codes reads its time and the other visits.
    """

    vocab_size: int
    embed_dim: int = 64
    hidden_dim: int = 128
    num_visit_layers: int = 2
    num_sequence_layers: int = 1
    num_heads: int = 4
    num_outputs: int = 0
    dropout_rate: float = 0.1
    level: str = "patient"
    pooling: str = "last"
    causal: bool = True
    dtype: DTypeLike | None = None
    remat: bool = False
    path: str | None = None

    @nn.compact
    def __call__(self, batch: TokenBatch, *, train: bool = False, causal: bool | None = None) -> Outputs:
        """Return `tokens` [B T H], `hidden` [B V H], `pooled` [B S H] (last, mean or max) and logits of the head."""
        causal = self.causal if causal is None else causal
        self._check(causal)
        dropout = Dropout(self.dropout_rate)
        table = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=_EMBEDDING_INIT, name="embedding")
        embedded = LayerNorm(dtype=self.dtype, name="embedding_norm")(table(batch.tokens))
        codes = nn.Dense(self.hidden_dim, dtype=self.dtype, name="project")(dropout(embedded, train=train))
        codes, visits = self._visit_encoder()(codes, batch.code_visits, batch.visit_mask.shape[1], train=train)
        visits = visits + nn.Dense(self.hidden_dim, dtype=self.dtype, name="time")(time_waves(batch))
        visits = dropout(visits, train=train)
        hidden = self._sequence_encoder()(visits, batch.visit_segments, causal=causal, train=train)
        hidden = jnp.where(batch.visit_mask[..., None], hidden, 0)
        context = nn.Dense(self.hidden_dim, use_bias=False, dtype=self.dtype, name="context")(hidden)
        codes = codes + to_codes(context, batch.code_visits)
        tokens = LayerNorm(dtype=self.dtype, name="norm")(codes)
        tokens = jnp.where(batch.code_visits[..., None] >= 0, tokens, 0)
        pooled = pool_sequences(self.pooling, tokens, hidden, batch)
        logits = None
        if self.num_outputs:
            states = pooled if self.level == "patient" else hidden
            logits = nn.Dense(self.num_outputs, name="head")(dropout(states.astype(jnp.float32), train=train))
        return Outputs(logits=logits, pooled=pooled, hidden=hidden, tokens=tokens)

    def _visit_encoder(self):
        return VisitEncoder(
            self.num_visit_layers, self.num_heads, self.dropout_rate, self.dtype, self.remat, name="visit_encoder"
        )

    def _sequence_encoder(self):
        return Encoder(
            self.num_sequence_layers,
            self.num_heads,
            4 * self.hidden_dim,
            self.dropout_rate,
            dtype=self.dtype,
            remat=self.remat,
            path=self.path,
            name="encoder",
        )

    def _check(self, causal):
        if self.level not in ("patient", "visit"):
            raise ValueError(f"level={self.level!r} is not known: use 'patient' or 'visit'.")
        if self.level == "visit" and not causal:
            raise ValueError(
                "level='visit' with causal=False would let a visit's logits read later visits: "
                "use causal=True or level='patient'."
            )
        if self.pooling not in POOLINGS:
            raise ValueError(
                f"pooling={self.pooling!r} is not known here, where [CLS] has no state: use one of "
                f"{', '.join(POOLINGS)}."
            )


class VisitEncoder(nn.Module):
    """Blocks over the codes of each visit, one scan with their parameters stacked on axis 0 under "layers".

    Returns the states of the codes [B T H] and what each visit pools from them [B V H], zeros where it has no codes.
    """

    num_layers: int
    num_heads: int
    dropout_rate: float = 0.0
    dtype: DTypeLike | None = None
    remat: bool = False

    @nn.compact
    def __call__(
        self, codes: Float[Array, "B T H"], code_visits: Int[Array, "B T"], num_visits: int, *, train: bool = False
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B V H"]]:
        def run(block, carry, code_visits):
            return block(carry, code_visits, num_visits, train=train), None

        block = VisitBlock(self.num_heads, self.dropout_rate, self.dtype, name="layers")
        scan = nn.scan(
            nn.remat(run, prevent_cse=False) if self.remat else run,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.num_layers,
            # As in Encoder: stacking and unstacking activations takes long on CPU.
            unroll=self.num_layers if jax.default_backend() == "cpu" else 1,
        )
        codes, _ = scan(block, codes, code_visits)
        normed = LayerNorm(dtype=self.dtype, name="norm")(codes)
        return codes, VisitAttention(self.num_heads, self.dtype, name="visit_pooling")(normed, code_visits, num_visits)


class VisitBlock(nn.Module):
    """Pre-LN block: codes + what their visit pools from norm(codes), then codes + feed-forward(norm(codes))."""

    num_heads: int
    dropout_rate: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, codes: Float[Array, "B T H"], code_visits: Int[Array, "B T"], num_visits: int, *, train: bool = False
    ) -> Float[Array, "B T H"]:
        dropout = Dropout(self.dropout_rate)
        normed = LayerNorm(dtype=self.dtype, name="attention_norm")(codes)
        visits = VisitAttention(self.num_heads, self.dtype, name="attention")(normed, code_visits, num_visits)
        codes = codes + dropout(to_codes(visits, code_visits), train=train)
        normed = LayerNorm(dtype=self.dtype, name="ffn_norm")(codes)
        return codes + dropout(FeedForward(4 * codes.shape[-1], self.dtype, name="ffn")(normed), train=train)


class VisitAttention(nn.Module):
    """Vector of each visit: its codes attended to by one learned query a head; zeros for a visit without codes.

    A fixed query and the projection of the keys make one vector a head, so `score` is [H N] and no key is computed.
    """

    num_heads: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, codes: Float[Array, "B T H"], code_visits: Int[Array, "B T"], num_visits: int
    ) -> Float[Array, "B V H"]:
        width = codes.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide hidden_dim={width}.")
        scores = nn.Dense(self.num_heads, use_bias=False, dtype=self.dtype, name="score")(codes)
        values = nn.Dense(width, use_bias=False, dtype=self.dtype, name="value")(codes)
        visits = attend_by_visit(scores, values, code_visits, num_visits).astype(values.dtype)
        # Without a bias, so that a visit without codes stays zeros.
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="out")(visits)


def attend_by_visit(
    scores: Float[Array, "B T N"], values: Float[Array, "B T D"], code_visits: Int[Array, "B T"], num_visits: int
) -> Float[Array, "B V D"]:
    """Sum of the values of each visit, each of N slices of D weighted by the softmax of its score within the visit.

    Float32. Tokens outside of visits (`code_visits` -1, anywhere in the row) count for nothing; a visit without codes
    gives zeros.
    """
    batch_size, _, num_heads = scores.shape
    rows = jnp.arange(batch_size)[:, None] * (num_visits + 1)
    segments = (rows + jnp.where(code_visits < 0, num_visits, code_visits)).reshape(-1)
    scores = scores.astype(jnp.float32).reshape(-1, num_heads)
    highest = jnp.full((batch_size * (num_visits + 1), num_heads), -jnp.inf)
    highest = highest.at[segments].max(jax.lax.stop_gradient(scores), mode="promise_in_bounds")
    exponents = jnp.exp(scores - highest[segments])
    weighted = exponents[..., None] * values.astype(jnp.float32).reshape(*exponents.shape, -1)
    totals = _sum_by_visit(exponents, segments, batch_size, num_visits)
    sums = _sum_by_visit(weighted, segments, batch_size, num_visits)
    # A visit with a code holds the exponent 1 of its highest score; dividing a visit costs less than every code.
    visits = sums / jnp.where(totals > 0, totals, 1.0)[..., None]
    return visits.reshape(batch_size, num_visits, -1)


def to_codes(visits: Float[Array, "B V D"], code_visits: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The vector of each code's visit; zeros for tokens outside of visits."""
    taken = jnp.take_along_axis(visits, jnp.maximum(code_visits, 0)[..., None], axis=1)
    return jnp.where(code_visits[..., None] >= 0, taken, 0)


def time_waves(batch: TokenBatch) -> Float[Array, "B V 3*W"]:
    """Sines and cosines of the age in years, of log2(1 + gap in days) and of the visit's number in its sequence."""
    gaps = jnp.log2(1.0 + jnp.maximum(batch.visit_gap_days, 0.0))
    columns = jnp.arange(batch.visit_mask.shape[1])[None]
    starts = jnp.where(_is_first(batch.visit_segments), columns, 0)
    numbers = columns - jax.lax.cummax(starts, axis=1)
    return jnp.concatenate([sinusoids(values, TIME_WIDTH) for values in (batch.visit_ages, gaps, numbers)], axis=-1)


def _is_first(segment_ids: Int[Array, "B V"]) -> Bool[Array, "B V"]:
    """Whether a column is the first of its segment."""
    before = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return segment_ids != before


def _sum_by_visit(
    values: Float[Array, "B*T *rest"], segments: Int[Array, "B*T"], batch_size: int, num_visits: int
) -> Float[Array, "B V *rest"]:
    sums = jnp.zeros((batch_size * (num_visits + 1), *values.shape[1:]))
    sums = sums.at[segments].add(values, mode="promise_in_bounds")
    return sums.reshape(batch_size, num_visits + 1, *values.shape[1:])[:, :num_visits]
