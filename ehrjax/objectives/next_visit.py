"""Next visit: which codes the visit after each state brings, one yes-or-no question a code of the vocabulary.

Codes are rare, so an untrained head would spend its first epochs on learning their base rates: `prior_bias` puts them
there from the start. Positives are not re-weighted, so that scores stay probabilities.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ehrjax.models.pretraining import Pretraining, is_last_visit
from ehrjax.nn.segments import sequence_bounds, to_parts
from ehrjax.types import FIRST_CODE, LossOutput, NextVisits, TokenBatch


def make_next_visit_objective(model: Pretraining) -> Callable[..., LossOutput]:
    """`objective(params, batch, key, train)`: every visit of `batch.next_visits` from the state after the one before.

    Binary cross-entropy over all codes in nats, divided by the number of codes that do come (comparable to masked
    codes). Metric: `next_visit_probability`, the mean probability that was given to them.
    """

    def objective(params, batch: TokenBatch, key: Array | None, train: bool) -> LossOutput:
        coming = _require_next_visits(batch)
        logits = _apply(model, "next_visit_logits", params, batch, key, train)
        segments = batch.visit_segments
        # The first visit of a sequence follows another patient's last.
        follows = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (1, 0)))
        is_predicted = coming.visits & follows
        speaks = jnp.pad(is_predicted[:, 1:], ((0, 0), (0, 1)))
        return code_set_loss(
            logits, speaks, model.predicted_as(batch.tokens), batch.code_visits - 1, _targets(batch, is_predicted)
        )

    return objective


def make_pooled_next_visit_objective(model: Pretraining) -> Callable[..., LossOutput]:
    """As `make_next_visit_objective`, but only the last visit of each sequence, from the pooled visits before it.

    Its metric is `pooled_next_visit_probability`.
    """

    def objective(params, batch: TokenBatch, key: Array | None, train: bool) -> LossOutput:
        coming = _require_next_visits(batch)
        logits = _apply(model, "pooled_next_visit_logits", params, batch, key, train)
        _, last, count = sequence_bounds(batch.visit_segments, batch.example_ids.shape[1])
        speaks = jnp.take_along_axis(jnp.asarray(coming.visits), last, axis=1) & (count > 1)
        is_predicted = coming.visits & is_last_visit(batch) & to_parts(count > 1, batch.visit_segments)
        output = code_set_loss(
            logits, speaks, model.predicted_as(batch.tokens), batch.segment_ids - 1, _targets(batch, is_predicted)
        )
        return output._replace(metrics={f"pooled_{name}": value for name, value in output.metrics.items()})

    return objective


def code_set_loss(
    logits: Float[Array, "B N G"],
    speaks: Bool[Array, "B N"],
    codes: Int[Array, "B T"],
    owners: Int[Array, "B T"],
    is_target: Bool[Array, "B T"],
) -> LossOutput:
    """Binary cross-entropy of code sets, summed over states and codes; `weight` counts the codes of the sets.

    The set of state n holds `codes[t]` where `owners[t] == n` and `is_target`; states that do not speak count for
    nothing. It needs no table of zeros and ones: softplus summed over all codes, less the logits of those in the set.
    """
    logits = logits.astype(jnp.float32)
    weights = is_target.astype(jnp.float32)
    weight = weights.sum()
    rows = jnp.arange(codes.shape[0])[:, None]
    chosen = logits[rows, jnp.maximum(owners, 0), jnp.where(is_target, codes, FIRST_CODE)]
    absent = jax.nn.softplus(logits[..., FIRST_CODE:]).sum(axis=-1)
    loss_sum = jnp.where(speaks, absent, 0.0).sum() - (chosen * weights).sum()
    probability = (jax.nn.sigmoid(jax.lax.stop_gradient(chosen)) * weights).sum()
    return LossOutput(loss_sum, weight, {"next_visit_probability": (probability, weight)})


def next_visit_scores(model: Pretraining, *, pooled: bool = False) -> Callable[[Any, TokenBatch], Array]:
    """`scores(params, batch)`: probabilities [B V G] of the codes of visit v + 1 in column v, 0 for special tokens.

    `pooled` scores the last visit of each sequence from the pooled visits before it, [B S G].
    """
    method = "pooled_next_visit_logits" if pooled else "next_visit_logits"

    def scores(params, batch: TokenBatch) -> Float[Array, "B V G"]:
        probabilities = jax.nn.sigmoid(_apply(model, method, params, batch, None, False))
        return probabilities.at[..., :FIRST_CODE].set(0.0)

    return scores


def prior_bias(counts: Int[np.ndarray, "G"], num_visits: int) -> Float[np.ndarray, "G"]:
    """Log odds of each code coming in a visit, where `counts` of `num_visits` predicted visits hold it.

    Half a visit is added on either side (Haldane, 1956), so codes that never or always come stay finite.
    """
    counts = np.asarray(counts, np.float64)
    if counts.max(initial=0) > num_visits:
        raise ValueError(f"a code counted in {counts.max():.0f} of {num_visits} visits: count visits, not occurrences.")
    bias = np.log((counts + 0.5) / (num_visits - counts + 0.5))
    bias[:FIRST_CODE] = 0.0
    return bias.astype(np.float32)


def with_prior_bias(params: Any, bias: Float[Array, "G"]) -> Any:
    """The parameters of `Pretraining` with the next-visit head's bias replaced."""
    head = params["next_visit_head"]
    if head["bias"].shape != np.shape(bias):
        raise ValueError(f"a bias of shape {np.shape(bias)} does not fit the head's {head['bias'].shape}.")
    return {**params, "next_visit_head": {**head, "bias": jnp.asarray(bias, head["bias"].dtype)}}


def _apply(model, method, params, batch, key, train):
    rngs = {"dropout": key} if train else None
    return model.apply({"params": params}, batch, train, method=method, rngs=rngs)


def _targets(batch, is_predicted):
    """The codes of the predicted visits, each once."""
    columns = jnp.maximum(batch.code_visits, 0)
    in_predicted = (batch.code_visits >= 0) & jnp.take_along_axis(is_predicted, columns, axis=1)
    return in_predicted & batch.next_visits.codes & (batch.tokens >= FIRST_CODE)


def _require_next_visits(batch: TokenBatch) -> NextVisits:
    if batch.next_visits is None:
        raise ValueError("the batch has no `next_visits`: build the token batches with is_fresh.")
    return batch.next_visits
