"""Skip-gram with negative sampling over visits and codes: how Med2Vec learns.

A visit's vector is to tell the codes of the visits around it, and a code's vector (rectified, as in Med2Vec) the other
codes of its visit (Choi et al., 2016, arXiv:1602.05568, equations 2 to 4). Their softmax over the vocabulary becomes
a choice between the true code and codes drawn from a noise distribution (Mikolov et al., 2013, arXiv:1310.4546,
equation 4), so nothing of the vocabulary's size is computed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ehrjax.models.med2vec import Med2Vec, count_codes
from ehrjax.types import LossOutput, TokenBatch

NOISE_POWER = 0.75  # of the unigram counts, as in word2vec


def make_skip_gram_objective(
    model: Med2Vec, *, code_counts: Int[np.ndarray, "G"], num_negatives: int = 8, window: int = 1
) -> Callable[..., LossOutput]:
    """Return `objective(params, batch, key, train) -> LossOutput`; `params` are the model's own.

    `code_counts` are occurrences in training (0 for special tokens). Every code is a target: of the visits within
    `window` of its own in the same sequence, and of one other code of its visit, drawn afresh each step. The weight
    counts those pairs; the loss of a pair is in nats, with `num_negatives` draws shared by the pairs of one code (a
    draw that hits the code itself counts for nothing). `metrics`: `visit_loss` and `code_loss` (the two kinds of
    pairs), `skip_gram_auroc` (how often the true code scores above a drawn one; ties count half).
    """
    if not model.with_context:
        raise ValueError("the skip-gram objective needs a context table: use Med2Vec(with_context=True).")
    if num_negatives < 1 or window < 1:
        raise ValueError(f"num_negatives={num_negatives} and window={window} must be at least 1.")
    cumulative = _cumulative_noise(code_counts, model.vocab_size)

    def objective(params, batch: TokenBatch, key: Array | None, train: bool) -> LossOutput:
        key = jax.random.key(0) if key is None else key
        dropout_key, partner_key, noise_key = jax.random.split(key, 3)
        rngs = {"dropout": dropout_key} if train else None
        outputs = model.apply({"params": params}, batch, train=train, causal=False, rngs=rngs)
        centers, is_pair = _pairs(outputs, batch, partner_key, window)
        uniform = jax.random.uniform(noise_key, (*batch.tokens.shape, num_negatives))
        drawn = jnp.searchsorted(jnp.asarray(cumulative), uniform, side="right")
        context = params["context"]["embedding"]
        return _losses(centers, is_pair, context[batch.tokens], context[drawn], drawn != batch.tokens[..., None])

    return objective


def _losses(
    centers: Float[Array, "B T P D"],
    is_pair: Bool[Array, "B T P"],
    targets: Float[Array, "B T D"],
    negatives: Float[Array, "B T K D"],
    is_negative: Bool[Array, "B T K"],
) -> LossOutput:
    """Logistic loss of each target against its negatives, given each of its P centers (the last one is a code)."""
    positive = jnp.einsum("btpd,btd->btp", centers, targets)
    negative = jnp.einsum("btpd,btkd->btpk", centers, negatives)
    counts = is_negative[:, :, None].astype(positive.dtype)
    losses = jax.nn.softplus(-positive) + (jax.nn.softplus(negative) * counts).sum(-1)
    losses, pairs = jnp.where(is_pair, losses, 0.0), is_pair.astype(losses.dtype)
    above = 0.5 * (1.0 + jnp.sign(positive[..., None] - negative))
    compared = counts * pairs[..., None]
    metrics = {
        "visit_loss": (losses[..., :-1].sum(), pairs[..., :-1].sum()),
        "code_loss": (losses[..., -1].sum(), pairs[..., -1].sum()),
        "skip_gram_auroc": ((above * compared).sum(), compared.sum()),
    }
    return LossOutput(losses.sum(), pairs.sum(), metrics)


def _pairs(outputs, batch: TokenBatch, key, window) -> tuple[Float[Array, "B T P D"], Bool[Array, "B T P"]]:
    """Vectors that are to tell each code, and which there are: of the visits around its own, of a code beside it."""
    columns = jnp.maximum(batch.code_visits, 0)
    is_code = batch.code_visits >= 0
    counts = count_codes(batch)
    offsets = [offset for offset in range(-window, window + 1) if offset]
    found = [_neighbours(outputs.hidden, counts, batch, columns + offset, columns) for offset in offsets]
    found.append(_partners(outputs.tokens, counts, batch, columns, key))
    centers, is_pair = (jnp.stack(parts, axis=2) for parts in zip(*found, strict=True))
    return centers, is_pair & is_code[..., None]


def _neighbours(hidden, counts, batch, neighbours, columns):
    """Vectors of the visits at these columns, and whether they hold codes and belong to the sequence."""
    num_visits = hidden.shape[1]
    is_inside = (neighbours >= 0) & (neighbours < num_visits)
    neighbours = jnp.clip(neighbours, 0, num_visits - 1)
    segments = batch.visit_segments
    is_own = jnp.take_along_axis(segments, neighbours, 1) == jnp.take_along_axis(segments, columns, 1)
    has_codes = jnp.take_along_axis(counts, neighbours, 1) > 0
    return _take(hidden, neighbours), is_inside & is_own & has_codes


def _partners(codes, counts, batch, columns, key):
    """Rectified vector of another code of the same visit, and whether there is one that is not the same code."""
    counts = jnp.take_along_axis(counts, columns, 1).astype(jnp.int32)
    starts = jnp.take_along_axis(batch.visit_ends, columns, 1) - counts
    steps = 1 + jax.random.randint(key, columns.shape, 0, jnp.maximum(counts - 1, 1))
    places = jnp.arange(columns.shape[1])[None] - starts
    partners = jnp.clip(starts + (places + steps) % jnp.maximum(counts, 1), 0, columns.shape[1] - 1)
    is_other = jnp.take_along_axis(batch.tokens, partners, 1) != batch.tokens
    return jax.nn.relu(_take(codes, partners)), is_other & (counts > 1)


def _take(states: Float[Array, "B X D"], columns: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return jnp.take_along_axis(states, columns[..., None], axis=1)


def _cumulative_noise(code_counts, vocab_size) -> Float[np.ndarray, "G"]:
    """Cumulative probabilities of the noise distribution: the first that exceeds a uniform number is the draw."""
    counts = np.asarray(code_counts, np.float64)
    if counts.shape != (vocab_size,) or (counts < 0).any() or not counts.any():
        raise ValueError(
            f"code_counts of shape {counts.shape} and sum {counts.sum():g} must be one count a token, "
            f"({vocab_size},), not below 0 and not all 0: count the codes of the training patients."
        )
    cumulative = np.cumsum(counts**NOISE_POWER)
    return (cumulative / cumulative[-1]).astype(np.float32)
