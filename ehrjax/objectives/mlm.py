"""Masked codes: which code stood at each masked position (Devlin et al., 2019, arXiv:1810.04805)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ehrjax.models.pretraining import Pretraining
from ehrjax.types import FIRST_CODE, LossOutput, TokenBatch


def make_mlm_objective(model: Pretraining) -> Callable[..., LossOutput]:
    """`objective(params, batch, key, train)` over the batch's `masked` slots, in nats a masked code.

    `key` drives dropout and may be None when `train` is False.
    """

    def objective(params, batch: TokenBatch, key: Array | None, train: bool) -> LossOutput:
        rngs = {"dropout": key} if train else None
        logits = model.apply({"params": params}, batch, train, method="masked_logits", rngs=rngs)
        targets = jnp.take_along_axis(jnp.asarray(batch.tokens), batch.masked.positions, axis=1)
        return masked_lm_loss(logits, model.predicted_as(targets), batch.masked.mask)

    return objective


def masked_lm_loss(logits: Float[Array, "B M G"], targets: Int[Array, "B M"], mask: Bool[Array, "B M"]) -> LossOutput:
    """Cross-entropy summed over the slots where `mask`, in nats; `weight` counts them.

    Special tokens are never masked, so the softmax leaves them out (probability 0, no gradient): probability spent on
    them would only blur the comparison with baselines, which count codes. A slot whose target is one does not count.
    Metrics: `mlm_accuracy`, `mlm_top5_accuracy`, `mlm_top10_accuracy`.
    """
    mask = mask & (targets >= FIRST_CODE)
    targets = jnp.where(mask, targets, FIRST_CODE)
    logits = jnp.where(jnp.arange(logits.shape[-1])[None, None] < FIRST_CODE, -1e30, logits.astype(jnp.float32))
    weights = mask.astype(jnp.float32)
    weight = weights.sum()
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    hits = top_k_hits(jax.lax.stop_gradient(logits), targets, (1, 5, 10))
    names = ("mlm_accuracy", "mlm_top5_accuracy", "mlm_top10_accuracy")
    metrics = {name: ((hit * weights).sum(), weight) for name, hit in zip(names, hits, strict=True)}
    return LossOutput((losses * weights).sum(), weight, metrics)


def top_k_hits(
    logits: Float[Array, "*rows G"], targets: Int[Array, "*rows"], sizes: tuple[int, ...]
) -> list[Float[Array, "*rows"]]:
    """Whether the target is among the k highest logits, for each k of `sizes`; ties share the places they tie for.

    Counting the higher logits costs one pass where a sort costs many.
    """
    own = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    num_higher = (logits > own).sum(axis=-1)
    num_equal = (logits == own).sum(axis=-1)
    return [jnp.clip((size - num_higher) / num_equal, 0.0, 1.0) for size in sizes]
