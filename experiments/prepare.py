"""The data part of a run: tables -> store -> split, vocabulary -> labels and sequences of each task.

Everything here is cheap or cached in the workdir, and a pure function of the config: a killed run does it again and
gets the same.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ehrjax.data import build as data_build
from ehrjax.data import simulate
from ehrjax.data.cohorts import make_labels
from ehrjax.data.labels import Labels, shortage
from ehrjax.data.sequences import build_visit_sequences
from ehrjax.data.splits import SPLITS, assert_disjoint, assign_splits, check_splits, save_splits
from ehrjax.data.store import Store, StoreSettings
from ehrjax.data.tasks import TASKS, Task, get_task, task_from_dict
from ehrjax.data.vocab import Vocabulary, fit_vocabulary
from ehrjax.evaluate.files import replaced
from ehrjax.types import VisitSequences

# Sources whose extract ends on one day for every patient, who is observed until then.
COMPLETE_SOURCES = ("simulate", "synthea")


@dataclass(frozen=True)
class Data:
    """A run's stores and what was fitted on the train patients."""

    stores: tuple[Store, ...]  # one, or two where the test set comes from elsewhere
    splits: dict[str, np.ndarray]  # split -> subject ids
    vocab: Vocabulary
    simulated: Path | None  # folder with oracle.parquet
    report: dict


class SplitData(NamedTuple):
    """One split of one task."""

    labels: Labels
    sequences: VisitSequences


def prepare_data(config: ConfigDict, workdir: Path) -> Data:
    """Simulate or find the tables, build the store (or reuse it), split the patients, fit the vocabulary on train."""
    simulated = None
    source, path = config.data.source, config.data.path
    if source == "simulate":
        simulated = workdir / "data" / "simulated"
        if not simulated.exists():
            print(f"simulating {config.data.num_patients:,} patients", flush=True)
            simulate.write(simulated, num_patients=config.data.num_patients, seed=config.data.seed)
        source, path = "synthea", str(simulated)
    elif not path:
        raise ValueError(f"data.source={source!r} needs data.path: add --config.data.path=DIR[,DIR...].")
    stores = (_build(source, path, workdir / "data" / "store", config),)
    if config.data.test_path:
        stores += (_build(source, config.data.test_path, workdir / "data" / "test_store", config),)
    splits = _split(stores, config)
    vocab = fit_vocabulary(
        stores[0],
        splits["train"],
        min_count=config.data.min_count,
        max_size=config.data.max_vocab,
        value_bins=config.data.value_bins,
    )
    vocab.save(workdir / "vocab.json")
    names = np.concatenate([np.full(len(ids), name) for name, ids in splits.items()])
    with replaced(workdir / "splits.parquet") as partial:
        save_splits(partial, np.concatenate(list(splits.values())), names)
    report = _report(stores, vocab)
    with replaced(workdir / "data_report.json") as partial:
        partial.write_text(json.dumps(report, indent=1))
    return Data(stores, splits, vocab, simulated, report)


def _build(source: str, path: str, out: Path, config: ConfigDict) -> Store:
    paths = [Path(part.strip()) for part in path.split(",") if part.strip()]
    settings = StoreSettings(visits=config.data.visits)
    return data_build.build_store(source, paths, out, settings=settings, progress=True)


def _split(stores: tuple[Store, ...], config: ConfigDict) -> dict[str, np.ndarray]:
    """Subject ids of train, val and test; a second store is the test set."""
    fractions = tuple(config.data.split_fractions)
    if len(stores) == 2:
        kept = fractions[0] + fractions[1]
        fractions = (fractions[0] / kept, fractions[1] / kept, 0.0)
    ids = stores[0].subject_ids
    source_splits = stores[0].splits if len(stores) == 1 else None
    names = assign_splits(ids, seed=config.data.seed, fractions=fractions, source_splits=source_splits)
    check_splits(names, wanted=SPLITS if len(stores) == 1 else SPLITS[:2])
    splits = {name: np.sort(ids[names == name]) for name in SPLITS}
    if len(stores) == 2:
        splits["test"] = np.sort(stores[1].subject_ids)
    assert_disjoint(**splits)
    return splits


def _report(stores: tuple[Store, ...], vocab: Vocabulary) -> dict:
    """The `data` part of results.json: counts of all stores added, with the test set's own report beside."""
    reports = [store.report for store in stores]
    total = dict(reports[0])
    for other in reports[1:]:
        for key in (
            "num_patients",
            "num_events",
            "num_visits",
            "rows_read",
            "rows_kept",
            "rows_quarantined",
            "seconds",
        ):
            total[key] += other[key]
        for reason, count in other["rows_by_reason"].items():
            total["rows_by_reason"] = total["rows_by_reason"] | {reason: total["rows_by_reason"].get(reason, 0) + count}
    if len(reports) > 1:
        total |= {"files": reports[0]["files"] + reports[1]["files"], "test_set": reports[1]}
        total["events_per_second"] = round(total["num_events"] / max(total["seconds"], 1e-9), 1)
    return total | {"vocab_size": len(vocab)}


def find_task(name: str, config: ConfigDict) -> Task:
    """A shipped task or one of `custom_tasks`, with the follow-up rule that fits the source."""
    own = config.custom_tasks
    task = task_from_dict(name, own[name].to_dict()) if name in own else get_task(name)
    is_complete = config.data.source in COMPLETE_SOURCES and "," not in config.data.path
    has_own_rule = name in own and "follow_up" in own[name]
    return replace(task, follow_up="dataset_end") if is_complete and not has_own_rule else task


def candidate_tasks(config: ConfigDict) -> tuple[str, ...]:
    """The tasks asked for; every name is checked before any work starts."""
    for name in (*config.tasks, *config.fallback_tasks):
        if name not in TASKS:
            find_task(name, config)
    return tuple(config.tasks)


def prepare_task(task: Task, data: Data, config: ConfigDict) -> tuple[dict[str, SplitData] | None, str, dict]:
    """Labels and sequences by split, why there are none (too few outcomes), and the cohort flow."""
    parts: dict[str, Labels] = {}
    try:
        all_labels = [
            make_labels(store, task, seed=config.data.seed, train_subjects=data.splits["train"])
            for store in _fitted_first(data)
        ]
    except ValueError as error:
        return None, str(error), {}
    for name, ids in data.splits.items():
        labels = all_labels[-1] if name == "test" else all_labels[0]
        parts[name] = labels.take(np.isin(labels.subject_ids, ids))
    flow = all_labels[0].flow
    minimum = {"train": config.eval.min_positives, "val": 3, "test": 3}
    rows = np.concatenate([np.full(len(part.times), name) for name, part in parts.items()])
    reason = shortage(_stack(list(parts.values())), rows, minimum)
    if reason:
        return None, reason, flow
    stores = {"train": data.stores[0], "val": data.stores[0], "test": data.stores[-1]}
    settings = {"max_visits": config.data.max_visits, "max_codes": config.data.max_codes}
    return (
        {
            name: SplitData(part, build_visit_sequences(stores[name], data.vocab, part, **settings))
            for name, part in parts.items()
        },
        "",
        flow,
    )


def _fitted_first(data: Data) -> tuple[Store, ...]:
    return data.stores


def _stack(parts: list[Labels]) -> Labels:
    columns = ("subject_ids", "times", "values", "mask", "end_times")
    return parts[0]._replace(**{c: np.concatenate([getattr(p, c) for p in parts]) for c in columns})
