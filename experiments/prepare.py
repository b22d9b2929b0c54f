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
from ehrjax.data import simulate, simulate_stays
from ehrjax.data.cohorts import make_labels
from ehrjax.data.cutoff import StoreUntil, begun_after, cutoff_day, find_cutoff, whole_of
from ehrjax.data.labels import Labels, read_meds_labels, shortage, write_meds_labels
from ehrjax.data.sequences import build_visit_level_sequences, build_visit_sequences, drop_without_visits
from ehrjax.data.splits import SPLITS, assert_disjoint, assign_splits, check_splits, save_splits
from ehrjax.data.stay_batching import StayWindows
from ehrjax.data.store import Store, StoreSettings
from ehrjax.data.tasks import Task, get_task, task_from_dict
from ehrjax.data.timeline import NEVER, NULL_TIME
from ehrjax.data.vocab import Vocabulary, fit_vocabulary
from ehrjax.evaluate.files import replaced
from ehrjax.types import VisitSequences
from ehrjax.wording import counted
from experiments import build
from experiments.stays import StayData, describe_parts, make_parts, prepare_notes, stay_settings

# Sources whose extract ends on one day for every patient, who is observed until then.
COMPLETE_SOURCES = ("simulate", "synthea")
MIN_HELD_OUT = 3  # positives and negatives in val and in test


@dataclass(frozen=True)
class Data:
    """A run's stores and what was fitted on the train patients.

    There are two stores where the test set comes from elsewhere or from later; train and val read the first, test the
    last. With a `cutoff` (seconds) the first is a store as it stood then: test patients are other patients, and are
    tested at times after it.
    """

    stores: tuple[Store, ...]
    splits: dict[str, np.ndarray]  # split -> subject ids
    vocab: Vocabulary
    simulated: Path | None  # folder with oracle.parquet
    report: dict
    stays: StayData | None = None  # for a model of hospital stays
    cutoff: int | None = None


class SplitData(NamedTuple):
    """One split of one task.

    Validation and test have one example a label row. So has train, or one example a patient with a label at each of the
    patient's index visits (`level` "visit", see `_every_visit`); then `labels` has all its rows, those without a place
    in `sequences` among them.
    """

    labels: Labels
    sequences: VisitSequences | StayWindows
    level: str = "patient"


def prepare_data(config: ConfigDict, workdir: Path) -> Data:
    """Simulate or find the tables, build the store (or reuse it), split the patients, fit the vocabulary on train.

    `data.split` "temporal": test patients are held out as by "patient", and their index times lie after the cut-off;
    train and validation patients' records end at it, and those first seen later are left out.
    """
    windows = stay_settings(config) if build.reads_stays(config) else None
    simulated = None
    source, path = config.data.source, config.data.path
    if source == "simulate":
        simulated = workdir / "data" / "simulated"
        source, path = _simulate(simulated, config), str(simulated)
    elif not path:
        raise ValueError(f"data.source={source!r} needs data.path: add --config.data.path=DIR[,DIR...].")
    stores = (_build(source, path, workdir / "data" / "store", config),)
    if config.data.test_path:
        stores += (_build(source, config.data.test_path, workdir / "data" / "test_store", config),)
    splits, cutoff, whole = _split(stores, config), None, stores
    if config.data.split == "temporal":
        cutoff = find_cutoff(stores[0], config.data.cutoff)
        stores = (StoreUntil(stores[0], cutoff), stores[-1])
        splits = _split_at(cutoff, splits, stores)
    stays = StayData(windows, prepare_notes(config, workdir, simulated)) if windows else None
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
    report = _report(whole, vocab) | ({} if cutoff is None else {"cutoff": cutoff_day(cutoff)})
    with replaced(workdir / "data_report.json") as partial:
        partial.write_text(json.dumps(report, indent=1))
    return Data(stores, splits, vocab, simulated, report, stays, cutoff)


def _simulate(folder: Path, config: ConfigDict) -> str:
    """Simulate patients, or hospital stays for a model of these; returns the format of the tables."""
    settings = {"num_patients": config.data.num_patients, "seed": config.data.seed}
    if build.reads_stays(config):
        simulate_stays.write(folder, **settings, progress=True)
        return "meds"
    simulate.write(folder, **settings, tasks=(*config.tasks, *config.fallback_tasks), progress=True)
    return "synthea"


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


def _split_at(cutoff: int, splits: dict[str, np.ndarray], stores: tuple[Store, ...]) -> dict[str, np.ndarray]:
    """The split with those patients of train and val only who were known by the cut-off."""
    known = {name: np.intersect1d(splits[name], stores[0].subject_ids) for name in ("train", "val")}
    is_later = begun_after(stores[-1], splits["test"], cutoff)
    counts = {name: len(ids) for name, ids in known.items()} | {"test": int(is_later.sum())}
    day, visits = cutoff_day(cutoff), counted(counts["test"], "test visit")
    if not all(counts.values()):
        found = f"{counts['train']} train and {counts['val']} val patients before it, {visits} after"
        raise ValueError(f"the cut-off {day} leaves {found}: move it (data.cutoff), or take more patients.")
    print(
        f"temporal split at {day}: {counts['train']:,} train and {counts['val']:,} val patients as known before it,"
        f" {visits} of {counted(len(splits['test']), 'patient')} after it",
        flush=True,
    )
    return splits | known


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


def find_task(name: str, config: ConfigDict) -> Task | Path:
    """A shipped task or one of `custom_tasks`, with the follow-up rule that fits the source; a path for label files."""
    own = config.custom_tasks[name].to_dict() if name in config.custom_tasks else {}
    if "labels" in own:
        if config.data.split == "temporal" and "horizon_days" not in own:
            raise ValueError(
                f"custom_tasks.{name}: a temporal split has to know when labels of a file are settled: give"
                " horizon_days, the days after the index time that they look at, beside labels."
            )
        return Path(own["labels"])
    if not own and name in _simulated_tasks(config):
        return Path("labels") / name  # in the folder of the simulated tables
    task = task_from_dict(name, own) if own else get_task(name)
    # Pooled extracts end on different days, so there a patient's own last event is all that is known.
    is_complete = config.data.source in COMPLETE_SOURCES and "," not in config.data.path
    return replace(task, follow_up="dataset_end") if is_complete and "follow_up" not in own else task


def _simulated_tasks(config: ConfigDict) -> tuple[str, ...]:
    """Tasks whose labels come with the simulated tables."""
    is_simulated = config.data.source == "simulate" and build.reads_stays(config)
    return (simulate_stays.TASK,) if is_simulated else ()


def candidate_tasks(config: ConfigDict) -> tuple[str, ...]:
    """The tasks asked for; every name is checked before any work starts."""
    if isinstance(config.tasks, str) or not (config.tasks or config.pretrain.num_steps):
        raise ValueError(f"tasks={config.tasks!r} must be a tuple of names, e.g. --config.tasks=\"('mortality_1y',)\".")
    for name in (*config.tasks, *config.fallback_tasks):
        find_task(name, config)
    return tuple(config.tasks)


def prepare_task(
    name: str, data: Data, config: ConfigDict, workdir: Path
) -> tuple[dict[str, SplitData] | None, str, dict]:
    """Labels and sequences by split, why there are none (too few outcomes), and the cohort flow."""
    try:
        first, last = _make_labels(name, data, config)
    except ValueError as error:
        return None, str(error), {}
    parts = {
        split: _rows_of(last if split == "test" else first, ids) for split, ids in data.splits.items()
    }  # patients, not rows, are split
    # Rows of test patients before the cut-off are no one's.
    used = first if data.cutoff is None else _rows_of(first, np.union1d(data.splits["train"], data.splits["val"]))
    write_meds_labels(workdir / "labels", used)
    parts["train"] = _rows_of(parts["train"], labelled_subjects(data.splits["train"], config))
    stacked = _stack(list(parts.values()), first.flow)
    minimum = {"train": config.eval.min_positives, "val": MIN_HELD_OUT, "test": MIN_HELD_OUT}
    reason = shortage(stacked, np.concatenate([np.full(len(p.times), split) for split, p in parts.items()]), minimum)
    if reason:
        at = "" if data.cutoff is None else f" The cut-off is {cutoff_day(data.cutoff)}: data.cutoff moves it."
        return None, reason + at, first.flow
    stores = {"train": data.stores[0], "val": data.stores[0], "test": data.stores[-1]}
    if data.stays is not None:
        windows = make_parts(name, parts, stores, data.stays, workdir)
        print(f"{name}: {describe_parts(windows)}", flush=True)
        built = {split: SplitData(parts[split], each) for split, each in windows.items()}
    else:
        built = _make_sequences(name, parts, stores, data, config)
    assert_disjoint(**{split: np.unique(part.sequences.subject_ids) for split, part in built.items()})
    return built, "", first.flow


def _make_sequences(
    name: str, parts: dict[str, Labels], stores: dict[str, Store], data: Data, config: ConfigDict
) -> dict[str, SplitData]:
    settings = {"max_visits": config.data.max_visits, "max_codes": config.data.max_codes}
    every = _every_visit(name, parts["train"], data, config, settings)
    splits = {"val", "test"} if every else set(parts)
    built = {
        split: SplitData(parts[split], build_visit_sequences(stores[split], data.vocab, parts[split], **settings))
        for split in splits
    }
    return built | ({"train": every} if every else {})


def labelled_subjects(train_subjects: np.ndarray, config: ConfigDict) -> np.ndarray:
    """The train patients whose labels are used: `train.label_fraction` of them, a smaller share within a larger one."""
    fraction = config.train.label_fraction
    order = np.random.default_rng([config.train.seed, len(train_subjects)]).permutation(len(train_subjects))
    return np.sort(train_subjects[order[: max(1, round(fraction * len(order)))]])


def _every_visit(name: str, drawn: Labels, data: Data, config: ConfigDict, settings: dict) -> SplitData | None:
    """Train on all index visits of each train patient, in one causal pass; None where that gives no more than `drawn`.

    A task draws a few index visits a patient, or one date, so that every patient weighs alike in the test figures; a
    model (and the baselines with it) learns far more from all visits, and a causal one at no more cost.
    """
    task = find_task(name, config)
    if (
        not (config.train.every_visit and build.is_causal(config))
        or isinstance(task, Path)
        or task.index not in ("every_visit", "random_date")
    ):
        return None
    outputs = drawn.names if task.kind in ("multilabel", "multiclass") else None
    every = replace(task, index="every_visit", max_rows_per_patient=None)
    labels = make_labels(data.stores[0], every, outputs=outputs, until=_until(data))
    labels = _rows_of(labels, labelled_subjects(data.splits["train"], config))
    sequences = build_visit_level_sequences(data.stores[0], data.vocab, labels, **settings)
    is_more = sequences.label_mask.any(axis=1).sum() > len(drawn.times)
    return SplitData(labels, sequences, "visit") if is_more else None


def _make_labels(name: str, data: Data, config: ConfigDict) -> tuple[Labels, Labels]:
    """Labels of the first and of the last store (the same object where there is one store).

    With a cut-off, outcome windows of the first end by it, and index times of the last lie after it.
    """
    task = find_task(name, config)
    if isinstance(task, Path):
        horizon = config.custom_tasks.get(name, {}).get("horizon_days", 0.0)
        if name in _simulated_tasks(config):
            task, horizon = data.simulated / task, simulate_stays.HORIZON_HOURS / 24
        every = [_read_labels(store, task, name, horizon) for store in data.stores]
        first, last = every[0], every[-1]
        if data.cutoff is not None:
            first, last = first.take(first.end_times <= data.cutoff), last.take(last.times > data.cutoff)
        return first, last
    options = {"seed": config.data.seed, "train_subjects": data.splits["train"]}
    first = make_labels(data.stores[0], task, **options, until=_until(data))
    if len(data.stores) == 1:
        return first, first
    outputs = first.names if task.kind in ("multilabel", "multiclass") else None
    after = NULL_TIME if data.cutoff is None else data.cutoff
    return first, make_labels(data.stores[1], task, **options, outputs=outputs, after=after)


def _until(data: Data) -> int:
    return NEVER if data.cutoff is None else data.cutoff


def _read_labels(store: Store, path: Path, name: str, horizon_days: float) -> Labels:
    known = whole_of(store).subject_ids
    return drop_without_visits(store, read_meds_labels(path, subject_ids=known, name=name, horizon_days=horizon_days))


def _rows_of(labels: Labels, subject_ids: np.ndarray) -> Labels:
    return labels.take(np.isin(labels.subject_ids, subject_ids))


def _stack(parts: list[Labels], flow: dict) -> Labels:
    columns = ("subject_ids", "times", "values", "mask", "end_times")
    return parts[0]._replace(flow=flow, **{c: np.concatenate([getattr(p, c) for p in parts]) for c in columns})


def even_share(rows: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the rows, evenly spaced, so that each patient keeps the same share."""
    return rows[np.linspace(0, len(rows) - 1, min(limit, len(rows))).round().astype(np.int64)]
