"""The on-disk store: patients, visits and events in memory-mapped columns, with the ledger of every source row.

    store/manifest.json        schema version, counts, content hash, source, settings, first and last time
    store/codes.parquet        MEDS codes (code, description, parent_codes) and count; the row is the code's number
    store/quarantine.parquet   file, row, reason of every source row that gave nothing
    store/data_report.json     the same as counts, with times and distributions
    store/splits.parquet       subject_id, split: only where the source defines splits
    store/shard-00000/*.npy    the columns of `Shard`

A store appears under its name only when it is complete. It is built beside that place, in a hidden folder that the
next build removes if this one is killed.
"""

import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrjax.data.clean import code_roles
from ehrjax.data.events import EventBatch, type_ranks
from ehrjax.data.ledger import make_report, quarantine_table, time_range
from ehrjax.data.shards import NULL_TIME, Shard, ShardPlan, ShardSummary, load_shard, make_shard, save_shard, shard_of
from ehrjax.data.spill import Renumbering, Spill, read_partition
from ehrjax.data.visits import STRATEGIES
from ehrjax.data.workspace import flush_to_disk, naming_the_folder, workspace

__all__ = ["NULL_TIME", "SCHEMA_VERSION", "Shard", "Store", "StoreSettings", "open_store", "shard_of", "write_store"]

# Raise it also when reading, cleaning or visits make something else of the same files: stores are then rebuilt.
SCHEMA_VERSION = 2
_NUM_THREADS = min(4, os.cpu_count() or 1)
_OPEN_SHARDS = 32  # each holds some 15 file handles
_CODES_SCHEMA = pa.schema(
    [
        ("code", pa.string()),
        ("description", pa.string()),
        ("parent_codes", pa.list_(pa.string())),
        ("count", pa.int64()),
    ]
)


@dataclass(frozen=True)
class StoreSettings:
    """How events become visits, and how long after death an event may be recorded."""

    visits: str = "hybrid"
    window_hours: float = 24.0  # for `time_window`
    death_tolerance_days: float = 30.0

    def __post_init__(self):
        if self.visits not in STRATEGIES:
            raise ValueError(f"visits={self.visits!r} is not a strategy: use one of {', '.join(STRATEGIES)}.")


class _Shards(Sequence):
    """Shards, opened when asked for; the last few stay open."""

    def __init__(self, path: Path, num_shards: int):
        self._path, self._num_shards = path, num_shards
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __len__(self) -> int:
        return self._num_shards

    def __getitem__(self, index: int) -> Shard:
        if not -self._num_shards <= index < self._num_shards:
            raise IndexError(f"shard {index} of {self._num_shards}")
        index %= self._num_shards
        if index not in self._open:
            self._open[index] = load_shard(self._path / _shard_name(index))
        self._open.move_to_end(index)
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[index]


class Store:
    """An opened store; see the module's text for what is in it."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path, self.manifest = path, manifest
        self.shards: Sequence[Shard] = _Shards(path, manifest["num_shards"])
        table = pq.read_table(path / "codes.parquet")
        self.codes = np.array(table["code"].to_pylist(), dtype=np.str_)
        self.code_counts = table["count"].to_numpy()
        texts = table["description"].to_pylist()
        self.descriptions = {str(c): d for c, d in zip(self.codes, texts, strict=True) if d is not None}

    def __repr__(self) -> str:
        counts = ", ".join(f"{self.manifest[f'num_{name}']:,} {name}" for name in ("patients", "visits", "events"))
        return f"Store({str(self.path)!r}: {counts})"

    @cached_property
    def subject_ids(self) -> np.ndarray:
        """All subjects (int64), in the order of the shards."""
        return np.concatenate([np.asarray(shard.subject_ids) for shard in self.shards])

    @cached_property
    def report(self) -> dict[str, Any]:
        """`data_report.json`: counts, the ledger by reason and file, distributions."""
        return json.loads((self.path / "data_report.json").read_text())

    @cached_property
    def splits(self) -> dict[int, str] | None:
        """Split ("train", "val" or "test") of each subject, where the source defines splits, else None."""
        file = self.path / "splits.parquet"
        if not file.exists():
            return None
        table = pq.read_table(file)
        return dict(zip(table["subject_id"].to_pylist(), table["split"].to_pylist(), strict=True))


def open_store(path: str | Path) -> Store:
    """Open a store for reading.

    Raises FileNotFoundError where there is none, ValueError where another version of ehrjax wrote it.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if manifest is None:
        what = "is not a store: it has no manifest.json" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}. Build one with `python -m ehrjax.data.build`.")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written with store schema {manifest.get('schema_version')}; this version of ehrjax reads "
            f"schema {SCHEMA_VERSION}. Build it again with `python -m ehrjax.data.build`."
        )
    return Store(path, manifest)


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of the store at `path`, whatever its version; None where there is none."""
    try:
        return json.loads((path / "manifest.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(
            f"{path}/manifest.json is not readable JSON ({error}). Remove {path} and build again."
        ) from error


def write_store(
    batches: Iterable[EventBatch],
    out: str | Path,
    *,
    settings: StoreSettings | None = None,
    num_shards: int = 1,
    executor: Executor | None = None,
    progress: bool = False,
    source: dict[str, Any] | None = None,
    splits: dict[int, str] | None = None,
) -> Store:
    """Write the events of `batches` as a store at `out`, replacing a store that is there once the new one is complete.

    Memory holds three batches, or the partitions that `executor` works on at a time (default: a few threads here).
    `source` goes into the manifest. The result depends on the events alone, not on their order or on the executor.
    Raises ValueError where there is no patient or `out` is something else than a store, OSError naming `out` where it
    cannot be written.
    """
    out, settings, start = Path(out), settings or StoreSettings(), time.perf_counter()
    if out.exists() and read_manifest(out) is None and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not a store; it is left alone. Choose another place for the store.")
    with workspace(out) as folder:
        spill = _spill(batches, folder / "spill", num_shards, out, progress)
        read_seconds = time.perf_counter() - start
        with naming_the_folder(out):
            summaries = _build_shards(folder, num_shards, spill, settings, executor, progress)
            report = make_report(summaries, spill, asdict(settings))
            if not report["num_patients"]:
                raise ValueError(_no_patients(report))
            _write_tables(folder / "store", summaries, spill, splits)
            report |= _timing(report, time.perf_counter() - start, read_seconds)
            _write_json(folder / "store" / "data_report.json", report)
            _write_json(folder / "store" / "manifest.json", _manifest(report, summaries, spill.codes, settings, source))
    return open_store(out)


def build_partition(folder: Path, final: Renumbering, plan: ShardPlan, shard: int) -> ShardSummary:
    """Second pass, one partition: spilled events to the files of its shard. Runs in any process that sees `folder`."""
    subject_id, events = read_partition(folder / "spill", shard, final)
    arrays, summary = make_shard(subject_id, events, plan)
    save_shard(arrays, folder / "store" / _shard_name(shard))
    return summary


def _spill(batches: Iterable[EventBatch], folder: Path, num_shards: int, out: Path, progress: bool) -> Spill:
    with naming_the_folder(out):
        spill = Spill(folder, num_shards)
    bar = tqdm(desc="reading", unit=" rows", unit_scale=True, disable=not progress)
    with bar, ThreadPoolExecutor(1) as writer:
        written = None
        for batch in batches:  # an error of the reader is about the source, not about the folder written to
            bar.set_postfix_str(batch.file, refresh=False)
            bar.update(batch.rows_read)
            _wait_for(written, out)
            written = writer.submit(spill.add, batch)  # while the reader makes the next one
        _wait_for(written, out)
    return spill


def _wait_for(written: Future | None, out: Path) -> None:
    if written is not None:
        with naming_the_folder(out):
            written.result()


def _build_shards(
    folder: Path, num_shards: int, spill: Spill, settings: StoreSettings, executor: Executor | None, progress: bool
) -> list[ShardSummary]:
    codes = spill.codes
    plan = ShardPlan(code_roles(codes), type_ranks(codes), len(spill.files), **asdict(settings))
    build = partial(build_partition, folder, spill.renumbering(), plan)
    # Threads suffice: numpy and pandas let go of the interpreter lock, and processes take a second to start.
    with nullcontext(executor) if executor else ThreadPoolExecutor(_NUM_THREADS) as pool, ThreadPoolExecutor(1) as disk:
        futures = [pool.submit(build, shard) for shard in range(num_shards)]
        try:
            summaries, flushed = [], []
            for shard, future in enumerate(tqdm(futures, desc="sorting", unit=" shards", disable=not progress)):
                summaries.append(future.result())
                # The disk takes one shard while the next are being sorted.
                flushed.append(disk.submit(flush_to_disk, folder / "store" / _shard_name(shard)))
            for future in flushed:
                future.result()
        finally:
            for future in futures:  # after an error or Ctrl-C, do not wait for those that have not begun
                future.cancel()
    return summaries


def _timing(report: dict[str, Any], seconds: float, read_seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 3),
        "seconds_reading": round(read_seconds, 3),
        "events_per_second": round(report["num_events"] / seconds, 1),
        "rows_per_second": round(report["rows_read"] / seconds, 1),
    }


def _write_tables(folder: Path, summaries: list[ShardSummary], spill: Spill, splits: dict[int, str] | None) -> None:
    names = spill.codes
    codes = {
        "code": names,
        "description": [spill.descriptions.get(code) for code in names],
        "parent_codes": [None] * len(names),
        "count": sum(s.code_counts for s in summaries),
    }
    pq.write_table(pa.table(codes, schema=_CODES_SCHEMA), folder / "codes.parquet")
    pq.write_table(quarantine_table(summaries, spill), folder / "quarantine.parquet")
    if splits is not None:
        ids = sorted(splits)
        pq.write_table(pa.table({"subject_id": ids, "split": [splits[i] for i in ids]}), folder / "splits.parquet")


def _manifest(
    report: dict[str, Any],
    summaries: list[ShardSummary],
    codes: list[str],
    settings: StoreSettings,
    source: dict[str, Any] | None,
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, codes, [s.digest for s in summaries]]).encode())
    counts = ("num_patients", "num_visits", "num_events", "num_codes", "rows_read", "rows_kept", "rows_quarantined")
    return {
        "schema_version": SCHEMA_VERSION,
        "content_hash": digest.hexdigest(),
        "num_shards": len(summaries),
        **{name: report[name] for name in counts},
        **time_range(summaries),
        "settings": asdict(settings),
        "source": source,
    }


def _no_patients(report: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in report["rows_by_reason"].items())
    return (
        f"No patient is left of {report['rows_read']} rows read"
        + (f" (quarantined: {reasons})" if reasons else "")
        + ". Check that the path and the source format belong together."
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}"
