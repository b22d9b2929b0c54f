"""Why the model says so: a few test patients of a task, explained for the report."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.batching import VisitBatches
from ehrjax.data.token_batching import TokenBatches
from ehrjax.data.windows import take_examples, truncate
from ehrjax.evaluate.explain import explain_patients
from ehrjax.evaluate.explain_plots import patient_timeline
from experiments import build
from experiments.prepare import Data, SplitData

# Of one output; its highest risks that came true and that did not, and the lowest that came true all the same.
CHOICES = ("high risk, happened", "high risk, did not happen", "low risk, happened")
KINDS = ("binary", "multilabel")


def explain_task(
    name: str,
    test: SplitData,
    scores: np.ndarray,
    model: Any,
    members: list[Any],
    data: Data,
    config: ConfigDict,
    workdir: Path,
) -> list[dict[str, Any]]:
    """Tables of `explain_patients`, each with its `choice`; one figure a patient under plots/.

    Of several members (their parameters) the means. [] for other kinds, and for models of stays.
    """
    if test.labels.kind not in KINDS or build.reads_stays(config):
        return []
    rows, choices = choose_patients(test.labels.values[:, 0], scores[:, 0], test.labels.mask[:, 0])
    if not len(rows):
        return []
    sequences = take_examples(test.sequences, rows)
    if build.reads_tokens(config):
        longest = config.data.max_tokens
        batches = TokenBatches(truncate(sequences, max_tokens=longest), row_tokens=longest, batch_size=len(rows))
    else:
        batches = VisitBatches(sequences, batch_size=len(rows), max_codes=config.data.max_codes)
    tables = []
    for batch in batches.eval_batches():
        names = {"tokens": data.vocab.tokens, "descriptions": data.stores[0].descriptions}
        tables += mean_tables([explain_patients(model, params, batch, **names) for params in members])
    tables.sort(key=lambda table: table["example"])
    for number, (table, choice) in enumerate(zip(tables, choices, strict=True)):
        table |= {"choice": choice, "output": test.labels.names[0]}
        title = f"{name}, patient {number + 1} ({choice}): risk {table['risk']:.3f}"
        patient_timeline(workdir / "plots" / f"{name}_patient_{number + 1}.png", table, title=title)
    return tables


def mean_tables(members: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The members' tables of the same patients as one: means of what differs, which add up to the mean logit.

    A risk is the mean of the members' risks, as it is in the predictions, and not that of the mean logit.
    """
    return jax.tree.map(lambda *values: float(np.mean(values)) if isinstance(values[0], float) else values[0], *members)


def choose_patients(labels: np.ndarray, scores: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """One row a choice, as far as there are such rows."""
    happened = mask & (labels > 0)
    candidates = {
        CHOICES[0]: (happened, scores),
        CHOICES[1]: (mask & (labels == 0), scores),
        CHOICES[2]: (happened, -scores),
    }
    chosen: dict[int, str] = {}
    for choice, (rows, order) in candidates.items():
        if rows.any():
            row = int(np.flatnonzero(rows)[np.argmax(order[rows])])
            chosen.setdefault(row, choice)
    return np.array(list(chosen), np.int64), list(chosen.values())
