"""The simulator: reproducible, readable, on its weekly grid, true to its state, and like Synthea's files."""

import csv
import gzip
import json

import numpy as np
import pandas as pd
import pytest

from ehrjax.data import simulate, simulate_codes, simulate_records
from ehrjax.data import simulate_chain as chain
from ehrjax.data import simulate_paths as paths
from ehrjax.data.oracle import subtype_posterior
from ehrjax.data.readers.columns import hash_ids
from ehrjax.data.readers.synthea import read_synthea
from ehrjax.data.simulate_random import Draws

NUM_PATIENTS = 300


@pytest.fixture(scope="module")
def lives():
    return paths.simulate_paths(np.arange(NUM_PATIENTS), 7)


@pytest.fixture(scope="module")
def simulation():
    return simulate.simulate(NUM_PATIENTS, 7)


@pytest.fixture(scope="module")
def frames(simulation):
    return {name: table.to_pandas() for name, table in simulation.tables.items()}


@pytest.mark.parametrize("num_patients", [0, -3])
def test_no_patients_are_refused(num_patients):
    with pytest.raises(ValueError, match=f"num_patients={num_patients}"):
        simulate.simulate(num_patients)


def test_one_patient_is_written_and_read(tmp_path):
    out = simulate.write(tmp_path / "new" / "one", num_patients=1, seed=3)
    batches = list(read_synthea(out))
    assert len({int(subject) for batch in batches for subject in batch.subject_id}) == 1
    assert sum(batch.rows_read for batch in batches) == sum(_manifest(out)["num_rows"].values())
    assert not any(rows.size for batch in batches for rows in batch.quarantined.values())


def _manifest(folder):
    return json.loads((folder / "simulation.json").read_text())


def _contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "oracle_table", lambda index, tasks: simulate.pa.table({"state": index.state}))
    first = simulate.write(tmp_path / "a", num_patients=12, seed=1)
    again = simulate.write(tmp_path / "b", num_patients=12, seed=1)
    other = simulate.write(tmp_path / "c", num_patients=12, seed=2)
    assert _contents(first) == _contents(again)
    assert _contents(first)["patients.csv"] != _contents(other)["patients.csv"]


def test_patients_stay_the_same_when_more_are_added_in_other_blocks():
    few, more = simulate.simulate(5, 9, first=3), simulate.simulate(20, 9)
    kept = set(few.tables["patients"]["Id"].to_pylist())
    assert len(kept) == 5
    for name, table in few.tables.items():
        column = "Id" if name == "patients" else "PATIENT"
        part = more.tables[name].to_pandas()
        part = part[part[column].isin(kept)].reset_index(drop=True)
        pd.testing.assert_frame_equal(table.to_pandas(), part)


def test_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def fail(file, table):
        raise OSError("No space left on device")

    monkeypatch.setattr(simulate, "_append_csv", fail)
    with pytest.raises(OSError, match="No space"):
        simulate.write(tmp_path / "out", num_patients=2)
    assert list(tmp_path.iterdir()) == []


def test_finished_folder_is_kept_another_refused_an_empty_one_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "oracle_table", lambda index, tasks: simulate.pa.table({"state": index.state}))
    (tmp_path / "out").mkdir()
    out = simulate.write(tmp_path / "out", num_patients=2)
    stamp = (out / "patients.csv").stat().st_mtime_ns
    assert simulate.write(out, num_patients=2) == out
    assert (out / "patients.csv").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="'num_patients': 3"):
        simulate.write(out, num_patients=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match="no simulation"):
        simulate.write(tmp_path / "mine", num_patients=2)


def test_command_line_writes_a_folder_and_says_what_is_in_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate, "oracle_table", lambda index, tasks: simulate.pa.table({"state": index.state}))
    simulate.main([f"--out={tmp_path / 'cli'}", "--num-patients=3", "--seed=4"])
    assert "patients 3," in capsys.readouterr().out
    assert _manifest(tmp_path / "cli")["seed"] == 4


def test_draws_are_uniform_normal_and_independent_of_each_other():
    n = 200_000
    draws = Draws(11, np.arange(n) // 400, np.arange(n) % 400)
    first, second, normal = draws.uniform("first"), draws.uniform("second"), draws.normal("first")
    counts = np.bincount((first * 50).astype(int), minlength=50)
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 100  # chi-square, 49 degrees of freedom
    assert abs(normal.mean()) < 0.012 and abs(normal.std() - 1) < 0.01
    for lag in (1, 400):  # neighbouring weeks, neighbouring patients
        assert abs(np.corrcoef(first[:-lag], first[lag:])[0, 1]) < 0.012
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.012
    np.testing.assert_array_equal(draws.take(np.array([5, 2])).uniform("first"), first[[5, 2]])


def test_weekly_hazards_are_probabilities_and_leave_subtype_and_sex_alone():
    tables = chain.build_chain()
    before, total = chain.fields_of(np.arange(chain.NUM_STATES)), tables.probability.sum(-1)
    assert tables.probability.min() >= 0 and total.max() < 0.5
    for event in range(chain.NUM_EVENTS + 1):
        after = chain.fields_of(tables.target[event])
        assert (after["subtype"] == before["subtype"]).all() and (after["sex"] == before["sex"]).all()
        assert all((after[disease] >= before[disease]).all() for disease in chain.DISEASES)
    in_hospital = before["phase"] >= chain.IN_STAY
    assert (total[:, in_hospital] == 0).all() and (total[:, ~in_hospital] > 0).all()
    has_diabetes = before["glycaemia"] == chain.DIABETES
    assert (tables.probability[:, has_diabetes, chain.E_DIABETES] == 0).all()


def _seconds(texts: pd.Series) -> pd.Series:
    return pd.to_datetime(texts).dt.tz_localize(None).astype("datetime64[s]").astype("int64")


def test_encounters_lie_on_the_grid_that_makes_windows_whole_weeks(frames):
    """Starts in the first 20 hours of a patient's week, ends in the first five days of one, and none overlaps."""
    visits = frames["encounters"]
    start, stop = _seconds(visits.START), _seconds(visits.STOP)
    origin = start.groupby(visits.PATIENT).transform("min") // paths.DAY * paths.DAY
    assert ((start - origin) % paths.WEEK < 20 * 3600).all()
    ends_within = (stop - origin) % paths.WEEK < 5 * paths.DAY
    assert (ends_within | (stop == paths.END - 1)).all()
    assert (stop > start).all() and (stop < paths.END).all()
    same = visits.PATIENT.eq(visits.PATIENT.shift())
    assert (start[same] > stop.shift()[same]).all()
    is_stay = visits.ENCOUNTERCLASS == "inpatient"
    days = (stop - start)[is_stay] / paths.DAY
    assert days.min() >= 0.4 and days.max() < 19 and (days > 7).any()
    assert (stop - start)[~is_stay].max() < 9 * 3600


def test_nothing_happens_before_birth_or_after_death(frames):
    patients = frames["patients"].set_index("Id")
    visits = frames["encounters"]
    birth = pd.to_datetime(visits.PATIENT.map(patients.BIRTHDATE), utc=True)
    death = pd.to_datetime(visits.PATIENT.map(patients.DEATHDATE).replace("", None), utc=True)
    assert (pd.to_datetime(visits.START) >= birth).all()
    died = death.notna()
    assert died.any() and (pd.to_datetime(visits.STOP)[died] < death[died]).all()
    assert set(visits.PATIENT) == set(patients.index)


def test_reading_the_codes_in_order_gives_the_recorded_state(simulation, frames):
    """A perfect reader needs nothing but the record: diseases by their first code, the level by its last code."""
    visits, states = frames["encounters"], chain.fields_of(simulation.index.state)
    subjects = dict(zip(visits.PATIENT, hash_ids(visits.PATIENT.to_numpy()), strict=True))
    seen = {(s, t): i for i, (s, t) in enumerate(zip(simulation.index.subject_id, simulation.index.time, strict=True))}
    codes_of = frames["conditions"].groupby("ENCOUNTER").CODE.agg(set).to_dict()
    procedures = frames["procedures"]
    screened = set(procedures.ENCOUNTER[procedures.CODE == simulate_codes.NORMAL_GLUCOSE_PROCEDURE])
    stop = _seconds(visits.STOP)
    has, level = {}, {}
    for visit, patient, end in zip(visits.Id, visits.PATIENT, stop, strict=True):
        codes = codes_of.get(visit, set())
        known = has.setdefault(patient, set())
        known |= {disease for disease, code in simulate_codes.DISEASE_CODES.items() if code in codes}
        found = [number for number, code in simulate_codes.LEVEL_CODES.items() if code in codes]
        level[patient] = found[0] if found else 0 if visit in screened else level.get(patient, 0)
        row = seen.get((subjects[patient], end))
        if row is not None:
            assert known == {disease for disease in chain.DISEASES if states[disease][row]}
            assert level[patient] == chain.LEVEL[states["glycaemia"][row]]
            assert len(found) <= 1


def test_the_record_tells_the_subtype_in_part_and_as_surely_as_it_claims(simulation):
    index = simulation.index
    last = np.append(index.subject_id[1:] != index.subject_id[:-1], True)
    subtype = chain.fields_of(index.state)["subtype"]
    posterior = subtype_posterior(index.log_likelihood)
    right = posterior[np.arange(len(subtype)), subtype]
    assert 0.6 < right[last].mean() < 0.95
    claimed = posterior[last].max(1)
    correct = posterior[last].argmax(1) == subtype[last]
    assert abs((correct - claimed).mean()) < 4 * np.sqrt((claimed * (1 - claimed)).sum()) / last.sum()
    names = dict(
        zip(simulation.latent["subject_id"].to_pylist(), simulation.latent["subtype"].to_pylist(), strict=True)
    )
    assert [names[s] for s in index.subject_id[last]] == [chain.SUBTYPES[u] for u in subtype[last]]


def test_labs_follow_the_state(lives):
    content = simulate_records.record_visits(lives, 7).tables["observations"]
    number = simulate_records.CATALOGUES["observations"]
    fields = chain.fields_of(lives.visits.state)

    def mean(code, mask):
        rows = content.code == number[code]
        return content.value[rows][mask[content.visit[rows]]].mean()

    levels = [mean("4548-4", chain.LEVEL[fields["glycaemia"]] == level) for level in range(5)]
    assert levels == sorted(levels) and levels[0] < 5.3 and levels[4] > 7
    assert mean("8480-6", fields["hypertension"] == 1) > mean("8480-6", fields["hypertension"] == 0) + 12
    assert mean("33914-3", fields["kidney"] == 1) < 60 < mean("33914-3", fields["kidney"] == 0)


# Beside the real files


def _real_tables(folder, name):
    for file in sorted(folder.glob(f"*/{name}.csv.gz")):
        with gzip.open(file, "rt", encoding="utf-8-sig") as lines:
            yield file.parent.name, pd.DataFrame(csv.DictReader(lines)).rename(columns=str.upper)


def test_codes_are_those_of_real_files(shared_data):
    for table, catalogue in simulate_records.CATALOGUES.items():
        real = {code for _, frame in _real_tables(shared_data / "synthea", table) for code in frame.get("CODE", ())}
        ours = {code.split("#")[0] for code in catalogue.entries}
        assert ours <= real, f"{table}: {sorted(ours - real)}"
    assert sum(len(catalogue.entries) for catalogue in simulate_records.CATALOGUES.values()) > 500


CLINICAL = ("conditions", "observations", "medications", "procedures", "immunizations")


def _summary(patients, encounters, num_codes) -> dict[str, float]:
    encounters = encounters.rename(columns=str.upper)
    born = dict(zip(patients.ID, pd.to_datetime(patients.BIRTHDATE, utc=True, format="mixed"), strict=True))
    start = pd.to_datetime(
        encounters["START"] if "START" in encounters else encounters["DATE"], utc=True, format="mixed"
    )
    table = pd.DataFrame({"patient": encounters.PATIENT, "start": start}).sort_values(["patient", "start"])
    per_patient = table.patient.value_counts()
    gaps = table.groupby("patient").start.diff().dropna().dt.total_seconds() / paths.DAY
    ages = (table.start - table.patient.map(born)).dt.days / 365.25
    return {
        "visits": per_patient.mean(),
        "visits_median": per_patient.median(),
        "codes_a_visit": num_codes / len(table),
        "gap_median": gaps.median(),
        "gap_mean": gaps.mean(),
        "age_median": ages.median(),
        "age_p90": ages.quantile(0.9),
        "dead": (patients.DEATHDATE.fillna("") != "").mean(),
    }


def test_distributions_are_comparable_to_real_folders(shared_data, frames):
    """Each figure lies in or near the range over the real Synthea folders; prints the table.

    The mean gap is the one below the range: Synthea keeps a few visits of early life beside the last years' many.
    """
    real = {}
    tables = {name: dict(_real_tables(shared_data / "synthea", name)) for name in ("patients", "encounters", *CLINICAL)}
    for folder, patients in tables["patients"].items():
        if len(patients) > 50:
            num_codes = sum(len(tables[name].get(folder, ())) for name in CLINICAL)
            real[folder] = _summary(patients, tables["encounters"][folder], num_codes)
    ours = _summary(
        frames["patients"].rename(columns=str.upper), frames["encounters"], sum(len(frames[name]) for name in CLINICAL)
    )
    table = pd.DataFrame(real | {"simulated": ours}).T
    print(f"\n{table.round(2).to_string()}")
    low, high = table.drop("simulated").min(), table.drop("simulated").max()
    for name, value in ours.items():
        assert low[name] * 0.55 <= value <= high[name] * 1.4, (
            f"{name}: {value:.2f}, real {low[name]:.2f}-{high[name]:.2f}"
        )
