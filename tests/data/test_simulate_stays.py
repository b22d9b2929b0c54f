"""Simulated stays: reproducible, odd stays included, notes that say what they state, an oracle that sees no future."""

import json

import numpy as np
import pandas as pd
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ehrjax.data import simulate, simulate_stays
from ehrjax.data import simulate_stay_chain as chain
from ehrjax.data import simulate_stay_notes as notes
from ehrjax.data import simulate_stay_paths as paths
from ehrjax.data.build import build_store
from ehrjax.data.labels import read_meds_labels
from ehrjax.data.simulate_random import Draws
from ehrjax.data.simulate_stay_tables import DETERIORATION_CODES
from ehrjax.data.stay_oracle import HORIZON_HOURS, MAX_HOURS, RECORDS, IndexRows, index_rows, oracle_probabilities

NUM_PATIENTS = 300
HOUR = np.int64(3_600_000_000)


@pytest.fixture(scope="module")
def simulation():
    return simulate_stays.simulate_stays(NUM_PATIENTS, 7)


@pytest.fixture(scope="module")
def drawn():
    return paths.draw_stays(np.arange(NUM_PATIENTS), 7)


def _outcomes(stays, record, index):
    """Deterioration within the horizon, from the hours alone."""
    return (stays.ending != paths.DISCHARGE)[index.stay] & (
        np.diff(record.offsets)[index.stay] <= index.hour + HORIZON_HOURS
    )


@pytest.mark.parametrize("num_patients", [0, -3])
def test_no_patients_are_refused(num_patients, tmp_path):
    with pytest.raises(ValueError, match=f"num_patients={num_patients}"):
        simulate_stays.simulate_stays(num_patients)
    with pytest.raises(ValueError, match=f"num_patients={num_patients}"):
        simulate_stays.write(tmp_path / "out", num_patients=num_patients)
    assert list(tmp_path.iterdir()) == []


def test_no_notes_are_worded_as_none():
    nothing = np.zeros(0, int)
    assert notes.word_notes(np.zeros((0, 7), np.int8), nothing, nothing, Draws(0, nothing, nothing)) == []


def test_stays_shorter_than_the_first_index_time_give_no_row():
    index = index_rows(np.array([1, 12, 13, 18, 19, MAX_HOURS]))
    assert index.stay[:4].tolist() == [2, 3, 4, 4]
    assert index.hour[:4].tolist() == [12, 12, 12, 18]
    assert index.hour.max() + HORIZON_HOURS <= MAX_HOURS
    probabilities = oracle_probabilities(paths.draw_stays(np.arange(2), 0)[1], index_rows(np.array([3])))
    assert all(len(column) == 0 for column in probabilities.values())


def test_tables_are_distributions():
    for table in (
        chain.transitions().T,
        chain.entry_distribution()[:, None],
        *notes.statement_tables().reshape(-1, 4, 192),
    ):
        np.testing.assert_allclose(table.sum(0), 1)
        assert table.min() >= 0
    for vital, table in zip(chain.VITALS.values(), chain.vital_tables().values(), strict=True):
        np.testing.assert_allclose(table.probability.sum(0), 1)
        assert len(table.probability) == len(table.values) + 1
        np.testing.assert_allclose(table.values[[0, -1]], vital.limits, rtol=1e-6)
    worse, discharged = chain.hazards()
    assert (worse + discharged).max() < 1 and worse.max() <= chain.MAX_DETERIORATION
    constitution = chain.levels_of(np.arange(chain.NUM_STATES))["constitution"]
    assert chain.transitions()[constitution == 0][:, constitution == 1].max() == 0  # the oracle counts on it


def test_rows_are_drawn_as_their_table_says():
    probability = np.array([[0.5, 0.0, 1.0], [0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
    uniform = (np.arange(3000) % 1000 / 1000).astype(np.float32)
    rows = chain.draw_rows(probability, np.repeat(np.arange(3), 1000), uniform).reshape(3, 1000)
    assert np.bincount(rows[0], minlength=3).tolist() == [500, 0, 500]
    assert set(rows[1]) == {1} and set(rows[2]) == {0}


def test_patients_stay_the_same_when_more_are_added_in_other_blocks(monkeypatch):
    few = simulate_stays.simulate_stays(6, 9, first=3)
    monkeypatch.setattr(simulate_stays, "BLOCK_PATIENTS", 5)
    more = simulate_stays.simulate_stays(20, 9)
    kept = list(range(3, 9))
    for name in ("events", "notes", "stays", "oracle"):
        part = getattr(more, name).to_pandas()
        part = part[part["subject_id"].isin(kept)].reset_index(drop=True)
        here = getattr(few, name).to_pandas()
        assert set(here["subject_id"]) == set(kept) or name == "notes"
        pd.testing.assert_frame_equal(here, part, check_exact=name != "oracle", rtol=1e-4)  # sums in another order
    rows = np.isin(more.labels.subject_ids, kept)
    np.testing.assert_array_equal(few.labels.values, more.labels.values[rows])
    other = simulate_stays.simulate_stays(6, 10, first=3)
    assert not few.notes.equals(other.notes)


def test_one_subject_may_have_several_stays_apart_from_each_other_and_none_after_death(simulation):
    stays = simulation.stays.to_pandas()
    assert stays["visit_id"].is_unique and stays.groupby("subject_id").size().max() == 3
    for _, group in stays.groupby("subject_id"):
        assert (group["admission"].iloc[1:].to_numpy() > group["end"].iloc[:-1].to_numpy()).all()
        assert "death" not in group["ending"].iloc[:-1].tolist()
    assert set(stays["ending"]) == {"discharge", "death", "intensive_care", "vasopressor", "ventilation"}


def test_some_stays_have_no_vitals_and_some_no_notes(simulation):
    stays = simulation.stays.to_pandas().set_index("visit_id")
    events, noted = simulation.events.to_pandas(), simulation.notes.to_pandas()
    charted = set(events["visit_id"][events["code"].str.startswith("VITAL//")])
    assert 0 < (~stays["has_vitals"]).sum() < 30 and 0 < (~stays["has_notes"]).sum() < 60
    assert charted.isdisjoint(stays.index[~stays["has_vitals"]])
    assert set(noted["visit_id"]).isdisjoint(stays.index[~stays["has_notes"]])
    assert not set(simulation.oracle["visit_id"].to_pylist()) - set(stays.index)


def test_events_are_in_meds_order_and_within_their_stay(simulation):
    events = simulation.events.to_pandas()
    assert (np.diff(events["subject_id"]) >= 0).all()
    assert (events["time"].isna() == events["code"].str.startswith("GENDER//")).all()
    static_first = events["time"].fillna(pd.Timestamp("1800-01-01"))
    assert static_first.groupby(events["subject_id"]).is_monotonic_increasing.all()
    stays = simulation.stays.to_pandas().set_index("visit_id")[["admission", "end"]]
    vital = events[events["code"].str.startswith("VITAL//")].join(stays, on="visit_id")
    assert ((vital["time"] >= vital["admission"]) & (vital["time"] < vital["end"])).all()
    assert vital["numeric_value"].notna().all()
    noted = simulation.notes.to_pandas().join(stays, on="visit_id")
    assert ((noted["time"] >= noted["admission"]) & (noted["time"] < noted["end"])).all()


def test_labels_are_what_the_events_say(simulation):
    events = simulation.events.to_pandas()
    outcomes = events[events["code"].isin(DETERIORATION_CODES.values())]
    when = {}
    for visit, time in zip(outcomes["visit_id"], outcomes["time"], strict=True):
        when[int(visit)] = time.value // 1000
    labels, visits = simulation.labels, simulation.oracle["visit_id"].to_pylist()
    times = labels.times * 1_000_000
    np.testing.assert_array_equal(simulation.oracle["prediction_time"].cast("int64").to_numpy(), times)
    np.testing.assert_array_equal(simulation.oracle["subject_id"].to_numpy(), labels.subject_ids)
    for visit, time, value in zip(visits, times.tolist(), labels.values[:, 0].tolist(), strict=True):
        assert visit not in when or when[visit] > time  # who has deteriorated is not asked about
        assert value == (visit in when and when[visit] <= time + HORIZON_HOURS * HOUR)
    assert 0.04 < labels.values.mean() < 0.16


def test_sicker_patients_are_measured_more_often(drawn):
    stays, record = drawn
    stay, _ = paths.hours_of(record.offsets)
    level = chain.levels_of(record.state.astype(int))["circulatory"]
    taken = (record.vitals > 0).mean(1)
    assert (
        taken[(level == 3) & stays.has_vitals[stay]].mean() > 1.3 * taken[(level == 0) & stays.has_vitals[stay]].mean()
    )


# Notes


def test_notes_are_worded_in_many_ways_at_a_readable_length(simulation):
    texts = simulation.notes["text"].to_pylist()
    assert len(set(texts)) > 0.99 * len(texts)
    words = np.array([len(text.split()) for text in texts])
    assert 25 < np.median(words) < 120 and words.max() < 150
    assert not any("{" in text or "  " in text for text in texts)
    assert set(simulation.notes["kind"].to_pylist()) == set(notes.KINDS)


def test_a_note_words_each_statement_it_makes_and_no_other():
    statements = np.array(np.meshgrid([0, 1, 2, 3], [0, 3])).reshape(2, -1).T.astype(np.int8)
    statements = np.pad(statements, ((0, 0), (0, len(notes.TOPICS) - 2)))
    cells = np.arange(len(statements))
    texts = notes.word_notes(statements, cells % 2, cells % 3 == 0, Draws(3, cells, cells))
    for row, text in zip(statements, texts, strict=True):
        for finding, topic in zip(row, notes.TOPICS.values(), strict=True):
            for number, clauses in enumerate(topic.clauses, 1):
                assert any(clause.lower() in text.lower() for clause in clauses) == (number == finding)


# Oracle


@pytest.fixture(scope="module")
def oracle(drawn):
    index = index_rows(np.diff(drawn[1].offsets))
    return index, oracle_probabilities(drawn[1], index)


def test_filter_is_bayes_rule_over_all_paths():
    """Against a sum over every path of states, on a chain cut down to four of its states."""
    stays, record = paths.draw_stays(np.arange(40), 2)
    pick = np.flatnonzero((np.diff(record.offsets) > 3) & stays.has_vitals)[0]
    rows = record.offsets[pick] + np.arange(3)
    worse, discharged = chain.hazards()
    onward = (1 - worse - discharged)[:, None] * chain.transitions()
    belief = chain.entry_distribution().copy()
    for row in rows:
        for column, table in enumerate(chain.vital_tables().values()):
            belief = belief * table.probability[record.vitals[row, column]]
        for note in np.flatnonzero(record.note_row == row):
            for topic in range(len(notes.TOPICS)):
                belief = (
                    belief * notes.statement_tables()[record.note_kind[note], topic, record.statements[note, topic]]
                )
        belief = belief @ onward
    expected = belief @ chain.risk_ahead(HORIZON_HOURS) / belief.sum()
    found = oracle_probabilities(record, IndexRows(np.array([pick]), np.array([3])))["both"]
    np.testing.assert_allclose(found, [expected], rtol=1e-4)


def test_risk_ahead_is_the_share_of_simulated_stays():
    """From admission, before anything is recorded."""
    stays, record = paths.draw_stays(np.arange(3000), 5)
    early = (stays.ending != paths.DISCHARGE) & (np.diff(record.offsets) <= HORIZON_HOURS)
    expected = chain.entry_distribution() @ chain.risk_ahead(HORIZON_HOURS)
    first = stays.ordinal == 0
    assert abs(early[first].mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / first.sum())


def test_oracle_is_calibrated_and_two_records_tell_more_than_one():
    stays, record = paths.draw_stays(np.arange(2000), 0)
    index = index_rows(np.diff(record.offsets))
    first = np.flatnonzero(np.append(True, index.stay[1:] != index.stay[:-1]))
    outcome = _outcomes(stays, record, index)
    areas = {}
    for name, probability in oracle_probabilities(record, index).items():
        chosen, happened = probability[first].astype(float), outcome[first]  # one row a stay: independent
        for rows in np.array_split(np.argsort(chosen), 6):
            expected, spread = chosen[rows].sum(), np.sqrt((chosen[rows] * (1 - chosen[rows])).sum())
            # Four standard deviations and one case, since few cases are skewed.
            assert abs(happened[rows].sum() - expected) < 4 * spread + 1, (name, expected)
        areas[name] = roc_auc_score(outcome, probability)
    assert areas["both"] > max(areas["vitals"], areas["notes"]) + 0.03
    assert areas["latent"] > areas["both"] > 0.8
    assert min(areas["vitals"], areas["notes"]) > 0.7


@pytest.mark.parametrize("name", RECORDS)
def test_what_is_recorded_after_the_index_time_changes_nothing(drawn, oracle, name):
    _, record = drawn
    index, probabilities = oracle
    hours, cut = paths.hours_of(record.offsets)[1], 30
    rng = np.random.default_rng(0)
    vitals, statements = record.vitals.copy(), record.statements.copy()
    vitals[hours >= cut] = rng.integers(0, 40, vitals[hours >= cut].shape)
    late = hours[record.note_row] >= cut
    statements[late] = rng.integers(1, 4, statements[late].shape)
    changed = oracle_probabilities(record._replace(vitals=vitals, statements=statements), index)[name]
    before = index.hour <= cut
    assert before.any()
    np.testing.assert_array_equal(changed[before], probabilities[name][before])
    assert (changed[~before] != probabilities[name][~before]).mean() > 0.5


def test_without_a_record_the_oracle_of_it_knows_the_hour_only(drawn, oracle):
    stays, _ = drawn
    index, probabilities = oracle
    for name, has in (("vitals", stays.has_vitals), ("notes", stays.has_notes)):
        rows = np.flatnonzero(~has[index.stay] & (index.hour == 12))
        assert len(rows) > 1
        np.testing.assert_allclose(probabilities[name][rows], probabilities[name][rows[0]], rtol=1e-4)
        other = {"vitals": "notes", "notes": "vitals"}[name]
        np.testing.assert_allclose(probabilities["both"][rows], probabilities[other][rows], rtol=1e-4)


# Files


def test_files_are_read_back_by_the_readers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulate_stays, "BLOCK_PATIENTS", 7)
    out = tmp_path / "new" / "stays"
    simulate.main([f"--out={out}", "--num-patients=20", "--seed=4", "--stays"])
    assert "stays" in capsys.readouterr().out
    held = simulate_stays.simulate_stays(20, 4)
    assert pq.read_table(out / "data" / "0.parquet").equals(held.events)
    assert pq.read_table(out / "oracle.parquet").equals(held.oracle)
    table = pa_csv.read_csv(out / "notes.csv")
    assert table["text"].to_pylist() == held.notes["text"].to_pylist()
    labels = read_meds_labels(out / "labels" / simulate_stays.TASK)
    np.testing.assert_array_equal(labels.times, held.labels.times)
    np.testing.assert_array_equal(labels.values, held.labels.values)
    store = build_store("meds", out, tmp_path / "store")
    assert store.manifest["num_visits"] >= held.stays.num_rows
    assert json.loads((out / "simulation.json").read_text())["num_rows"]["events"] == held.events.num_rows


def test_finished_folder_is_kept_and_another_simulation_refused(tmp_path):
    out = simulate_stays.write(tmp_path / "out", num_patients=2)
    stamp = (out / "notes.csv").stat().st_mtime_ns
    assert simulate_stays.write(out, num_patients=2) == out
    assert (out / "notes.csv").stat().st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="'num_patients': 3"):
        simulate_stays.write(out, num_patients=3)
    with pytest.raises(FileExistsError, match="stays-1"):
        simulate.write(out, num_patients=2)
