"""What a task asks of a model: how many logits, which loss, how logits become scores, and the metrics' options."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from ehrjax.data.labels import Labels
from ehrjax.data.tasks import Task
from ehrjax.evaluate.predict import LINKS
from ehrjax.metrics.summary import Horizons
from ehrjax.models.registry import head_names
from ehrjax.objectives.supervised import make_supervised_objective, supervised_loss
from ehrjax.objectives.survival import incidence_at, make_survival_objective, num_survival_outputs, survival_loss
from ehrjax.objectives.survival_grid import TimeGrid, fit_breslow, fit_time_grid
from ehrjax.types import LossOutput, VisitSequences

LINKED = "survival"  # the kind whose scores `predict` takes as they are: those of `apply_linked` are no logits
NUM_HORIZONS = 3  # a survival task is judged at thirds of its horizon


@dataclass(frozen=True)
class Target:
    """`kind` of the labels; survival has its causes and horizons, the loss's name and, unless Cox, a time grid."""

    kind: str
    num_outputs: int  # logits of the model
    horizons: Horizons | None = None
    survival: str = ""
    grid: TimeGrid | None = None
    base_logits: tuple[float, ...] = ()  # of train's base rates; () leaves the head's bias at 0

    def make_objective(self, model: Any) -> Callable[..., LossOutput]:
        """The training objective of a model with `num_outputs` logits."""
        if self.kind == "survival":
            return make_survival_objective(model, self.survival, self.grid, len(self.horizons.causes))
        return make_supervised_objective(model, self.kind)

    def loss(self, logits: Float[Array, "*rows K"], labels: Array, label_mask: Array) -> LossOutput:
        """Loss of a batch's logits, as in training."""
        if self.kind == "survival":
            options = {"kind": self.survival, "grid": self.grid, "num_causes": len(self.horizons.causes)}
            return survival_loss(logits, labels, label_mask.all(axis=-1), **options)
        return supervised_loss(logits, labels, label_mask, kind=self.kind)

    def link(self, logits: Float[Array, "*rows K"]) -> Float[Array, "*rows S"]:
        """Probabilities, values, or the incidence of each cause at each horizon (Cox: log relative hazards)."""
        if self.kind != "survival":
            return LINKS[self.kind](logits)
        if self.survival == "cox":
            return logits
        incidence = incidence_at(logits, self.grid, self.horizons.days, kind=self.survival)
        return incidence.reshape(*logits.shape[:-1], -1)

    def at_base_rates(self, params: Any) -> Any:
        """Fresh parameters whose heads say the base rates.

        Outcomes are rare, and a head that starts at even odds spends its first steps on learning that.
        """
        if not self.base_logits:
            return params
        bias = {"bias": jnp.asarray(self.base_logits, jnp.float32)}
        return params | {head: params[head] | bias for head in head_names(params)}

    @property
    def linked_horizons(self) -> Horizons | None:
        """The horizons that `link`'s columns stand for: Cox has one column a cause."""
        return self.horizons and self.horizons._replace(
            days=self.horizons.days[-1:] if self.survival == "cox" else self.horizons.days
        )

    def finish(self, scores: dict[str, np.ndarray], val: Labels) -> dict[str, np.ndarray]:
        """Scores by split as the metrics take them: Cox gets its baseline hazard from the validation rows."""
        if self.survival != "cox":
            return scores
        known = val.mask.all(axis=1)
        days, events = val.values[known].T
        events = np.where(days <= self.horizons.days[-1], events, 0).astype(int)
        baseline = fit_breslow(days, events, scores["val"][known])
        return {
            split: baseline.incidence_at(risk, self.horizons.days).reshape(len(risk), -1).astype(np.float32)
            for split, risk in scores.items()
        }


def make_target(task: Task | None, train: VisitSequences, labels: Labels, config: ConfigDict) -> Target:
    """The target of a task; the time grid of survival is fitted on the train rows alone."""
    if labels.kind != "survival":
        return Target(labels.kind, labels.num_outputs, base_logits=_base_logits(train, labels))
    days, events = train.labels[train.label_mask.all(axis=-1)].T
    grid = fit_time_grid(days, events, horizon_days=task.horizon_days, num_intervals=config.train.num_intervals)
    horizons = tuple(task.horizon_days * share for share in np.arange(1, NUM_HORIZONS + 1) / NUM_HORIZONS)
    kind = config.train.survival
    num_outputs = num_survival_outputs(kind, grid, len(labels.names))
    base = _base_hazards(days, events, grid, len(labels.names)) if kind == "discrete" else ()
    return Target("survival", num_outputs, Horizons(labels.names, horizons), kind, grid, base)


def _base_logits(train: VisitSequences, labels: Labels) -> tuple[float, ...]:
    """Log odds of each output, log share of each class, or mean of the quantity; half an event is added to each."""
    mask = train.label_mask
    if labels.kind == "multiclass":
        counts = np.bincount(train.labels[mask].astype(int), minlength=labels.num_outputs) + 0.5
        return tuple(np.log(counts / counts.sum()).tolist())
    totals, counts = np.where(mask, train.labels, 0).sum(axis=0, dtype=np.float64), mask.sum(axis=0)
    if labels.kind == "regression":
        return tuple((totals / np.maximum(counts, 1)).tolist())
    return tuple(np.log((totals + 0.5) / (counts - totals + 0.5)).tolist())


def _base_hazards(days: np.ndarray, events: np.ndarray, grid: TimeGrid, num_causes: int) -> tuple[float, ...]:
    """Log of each cause's hazard over that of surviving, by interval, in the order of the logits."""
    interval = np.searchsorted(np.asarray(grid.edges[1:]), days)  # J: beyond the horizon
    counts = np.stack(
        [
            np.bincount(interval[events == cause], minlength=grid.num_intervals + 1)[: grid.num_intervals]
            for cause in range(1, num_causes + 1)
        ]
    )
    at_risk = np.array([(days > start).sum() for start in grid.edges[:-1]])
    surviving = np.maximum(at_risk - counts.sum(axis=0), 0)
    return tuple(np.log((counts + 0.5) / (surviving + 0.5)).ravel().tolist())


def apply_linked(model: Any, target: Target) -> Callable[[Any, Any], jax.Array]:
    """`(params, batch) -> scores` without dropout."""
    return lambda params, batch: target.link(jnp.asarray(model.apply({"params": params}, batch).logits))
