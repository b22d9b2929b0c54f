"""Codes to visit vectors: masked pooling over the codes of each visit.

Codes come as rows [B T] with the column of their visit beside them (-1 is padding), so the work grows with the number
of codes and not with the longest visit. A visit without codes pools to zeros, and gradients stay finite.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

POOLINGS = ("mean", "sum", "max", "attention")


def pool_sum(embedded: Float[Array, "B T D"], code_visits: Int[Array, "B T"], num_visits: int) -> Float[Array, "B V D"]:
    """Sum of the vectors of each visit."""
    batch_size, _, width = embedded.shape
    segments = _segments(code_visits, num_visits)
    # Every index is in bounds by construction; saying so spares a check per element.
    sums = jnp.zeros((batch_size * (num_visits + 1), width), embedded.dtype)
    sums = sums.at[segments].add(embedded.reshape(-1, width), indices_are_sorted=True, mode="promise_in_bounds")
    return _drop_padding(sums, batch_size, num_visits)


def pool_mean(
    embedded: Float[Array, "B T D"], code_visits: Int[Array, "B T"], num_visits: int
) -> Float[Array, "B V D"]:
    """Mean of the vectors of each visit."""
    counts = pool_sum(jnp.ones((*code_visits.shape, 1), embedded.dtype), code_visits, num_visits)
    return pool_sum(embedded, code_visits, num_visits) / jnp.maximum(counts, 1.0)


def pool_max(embedded: Float[Array, "B T D"], code_visits: Int[Array, "B T"], num_visits: int) -> Float[Array, "B V D"]:
    """Elementwise maximum over the vectors of each visit; the gradient is shared equally between ties."""
    batch_size, num_codes, width = embedded.shape
    segments = _segments(code_visits, num_visits)
    flat = embedded.reshape(-1, width)
    # A scatter-max has no derivative in JAX: find the winners without one, then average them.
    highest = jax.ops.segment_max(
        jax.lax.stop_gradient(flat), segments, batch_size * (num_visits + 1), indices_are_sorted=True
    )
    is_winner = (flat == highest[segments]).astype(embedded.dtype).reshape(batch_size, num_codes, width)
    total = pool_sum(embedded * is_winner, code_visits, num_visits)
    return total / jnp.maximum(pool_sum(is_winner, code_visits, num_visits), 1.0)


def pool_weighted(
    embedded: Float[Array, "B T D"],
    scores: Float[Array, "B T"],
    code_visits: Int[Array, "B T"],
    num_visits: int,
) -> tuple[Float[Array, "B V D"], Float[Array, "B T"]]:
    """Mean weighted by the softmax of `scores` within each visit, and those weights (0 on padding)."""
    batch_size = scores.shape[0]
    segments = _segments(code_visits, num_visits)
    flat = scores.reshape(-1)
    highest = jax.ops.segment_max(
        jax.lax.stop_gradient(flat), segments, batch_size * (num_visits + 1), indices_are_sorted=True
    )
    exponents = jnp.exp(flat - highest[segments])
    # Each segment that holds a code holds the exponent 1 of its highest score, so no code divides by zero.
    totals = jax.ops.segment_sum(exponents, segments, batch_size * (num_visits + 1), indices_are_sorted=True)
    weights = (exponents / totals[segments]).reshape(scores.shape)
    weights = jnp.where(code_visits >= 0, weights, 0.0)
    return pool_sum(embedded * weights[..., None], code_visits, num_visits), weights


class VisitPooling(nn.Module):
    """Pool the codes of each visit by `method`; attention scores a code by Dense(D/2) tanh Dense(1).

    Returns the visit vectors [B V D] and, for attention, the weight of each code [B T] (else None).
    """

    method: str = "mean"

    @nn.compact
    def __call__(
        self, embedded: Float[Array, "B T D"], code_visits: Int[Array, "B T"], num_visits: int
    ) -> tuple[Float[Array, "B V D"], Float[Array, "B T"] | None]:
        if self.method == "attention":
            scores = nn.Dense(embedded.shape[-1] // 2, name="attention_hidden")(embedded)
            scores = nn.Dense(1, name="attention_score")(jnp.tanh(scores))[..., 0]
            return pool_weighted(embedded, scores, code_visits, num_visits)
        pools = {"mean": pool_mean, "sum": pool_sum, "max": pool_max}
        if self.method not in pools:
            raise ValueError(f"pooling={self.method!r} is not known: use one of {', '.join(POOLINGS)}.")
        return pools[self.method](embedded, code_visits, num_visits), None


def _segments(code_visits: Int[Array, "B T"], num_visits: int) -> Int[Array, "B*T"]:
    """Ascending segment of each code; a row's padding goes to one extra segment behind its visits."""
    columns = jnp.where(code_visits < 0, num_visits, code_visits)
    rows = jnp.arange(code_visits.shape[0])[:, None]
    return (rows * (num_visits + 1) + columns).reshape(-1)


def _drop_padding(segments: Float[Array, "S D"], batch_size: int, num_visits: int) -> Float[Array, "B V D"]:
    return segments.reshape(batch_size, num_visits + 1, -1)[:, :num_visits]
