"""Whether one patient serves on two sides: by id, and by content under another id."""

import hashlib

import numpy as np

from ehrjax.data.cutoff import whole_of
from ehrjax.data.splits import mix64
from ehrjax.evaluate.audit.workdir import Finding, Run
from ehrjax.wording import counted

# Records of fewer events can be equal by chance, where times are dates and codes are few.
MIN_EVENTS = 10


def check_split_overlap(run: Run) -> Finding:
    """No patient in two splits, or twice in one; none in the split of another store than the one it lies in."""
    problems = []
    for name, ids in run.splits.items():
        if not len(ids):
            problems.append(f"{name} has no patient")
        for other, others in run.splits.items():
            shared = np.intersect1d(ids, others) if other > name else _twice(ids) if other == name else ids[:0]
            if len(shared):
                where = f"both {name} and {other}" if other != name else f"{name} twice"
                problems.append(f"{counted(len(shared), 'patient is', 'patients are')} in {where}, e.g. {shared[0]}")
        store = run.stores[-1 if name == "test" else 0]
        absent = ids[~np.isin(ids, store.subject_ids)]
        if len(absent):
            patients = counted(len(absent), "patient is", "patients are")
            problems.append(f"of {name} {patients} not in its store, e.g. {absent[0]}")
    sizes = ", ".join(f"{len(ids):,} {name}" for name, ids in run.splits.items())
    return Finding(not problems, "; ".join(problems) or f"{sizes}: no patient in two splits")


def check_equal_records(run: Run) -> Finding:
    """No record of val or test equals, event for event, one of another split: one patient under two ids."""
    prints = {store: fingerprints(store) for store in run.whole_stores}
    owner: dict[int, tuple[str, int]] = {}
    shared, num_records = [], 0
    for split, ids in run.splits.items():
        known_ids, records, sizes = prints[whole_of(run.stores[-1 if split == "test" else 0])]
        chosen = np.flatnonzero(np.isin(known_ids, ids) & (sizes >= MIN_EVENTS))
        num_records += len(chosen)
        for record, subject in zip(records[chosen].tolist(), known_ids[chosen].tolist(), strict=True):
            first = owner.setdefault(record, (split, subject))
            if first[0] != split and first[1] != subject:
                shared.append((*first, split, subject))
    if shared:
        one, a, two, b = shared[0]
        pairs = counted(len(shared), "pair of equal records", "pairs of equal records")
        detail = f"{pairs} across splits, e.g. those of {a} ({one}) and {b} ({two})"
        return Finding(False, detail)
    if not num_records:
        return Finding(None, f"no patient has {MIN_EVENTS} events, too few to compare records")
    records = counted(num_records, "record")
    return Finding(True, f"{records} of at least {MIN_EVENTS} events: none is equal to one of another split")


def check_label_rows(run: Run) -> Finding:
    """Every label row belongs to a patient of one split."""
    problems, num_rows = [], 0
    everyone = np.concatenate([run.splits["train"], run.splits["val"], run.splits["test"]])
    for task in run.tasks.values():
        for output, rows in task.labels.items():
            num_rows += len(rows.subject_ids)
            foreign = np.setdiff1d(rows.subject_ids, everyone)
            if len(foreign):
                patients = counted(len(foreign), "patient is", "patients are")
                problems.append(f"labels of {output}: {patients} in no split, e.g. {foreign[0]}")
    if not num_rows:
        return Finding(None, "the run left no label rows")
    rows = counted(num_rows, "label row")
    return Finding(not problems, "; ".join(problems) or f"{rows}, each of a patient of one split")


def fingerprints(store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Subject ids, a 64-bit hash of the record (codes by name, values, times; ids and order do not count), its events.

    Sums of hashed events, so that equal records are found in one pass; what differs at all has another hash, but for
    one pair in 2**64.
    """
    names = np.array([_hash(str(code)) for code in store.codes], np.uint64)
    parts = []
    for shard in store.shards:
        offsets = np.asarray(shard.event_offsets)
        times = np.repeat(np.asarray(shard.visit_start), np.diff(offsets)) + np.asarray(shard.event_times)
        events = _mix(names[shard.event_codes], np.asarray(shard.event_values).view(np.uint32), times)
        statics = _mix(names[shard.static_codes], np.asarray(shard.static_values).view(np.uint32), 0)
        bounds = offsets[shard.visit_offsets]
        totals = _sums(events, bounds) + _sums(statics, np.asarray(shard.static_offsets))
        parts.append((np.asarray(shard.subject_ids), mix64(totals + mix64(shard.birth)), np.diff(bounds)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(codes: np.ndarray, values: np.ndarray, times) -> np.ndarray:
    return mix64(mix64(mix64(codes) ^ values) ^ np.asarray(times, np.int64).astype(np.uint64))


def _sums(hashes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sums (modulo 2**64) of runs, zero for empty ones."""
    total = np.append(np.uint64(0), np.cumsum(hashes, dtype=np.uint64))
    return total[offsets[1:]] - total[offsets[:-1]]


def _twice(ids: np.ndarray) -> np.ndarray:
    values, counts = np.unique(ids, return_counts=True)
    return values[counts > 1]
