"""Supervised losses for patient-level and visit-level labels.

Classes are not re-weighted: risks are reported as probabilities, and re-weighting would miscalibrate them without
changing their order much.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Shaped

from ehrjax.types import LossOutput, VisitBatch

KINDS = ("binary", "multilabel", "multiclass", "regression")


def make_supervised_objective(model: nn.Module, kind: str) -> Callable[..., LossOutput]:
    """Return `objective(params, batch, key, train) -> LossOutput` for a model that maps a batch to Outputs.

    `kind` is binary or multilabel (labels 0/1, as many as logits), multiclass (labels [.. 1] hold the class index) or
    regression (labels as many as outputs). `key` drives dropout and may be None when `train` is False.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known: use one of {', '.join(KINDS)}.")

    def objective(params, batch: VisitBatch, key: Array | None, train: bool) -> LossOutput:
        rngs = {"dropout": key} if train else None
        logits = model.apply({"params": params}, batch, train=train, rngs=rngs).logits
        return supervised_loss(logits, batch.labels, batch.label_mask, kind=kind)

    return objective


def supervised_loss(
    logits: Float[Array, "*rows K"], labels: Shaped[Array, "*rows L"], label_mask: Bool[Array, "*rows L"], *, kind: str
) -> LossOutput:
    """Loss summed over the labels where `label_mask`; `weight` counts them. L is 1 for multiclass, else K.

    Cross-entropy in nats for the classification kinds, squared error for regression. `metrics` holds the accuracy (at
    probability 0.5, or of the likeliest class), or the absolute error.
    """
    expected = 1 if kind == "multiclass" else logits.shape[-1]
    if labels.shape != (*logits.shape[:-1], expected):
        raise ValueError(f"{kind} labels of shape {labels.shape} do not fit logits of shape {logits.shape}.")
    # A masked label may be NaN; replacing it before the loss keeps the gradient free of NaN as well.
    labels = jnp.where(label_mask, labels, 0)
    losses, name, scores = _elementwise(logits, labels, kind)
    mask = label_mask.astype(losses.dtype)
    weight = mask.sum()
    return LossOutput((losses * mask).sum(), weight, {name: ((scores * mask).sum(), weight)})


def _elementwise(logits, labels, kind):
    """Loss and metric of each label."""
    if kind == "multiclass":
        classes = labels[..., 0].astype(jnp.int32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
        return losses[..., None], "accuracy", (logits.argmax(-1) == classes).astype(losses.dtype)[..., None]
    labels = labels.astype(logits.dtype)
    if kind == "regression":
        return jnp.square(logits - labels), "absolute_error", jnp.abs(logits - labels)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels)
    return losses, "accuracy", ((logits > 0) == (labels > 0.5)).astype(losses.dtype)
