"""Source files to a store: `python -m ehrjax.data.build --source=synthea --path=DIR[,DIR...] --out=STORE`.

The store is built anew only when the source files (names, sizes, modification times), the settings or the store's
schema have changed; `STORE/data_report.json` holds the ledger of all rows.
"""

import argparse
import hashlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ehrjax.data.events import EventBatch
from ehrjax.data.store import SCHEMA_VERSION, Store, StoreSettings, open_store, read_manifest, write_store
from ehrjax.data.visits import STRATEGIES
from ehrjax.wording import counted

# Imported when asked for: one source's reader does not need another's.
READERS = {
    "synthea": "ehrjax.data.readers.synthea:read_synthea",
    "meds": "ehrjax.data.readers.meds:read_meds",
    "mimic4": "ehrjax.data.readers.mimic4:read_mimic4",
    "omop": "ehrjax.data.readers.omop:read_omop",
    "physionet2012": "ehrjax.data.readers.physionet2012:read_physionet2012",
}
_HAS_GLOBAL_IDS = ("synthea",)  # patient ids are UUIDs: the same id in two folders is the same patient
# Bytes of uncompressed CSV a partition: 64 MiB are some 400,000 rows, which sort twice as fast as a million do since
# they stay near the cache; a huge source takes larger ones, to have fewer files.
_PARTITION_BYTES, _MAX_PARTITION_BYTES, _MANY_PARTITIONS = 64 << 20, 192 << 20, 256
_EXPANSION = {".gz": 6, ".zip": 6, ".parquet": 10}  # size as uncompressed CSV over size of the file


def build_store(
    source: str,
    paths: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    settings: StoreSettings | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> Store:
    """The store of one data set, or of several pooled, at `out`; reused where nothing has changed.

    `paths` is one folder, several, or several in one string with commas between. `executor` runs the second pass
    (default: a few threads). With `progress`, bars go to stderr and a line says whether the store was reused.
    Raises ValueError and FileNotFoundError for what is wrong with the source, OSError where `out` cannot be written.
    """
    settings, out, paths = settings or StoreSettings(), Path(out), _split_paths(paths)
    read = _reader(source)
    _check_paths(paths, out)
    say: Callable[[str], None] = print if progress else lambda line: None
    files = [(label, _source_files(source, path)) for path, label in zip(paths, _labels(paths), strict=True)]
    origin = {"source": source, "paths": [label for label, _ in files], "fingerprint": fingerprint(source, files)}
    manifest = read_manifest(out)
    if manifest is not None:
        reason = _why_rebuild(manifest, origin, settings)
        if reason is None:
            say(f"{out}: nothing has changed, the store is used as it is.")
            return open_store(out)
        say(f"{out}: {reason}; the store is built again.")
    return write_store(
        _pool(source, read, paths, [label for label, _ in files]),
        out,
        settings=settings,
        num_shards=num_partitions([file for _, listed in files for file in listed]),
        executor=executor,
        progress=progress,
        source=origin,
        splits=_read_splits(source, paths),
    )


def list_files(path: Path) -> list[tuple[str, int, int]]:
    """Name below `path`, size and modification time (ns) of each file, sorted by name; hidden ones left out."""
    if path.is_file():
        stat = path.stat()
        return [(path.name, stat.st_size, stat.st_mtime_ns)]
    names = (p for p in path.rglob("*") if p.is_file())
    listed = [(p.relative_to(path), p.stat()) for p in names]
    visible = [(p.as_posix(), s) for p, s in listed if not any(part.startswith(".") for part in p.parts)]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in visible)


def _source_files(source: str, path: Path) -> list[tuple[str, int, int]]:
    """`list_files`, with those that the source's reader takes from beside a single set."""
    module = importlib.import_module(READERS[source].split(":")[0])
    beside = module.files_beside(path) if hasattr(module, "files_beside") else []
    return list_files(path) + [entry for file in beside for entry in list_files(file)]


def fingerprint(source: str, files: Sequence[tuple[str, list[tuple[str, int, int]]]]) -> str:
    """Hash of the reader's name and of each data set's label and files."""
    return hashlib.sha256(json.dumps([source, files]).encode()).hexdigest()


def num_partitions(files: Sequence[tuple[str, int, int]]) -> int:
    """Partitions for these files: a function of their sizes alone, so that the layout is the same on every machine.

    >>> num_partitions([("observations.csv", 640 << 20, 0)]), num_partitions([("observations.csv.gz", 640 << 20, 0)])
    (10, 60)
    """
    total = sum(size * _EXPANSION.get(Path(name).suffix.lower(), 1) for name, size, _ in files)
    size = min(max(_PARTITION_BYTES, total / _MANY_PARTITIONS), _MAX_PARTITION_BYTES)
    return max(1, round(total / size))


def summarise(store: Store) -> str:
    """The account of a build as a few lines of text."""
    report, files = store.report, store.report["files"]
    patients, *counts = (counted(report[f"num_{name}s"], name) for name in ("patient", "visit", "event", "code"))
    lines = [
        f"{store.path}: {patients} ({report['num_patients_with_visits']:,} with visits), {', '.join(counts)}",
        f"  rows read {report['rows_read']:,} = kept {report['rows_kept']:,} + quarantined "
        f"{report['rows_quarantined']:,}, from {counted(len(files), 'file')} in {report['seconds']:.1f} s "
        f"({report['rows_per_second']:,.0f} rows/s, {report['events_per_second']:,.0f} events/s)",
    ]
    lines += [f"    {reason:<20} {count:>12,}" for reason, count in report["rows_by_reason"].items()]
    lines += [f"  visits: {report['settings']['visits']}; times from {report['first_time']} to {report['last_time']}"]
    for name in ("visits_per_patient", "codes_per_visit"):
        shown = "  ".join(f"{key} {value:,}" for key, value in report[name].items())
        lines.append(f"  {name.replace('_', ' '):<19} {shown}")
    return "\n".join(lines)


def _split_paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(paths, str):
        paths = [part.strip() for part in paths.split(",") if part.strip()]
    paths = [paths] if isinstance(paths, Path) else [Path(path).expanduser() for path in paths]
    if not paths:
        raise ValueError("no path given: name the folder of the source files, or several with commas between.")
    return paths


def _reader(source: str) -> Callable[..., Iterator[EventBatch]]:
    if source not in READERS:
        raise ValueError(f"source={source!r} is not known: use one of {', '.join(READERS)}.")
    module, name = READERS[source].split(":")
    return getattr(importlib.import_module(module), name)


def _check_paths(paths: list[Path], out: Path) -> None:
    resolved = [path.resolve() for path in paths]
    for path, real in zip(paths, resolved, strict=True):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: give the folder that holds the source files.")
        if resolved.count(real) > 1:
            raise ValueError(f"{path} is given twice: name each folder once.")
        if out.resolve().is_relative_to(real):
            raise ValueError(f"out={out} lies inside the source folder {path}: put the store elsewhere.")


def _labels(paths: list[Path]) -> list[str]:
    """What the ledger calls each data set: its folder's name, with as many parents as tell it from the others."""
    parts = [path.resolve().parts for path in paths]
    labels = []
    for own in parts:
        others = [other for other in parts if other != own]
        depth = next(d for d in range(1, len(own) + 1) if all(own[-d:] != other[-d:] for other in others))
        labels.append("/".join(own[-depth:]))
    return labels


def _pool(source: str, read: Callable, paths: list[Path], labels: list[str]) -> Iterator[EventBatch]:
    """Batches of all data sets. Where patients are numbered, the same number in two sets is refused."""
    seen: list[np.ndarray] = []
    for path, label in zip(paths, labels, strict=True):
        subjects = []
        for batch in read(path, label=label):
            if len(paths) > 1 and source not in _HAS_GLOBAL_IDS:
                subjects.append(pd.unique(batch.subject_id))
            yield batch
        own = np.unique(np.concatenate(subjects)) if subjects else np.zeros(0, np.int64)
        for other, ids in enumerate(seen):
            shared = np.intersect1d(own, ids)
            if len(shared):
                raise ValueError(
                    f"subject {shared[0]} is in both {paths[other]} and {path} ({len(shared)} subjects are): their "
                    "numbers would mix two patients. Give each data set its own ids, or build them one by one."
                )
        seen.append(own)


def _read_splits(source: str, paths: list[Path]) -> dict[int, str] | None:
    """The splits that MEDS data sets come with; a pooled set without any leaves its subjects to be split later."""
    if source != "meds":
        return None
    from ehrjax.data.readers.meds import read_meds_splits

    found = [splits for path in paths if (splits := read_meds_splits(path)) is not None]
    return {subject: split for splits in found for subject, split in splits.items()} if found else None


def _why_rebuild(manifest: dict[str, Any], origin: dict[str, Any], settings: StoreSettings) -> str | None:
    if manifest.get("schema_version") != SCHEMA_VERSION:
        return (
            f"it was written with store schema {manifest.get('schema_version')}, this version writes {SCHEMA_VERSION}"
        )
    if manifest["source"] != origin:
        return "the source files have changed"
    if manifest["settings"] != asdict(settings):
        return "the settings have changed"
    return None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ehrjax.data.build", description=__doc__.split("\n\n")[1])
    parser.add_argument("--source", required=True, choices=list(READERS), help="format of the source files")
    parser.add_argument(
        "--path", required=True, help="folder of the source files; several, separated by commas, are pooled"
    )
    parser.add_argument("--out", required=True, help="folder of the store; rebuilt only when something has changed")
    default = {field.name: field.default for field in fields(StoreSettings)}
    parser.add_argument("--visits", default=default["visits"], choices=STRATEGIES, help="how events become visits")
    parser.add_argument(
        "--window-hours", default=default["window_hours"], type=float, help="gap that ends a visit of time_window"
    )
    parser.add_argument(
        "--death-tolerance-days",
        default=default["death_tolerance_days"],
        type=float,
        help="events later than this after death are quarantined",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; what is wrong with the input ends it with one line and exit code 1."""
    args = _parse(argv)
    settings = StoreSettings(args.visits, args.window_hours, args.death_tolerance_days)
    try:
        store = build_store(args.source, args.path, args.out, settings=settings, progress=True)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {getattr(error, 'strerror', None) or error}")
    print(summarise(store))


if __name__ == "__main__":
    main()
