"""Metrics in plain numpy, each a function of (labels, scores, weights), and their patient-level bootstrap."""

from ehrjax.metrics.bootstrap import Interval, paired_difference
from ehrjax.metrics.summary import best_threshold, evaluate, metrics_for

__all__ = ["Interval", "best_threshold", "evaluate", "metrics_for", "paired_difference"]
