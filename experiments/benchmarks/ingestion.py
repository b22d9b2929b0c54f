"""Ingestion: Synthea-like CSVs to a finished store, beside what pyarrow needs merely to parse the same files.

    python -m experiments.benchmarks.ingestion [--million-rows=5] [--path=DIR] [--repeats=3]

Both are timed in turns in one run, each in a fresh process, so that a busy machine slows both alike. pyarrow parses all
columns of the files that the build reads, streamed, with its default threads. The build is the command line's own:
read, check, clean, split by patient, make visits, sort, write, flush to disk.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

ROWS = {  # share of all rows, as in complete Synthea exports
    "encounters": 0.08,
    "conditions": 0.03,
    "medications": 0.06,
    "procedures": 0.06,
    "immunizations": 0.02,
    "observations": 0.75,
}
ROWS_PER_PATIENT = 500
CLASSES = ("ambulatory", "wellness", "outpatient", "urgentcare", "emergency", "inpatient")
FIRST_DAY, NUM_DAYS = np.datetime64("1990-01-01T00:00:00", "s"), 12_000


def write_csvs(folder: Path, num_rows: int, *, seed: int = 0) -> None:
    """About `num_rows` rows in the tables of a modern Synthea export; all values are made up."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    patients = _uuids(rng, max(1, num_rows // ROWS_PER_PATIENT))
    _write(folder / "patients.csv", _patients(rng, patients))

    num_encounters = max(1, round(num_rows * ROWS["encounters"]))
    # Synthea writes patient by patient, the encounters of each in the order of time.
    owner = np.sort(rng.integers(0, len(patients), num_encounters))
    second = rng.integers(0, NUM_DAYS * 86_400, num_encounters)
    second = second[np.lexsort((second, owner))]
    visits = {"id": _uuids(rng, num_encounters), "patient": patients[owner], "start": FIRST_DAY + second}
    _write(folder / "encounters.csv", _encounters(rng, visits))
    for name in list(ROWS)[1:]:
        picks = np.sort(rng.integers(0, num_encounters, max(1, round(num_rows * ROWS[name]))))
        _write(folder / f"{name}.csv", _clinical(rng, name, {key: column[picks] for key, column in visits.items()}))


def parse_seconds(files: list[Path]) -> float:
    """Time that pyarrow takes to stream all columns of the files."""
    start = time.perf_counter()
    for file in files:
        for _ in pa.csv.open_csv(file):
            pass
    return time.perf_counter() - start


class Measured(NamedTuple):
    """One child process: its seconds, and its peak resident memory with that of all its children."""

    wall: float
    cpu: float
    peak_gb: float
    output: str


def run_measured(arguments: list[str]) -> Measured:
    """Run Python with these arguments and measure it."""
    start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(process.pid, peak, done))
    watcher.start()
    output, errors = process.communicate()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    done.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed with exit code {process.returncode}:\n{errors}")
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return Measured(wall, cpu, peak[0] / 1e9, output)


def measure(folder: Path, work: Path, repeats: int) -> None:
    """Alternate parse and build, print each, then the best of both."""
    files = sorted(file for file in folder.iterdir() if file.stem.split(".")[0] in {*ROWS, "patients"})
    size = sum(file.stat().st_size for file in files)
    print(f"{len(files)} files, {size / 1e9:.2f} GB in {folder}")
    parse, build, peaks = [], [], []
    for i in range(repeats):
        parsed = run_measured(["-m", "experiments.benchmarks.ingestion", f"--only-parse={folder}"])
        out = work / f"store{i}"
        built = run_measured(["-m", "ehrjax.data.build", "--source=synthea", f"--path={folder}", f"--out={out}"])
        report = json.loads((out / "data_report.json").read_text())
        parse.append(float(parsed.output))
        build.append(report["seconds"])
        peaks.append(built.peak_gb)
        print(
            f"run {i + 1}: parse {parse[-1]:6.2f} s (CPU {parsed.cpu:.1f} s)   build {build[-1]:6.2f} s, of which "
            f"reading {report['seconds_reading']:.2f} s (CPU {built.cpu:.1f} s, {built.wall:.1f} s with the start of "
            f"Python)   {build[-1] / parse[-1]:.2f}x   {built.peak_gb:.2f} GB",
            flush=True,
        )
        shutil.rmtree(out)
    rows = report["rows_read"]
    print(
        f"best of {repeats}: {rows:,} rows, parse {min(parse):.2f} s, build {min(build):.2f} s: "
        f"{rows / min(build):,.0f} rows/s, {min(build) / min(parse):.2f}x pyarrow's parse, peak {max(peaks):.2f} GB; "
        f"load average now {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def _watch(pid: int, peak: list[int], done: threading.Event) -> None:
    while not done.wait(0.05):
        peak[0] = max(peak[0], _resident_bytes(pid))


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants (Linux); 0 where a process has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)
    return own + sum(_resident_bytes(int(child)) for child in children)


def _uuids(rng: np.random.Generator, n: int) -> np.ndarray:
    digits = rng.integers(0, 256, (n, 16), np.uint8).tobytes().hex()
    parts = [(0, 8), (8, 12), (12, 16), (16, 20), (20, 32)]
    return np.array(["-".join(digits[i + a : i + b] for a, b in parts) for i in range(0, 32 * n, 32)], object)


def _iso(times: np.ndarray) -> pa.Array:
    return pa.compute.binary_join_element_wise(pa.array(np.datetime_as_string(times, "s")), "Z", "")


def _choice(rng: np.random.Generator, values: list[str], n: int) -> pa.Array:
    skewed = (rng.random(n) ** 2 * len(values)).astype(np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(skewed), pa.array(values)).cast(pa.string())


def _constant(value: str, n: int) -> pa.Array:
    return pa.repeat(value, n)


def _write(path: Path, columns: dict) -> None:
    pa.csv.write_csv(pa.table(columns), path, pa.csv.WriteOptions(quoting_style="none"))


def _patients(rng: np.random.Generator, ids: np.ndarray) -> dict:
    n = len(ids)
    birth = np.datetime64("1930-01-01", "D") + rng.integers(0, 59 * 365, n)
    death = np.datetime_as_string(np.datetime64("2024-01-01", "D") + rng.integers(0, 500, n), "D")
    return {
        "Id": ids,
        "BIRTHDATE": np.datetime_as_string(birth, "D"),
        "DEATHDATE": np.where(rng.random(n) < 0.1, death, ""),
        "GENDER": _choice(rng, ["F", "M"], n),
        "RACE": _choice(rng, ["white", "black", "asian", "native", "other"], n),
        "ETHNICITY": _choice(rng, ["nonhispanic", "hispanic"], n),
        "CITY": _constant("Springfield", n),
    }


def _encounters(rng: np.random.Generator, visits: dict) -> dict:
    n = len(visits["id"])
    kind = (rng.random(n) ** 2 * len(CLASSES)).astype(np.int32)
    minutes = np.where(kind == 5, rng.integers(1, 10, n) * 1440, 15 * rng.integers(1, 9, n)).astype("timedelta64[m]")
    return {
        "Id": visits["id"],
        "START": _iso(visits["start"]),
        "STOP": _iso(visits["start"] + minutes),
        "PATIENT": visits["patient"],
        "ORGANIZATION": _choice(rng, _uuids(rng, 50).tolist(), n),
        "PROVIDER": _choice(rng, _uuids(rng, 200).tolist(), n),
        "PAYER": _choice(rng, _uuids(rng, 10).tolist(), n),
        "ENCOUNTERCLASS": pa.DictionaryArray.from_arrays(pa.array(kind), pa.array(CLASSES)).cast(pa.string()),
        "CODE": _choice(rng, [str(185340000 + i) for i in range(40)], n),
        "DESCRIPTION": _constant("Encounter for check up (procedure)", n),
        "BASE_ENCOUNTER_COST": _constant("129.16", n),
        "TOTAL_CLAIM_COST": _constant("129.16", n),
        "PAYER_COVERAGE": _constant("69.16", n),
        "REASONCODE": _constant("", n),
        "REASONDESCRIPTION": _constant("", n),
    }


def _clinical(rng: np.random.Generator, name: str, visits: dict) -> dict:
    n = len(visits["id"])
    num_codes = {"observations": 200, "immunizations": 25}.get(name, 300)
    codes = [f"{8000 + i}-{i % 10}" if name == "observations" else str(40_000_000 + 977 * i) for i in range(num_codes)]
    number = (rng.random(n) ** 2 * num_codes).astype(np.int32)
    coded = {
        "PATIENT": visits["patient"],
        "ENCOUNTER": visits["id"],
        "CODE": pa.DictionaryArray.from_arrays(pa.array(number), pa.array(codes)).cast(pa.string()),
        "DESCRIPTION": pa.DictionaryArray.from_arrays(
            pa.array(number), pa.array([f"Description of code {code} as Synthea has it" for code in codes])
        ).cast(pa.string()),
    }
    if name == "observations":
        value = pa.array(np.round(rng.gamma(4.0, 25.0, n), 1)).cast(pa.string())
        return {
            "DATE": _iso(visits["start"] + rng.integers(0, 900, n).astype("timedelta64[s]")),
            "PATIENT": coded.pop("PATIENT"),
            "ENCOUNTER": coded.pop("ENCOUNTER"),
            "CATEGORY": _choice(rng, ["laboratory", "vital-signs", "survey"], n),
            **coded,
            "VALUE": value,
            "UNITS": _choice(rng, ["mg/dL", "mmol/L", "kg", "mm[Hg]"], n),
            "TYPE": _constant("numeric", n),
        }
    if name == "immunizations":
        return {"DATE": _iso(visits["start"]), **coded, "BASE_COST": _constant("140.52", n)}
    whole_days = name == "conditions"
    start = visits["start"].astype("datetime64[D]") if whole_days else visits["start"]
    text = pa.array(np.datetime_as_string(start)) if whole_days else _iso(start)
    return {"START": text, "STOP": _constant("", n), **coded, "BASE_COST": _constant("40.52", n)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--million-rows", type=float, default=5.0, help="size of the files to make")
    parser.add_argument("--path", type=Path, help="time the Synthea CSVs of this folder instead of making some")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-parse", type=Path, help=argparse.SUPPRESS)  # the child process that parses
    args = parser.parse_args()
    if args.only_parse:
        names = {*ROWS, "patients"}
        print(parse_seconds(sorted(f for f in args.only_parse.iterdir() if f.name.split(".")[0] in names)))
        return
    with tempfile.TemporaryDirectory(prefix="ingestion-") as work:
        folder = args.path
        if folder is None:
            folder = Path(work) / "synthea"
            write_csvs(folder, round(args.million_rows * 1e6))
        measure(folder, Path(work), args.repeats)


if __name__ == "__main__":
    main()
