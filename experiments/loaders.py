"""From sequences to batches: packed rows of visits or of tokens, or stays, as the recipe's model reads them."""

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.batching import VisitBatches
from ehrjax.data.packing import pack_visits
from ehrjax.data.stay_batching import StayBatches
from ehrjax.data.token_batching import TokenBatches
from ehrjax.data.windows import cut_windows, truncate
from ehrjax.train.loop import batch_example_ids
from experiments import build
from experiments.prepare import SplitData

Batches = VisitBatches | TokenBatches | StayBatches
ExamplesOf = Callable[[Any], np.ndarray]


def make_loaders(parts: dict[str, SplitData], config: ConfigDict) -> tuple[dict[str, Batches], ExamplesOf]:
    """Batches of each split, and which examples a training batch holds.

    Train comes in packed rows with labels at visits, `train.batch_size` patients at a time for a model of visits and as
    many rows for a model of tokens. Stays come one a row.
    """
    if build.reads_stays(config):
        settings = {"batch_size": config.train.batch_size, "seed": config.train.seed}
        return {split: StayBatches(part.sequences, **settings) for split, part in parts.items()}, batch_example_ids
    return (_token_loaders if build.reads_tokens(config) else _visit_loaders)(parts, config)


def _visit_loaders(parts: dict[str, SplitData], config: ConfigDict) -> tuple[dict[str, Batches], ExamplesOf]:
    """A bidirectional model can have no labels at visits and gets one patient a row."""
    limits = {"max_codes": config.data.max_codes, "seed": config.train.seed}
    size, num_buckets = config.train.batch_size, config.train.num_buckets
    loaders = {
        split: VisitBatches(part.sequences, batch_size=size, num_buckets=num_buckets, **limits)
        for split, part in parts.items()
        if split != "train" or config.model.bidirectional
    }
    if config.model.bidirectional:
        return loaders, batch_example_ids
    packed = pack_visits(parts["train"].sequences, level=parts["train"].level)
    rows = max(1, round(size * (len(packed.offsets) - 1) / len(packed.members)))
    loaders["train"] = VisitBatches(packed.sequences, batch_size=rows, num_buckets=1, level="visit", **limits)
    return loaders, lambda batch: packed.examples_of(batch.example_ids)


def _token_loaders(parts: dict[str, SplitData], config: ConfigDict) -> tuple[dict[str, Batches], ExamplesOf]:
    """Labels of a record too long for one row are read in overlapping windows; a prediction sees the latest visits."""
    longest = config.data.max_tokens
    settings = {"row_tokens": longest, "batch_size": config.train.batch_size, "seed": config.train.seed}
    loaders, examples = {}, None
    for split, part in parts.items():
        if part.level == "visit":
            windows = cut_windows(part.sequences, max_tokens=longest, level="visit")
            sequences, examples = windows.sequences, windows.example_index
        else:
            sequences = truncate(part.sequences, max_tokens=longest)
        loaders[split] = TokenBatches(sequences, level=part.level, **settings)
    if examples is None:
        return loaders, loaders["train"].examples_of
    return loaders, lambda batch: np.unique(examples[loaders["train"].examples_of(batch)])
