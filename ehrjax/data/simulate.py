"""Simulated patients with known risks: Synthea-format CSV files and the true probability of each outcome.

    python -m ehrjax.data.simulate --out=DIR --num-patients=N --seed=S [--stays]

The generative model is in `simulate_chain` (states and hazards), `simulate_paths` (lives and visits),
`simulate_records` (what a visit records) and `oracle` (the probabilities). A patient is a pure function of (seed,
number): the same seed gives the same bytes, and the first patients stay the same when more are asked for. `--stays`
simulates hospital stays with vital signs and notes instead: see `simulate_stays`.
"""

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from tqdm import tqdm

from ehrjax.data import oracle, simulate_chain, simulate_paths, simulate_records, simulate_tables
from ehrjax.data.readers.columns import hash_ids
from ehrjax.data.workspace import naming_the_folder, workspace

MODEL_VERSION = 2  # raised whenever the same seed gives other files
BLOCK_PATIENTS = 2048
_ORACLE_SCHEMA = pa.schema(
    {
        "subject_id": pa.int64(),
        "task": pa.string(),
        "prediction_time": pa.timestamp("us"),
        "probability_latent": pa.float32(),
        "probability_recorded": pa.float32(),
    }
)


class Index(NamedTuple):
    """Where and when an oracle can be asked: one row a visit, at its end."""

    subject_id: np.ndarray  # int64 [v]
    time: np.ndarray  # int64 [v], seconds since 1970
    state: np.ndarray  # int32 [v]
    age_weeks: np.ndarray  # int64 [v], in the week of the index time
    offset: np.ndarray  # int64 [v], seconds since that week began
    log_likelihood: np.ndarray  # float32 [v, 4], of the record up to the index time
    is_stay: np.ndarray  # bool [v]


class Simulation(NamedTuple):
    """Some patients: Synthea tables by name, index times, and the latent subtype of each (subject_id, subtype)."""

    tables: dict[str, pa.Table]
    index: Index
    latent: pa.Table


def simulate(num_patients: int, seed: int = 0, *, first: int = 0) -> Simulation:
    """Patients `first .. first + num_patients - 1` of this seed, in memory (about 60 kB a patient).

    Raises ValueError where `num_patients` is not positive.
    """
    if num_patients < 1:
        raise ValueError(f"num_patients={num_patients} must be at least 1.")
    lives = simulate_paths.simulate_paths(np.arange(first, first + num_patients), seed)
    content = simulate_records.record_visits(lives, seed)
    encounters = simulate_tables.draw_encounters(lives, seed)
    tables = simulate_tables.make_tables(lives, content, encounters, seed)
    subject_ids = hash_ids(tables["patients"]["Id"].combine_chunks())
    subtype = simulate_chain.fields_of(lives.patients.state)["subtype"]
    latent = pa.table({"subject_id": subject_ids, "subtype": pa.array(simulate_chain.SUBTYPES).take(pa.array(subtype))})
    return Simulation(tables, _index(lives, content, encounters.times, subject_ids), latent)


def _index(lives, content, times, subject_ids: np.ndarray) -> Index:
    visits = lives.visits
    drawn = np.cumsum(content.log_likelihood.astype(np.float64), 0)
    first = np.flatnonzero(np.append(True, visits.patient[1:] != visits.patient[:-1]))
    before = np.concatenate([np.zeros((1, drawn.shape[1])), drawn])[first]
    drawn -= np.repeat(before, np.diff(np.append(first, len(drawn))), 0)
    keep = np.flatnonzero(~times.is_cut)  # a stay that observation cuts short has no end to predict from
    week = visits.week + visits.stay_weeks
    monday = lives.patients.origin[visits.patient] + week * simulate_paths.WEEK
    return Index(
        subject_id=subject_ids[visits.patient[keep]],
        time=times.stop[keep],
        state=visits.state[keep],
        age_weeks=(lives.patients.age_weeks[visits.patient] + week)[keep],
        offset=(times.stop - monday)[keep],
        log_likelihood=(visits.log_likelihood + drawn)[keep].astype(np.float32),
        is_stay=(visits.kind == simulate_paths.STAY)[keep],
    )


def oracle_table(index: Index, tasks: Collection[str] | None = None) -> pa.Table:
    """The true probabilities at every candidate index time of each of `tasks` (all that there are), task by task.

    Those are the ends of all visits, for readmission of all hospital stays, of who does not have the outcome's disease.
    A task of several conditions has rows for each, under `TASK--CONDITION`.
    """
    parts = [_ORACLE_SCHEMA.empty_table()]
    for events, solved in oracle.tasks_by_events(tasks).items():
        candidate = oracle.at_risk(events, index.state)
        if events == simulate_chain.STAY_EVENTS:
            candidate &= index.is_stay
        some = Index(*(column[candidate] for column in index))
        probabilities = oracle.oracle_probabilities(
            solved, some.state, some.age_weeks, some.offset, some.log_likelihood
        )
        for task, latent, recorded in zip(solved, *probabilities, strict=True):
            columns = {"subject_id": some.subject_id, "task": pa.repeat(task, len(latent))}
            columns["prediction_time"] = pa.array(some.time * 1_000_000, pa.timestamp("us"))
            columns |= {"probability_latent": latent, "probability_recorded": recorded}
            parts.append(pa.table(columns, schema=_ORACLE_SCHEMA))
    return pa.concat_tables(parts)


def write(
    out: str | Path, *, num_patients: int, seed: int = 0, tasks: Collection[str] | None = None, progress: bool = False
) -> Path:
    """Simulate into a new folder: Synthea CSVs, oracle.parquet, latent.parquet, simulation.json; returns the folder.

    The oracle answers all its tasks, which takes some ten seconds of any simulation, or those of the names in `tasks`.

    `out` is complete or absent, whenever the process is killed. A folder that holds this very simulation is left as it
    is. Raises FileExistsError for a folder that holds something else, OSError where `out` cannot be written.
    """
    out = Path(out)
    asked = None if tasks is None else sorted(tasks)
    settings = {"num_patients": num_patients, "seed": seed, "model_version": MODEL_VERSION, "tasks": asked}
    if out.exists() and is_same_simulation(out, settings):
        return out
    with workspace(out) as folder, naming_the_folder(out):
        _write_files(folder / "store", settings, progress)
    return out


def is_same_simulation(out: Path, settings: dict) -> bool:
    """Whether the folder holds this simulation; an empty one holds none. FileExistsError where it holds another."""
    if out.is_dir() and not any(out.iterdir()):
        return False
    manifest = out / "simulation.json"
    found = json.loads(manifest.read_text()) if manifest.is_file() else {}
    if any(found.get(key) != value for key, value in settings.items()):
        held = {key: found.get(key) for key in settings} if found else "no simulation"
        raise FileExistsError(f"{out} holds {held}, asked for {settings}: give another folder or remove this one.")
    return True


def _write_files(folder: Path, settings: dict, progress: bool) -> None:
    num_patients, seed = settings["num_patients"], settings["seed"]
    files = {name: (folder / f"{name}.csv").open("wb") for name in simulate_tables.HEADERS}
    indexes, latents, num_rows = [], [], dict.fromkeys(files, 0)
    try:
        for name, file in files.items():
            file.write(f"{simulate_tables.HEADERS[name]}\n".encode())
        for block in _blocks(num_patients, seed, progress):
            for name, table in block.tables.items():
                _append_csv(files[name], table)
                num_rows[name] += table.num_rows
            indexes.append(block.index)
            latents.append(block.latent)
    finally:
        for file in files.values():
            file.close()
    index = Index(*(np.concatenate(column) for column in zip(*indexes, strict=True)))
    pq.write_table(oracle_table(index, settings["tasks"]), folder / "oracle.parquet")
    latent = pa.concat_tables(latents)
    pq.write_table(latent, folder / "latent.parquet")
    counts = {item["values"]: item["counts"] for item in latent["subtype"].value_counts().to_pylist()}
    subtypes = {name: counts.get(name, 0) for name in simulate_chain.SUBTYPES}
    manifest = {**settings, "num_rows": num_rows, "subtypes": subtypes, "parameters": simulate_chain.parameters()}
    (folder / "simulation.json").write_text(json.dumps(manifest, indent=1) + "\n")


def _blocks(num_patients: int, seed: int, progress: bool) -> Iterator[Simulation]:
    with tqdm(total=num_patients, desc="simulate", unit="patient", disable=not progress) as bar:
        for first in range(0, num_patients, BLOCK_PATIENTS):
            count = min(BLOCK_PATIENTS, num_patients - first)
            yield simulate(count, seed, first=first)
            bar.update(count)


def _append_csv(file, table: pa.Table) -> None:
    # Names and numbers hold no commas or quotes, and pyarrow raises if one did.
    pa_csv.write_csv(table, file, pa_csv.WriteOptions(include_header=False, quoting_style="none"))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ehrjax.data.simulate", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--num-patients", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stays", action="store_true", help="hospital stays with vital signs and notes, hour by hour")
    options = parser.parse_args(arguments)
    from ehrjax.data import simulate_stays  # which builds on this module

    make = simulate_stays.write if options.stays else write
    out = make(options.out, num_patients=options.num_patients, seed=options.seed, progress=True)
    manifest = json.loads((out / "simulation.json").read_text())
    rows = ", ".join(f"{name} {count:,}" for name, count in manifest["num_rows"].items())
    print(f"{out}: {rows}; true probabilities in oracle.parquet")


if __name__ == "__main__":
    main()
