"""The audit's checks on small stores: each must fail where something leaks, and say null where nothing can be told."""

import numpy as np
import pytest

from ehrjax.data.perturb import change_after, count_later_events
from ehrjax.data.sequences import build_visit_level_sequences, build_visit_sequences
from ehrjax.data.tasks import Task
from ehrjax.data.timeline import DAY
from ehrjax.data.vocab import fit_vocabulary
from ehrjax.evaluate.audit import index_time
from ehrjax.evaluate.audit.chance import check_shuffled, check_visit_count
from ehrjax.evaluate.audit.index_time import TaskModel, check_inputs, check_visit_inputs, check_visit_outputs
from ehrjax.evaluate.audit.outcomes import check_labels
from ehrjax.evaluate.audit.patients import check_equal_records, check_split_overlap
from ehrjax.evaluate.audit.predictions import check_predictions
from ehrjax.evaluate.audit.recording import check_recording_times
from ehrjax.evaluate.audit.vocabulary import check_vocabulary
from ehrjax.evaluate.audit.workdir import Rows, Run, TaskRecord
from tests.data.helpers import make_store, seconds

CONFIG = {"data.min_count": 1, "data.max_vocab": None, "data.value_bins": 0}
TASK = Task("flu", codes=("DIAGNOSIS//FLU",), horizon_days=30, index="every_visit")
YEARLY = [f"20{year:02d}-03-01T08:00:00" for year in range(1, 13)]


def _records(subjects, num_visits=12):
    """Visits a year apart; a cough each time, one code that only this patient has, and a weight."""
    events = []
    for subject in subjects:
        events.append((subject, None, "GENDER//F", None, None))
        for time in YEARLY[:num_visits]:
            events.append((subject, time, "DIAGNOSIS//COUGH", None, None))
            events.append((subject, time.replace("T08", "T09"), f"DIAGNOSIS//OWN//{subject}", None, None))
            events.append((subject, time.replace("T08", "T10"), "VITAL//WEIGHT", 60.0 + subject, None))
    return events


@pytest.fixture
def run(tmp_path):
    """Eight patients, six of them train; the vocabulary fitted on these."""
    store = make_store(tmp_path, _records(range(8)))
    splits = {"train": np.arange(6), "val": np.array([6]), "test": np.array([7])}
    vocab = fit_vocabulary(store, splits["train"], min_count=1, max_size=None)
    return Run(tmp_path, CONFIG, (store,), splits, vocab, {})


def _model(run, *, shift_days=0.0, **others):
    """The run's inputs; with a shift they are those of so many days later."""

    def later(labels):
        return labels._replace(times=labels.times + round(shift_days * DAY))

    def rows(store, labels):
        return build_visit_sequences(store, run.vocab, later(labels))

    def visits(store, labels):
        return build_visit_level_sequences(store, run.vocab, later(labels))

    return TaskModel(rows, make_visit_sequences=visits, **others)


def _rows(subjects, time="2005-03-01T12:00:00", value=0.0):
    subjects = np.asarray(subjects)
    return Rows(subjects, np.full(len(subjects), seconds(time)), np.full((len(subjects), 1), value))


def _at_visits(subjects):
    return Rows(
        np.repeat(subjects, len(YEARLY)),
        np.tile([seconds(time) + 2 * 3600 for time in YEARLY], len(subjects)),
        np.zeros((len(subjects) * len(YEARLY), 1)),
    )


# The future, removed and replaced


def test_removed_leaves_what_was_recorded_by_the_time_and_nothing_else(tmp_path):
    events = [
        (1, "2020-01-01T00:00:00", "MEDS_BIRTH", None, None),
        (1, "2021-01-01T00:00:00", "LAB//A", 1.0, None),
        (1, "2021-01-01T09:00:00", "LAB//B", 2.0, None),
        (1, "2021-06-01T00:00:00", "LAB//C", 3.0, None),
        (1, "2022-01-01T00:00:00", "MEDS_DEATH", None, None),
        (2, "2021-01-01T00:00:00", "LAB//A", 1.0, None),
    ]
    store = make_store(tmp_path, events)
    time = seconds("2021-01-01T08:00:00")
    changed = change_after(store, np.array([1]), np.array([time]), change="removed")
    (shard,) = changed.shards
    assert changed.subject_ids.tolist() == [1]
    assert [str(store.codes[code]) for code in shard.event_codes] == ["LAB//A"]
    assert shard.visit_end.tolist() == [time]
    assert shard.death[0] < 0, "the death is later"
    assert count_later_events(changed, np.array([1]), np.array([time])) == 0
    assert count_later_events(store, np.array([1]), np.array([time])) == 2
    assert store.subject_ids.tolist() == [1, 2], "the store itself stays as it was"


def test_replaced_changes_all_that_is_later_and_adds_to_it(run):
    (store,), time = run.stores, seconds(YEARLY[4]) + 3600
    changed = change_after(store, np.arange(8), np.full(8, time), change="replaced")
    for shard in changed.shards:
        assert (shard.death > time).all()
        assert (np.diff(shard.visit_offsets) == 13).all(), "one visit more each"
        starts = np.split(shard.visit_start, shard.visit_offsets[1:-1])
        assert all((np.diff(start) >= 0).all() for start in starts)
    before, after = (count_later_events(s, np.arange(8), np.full(8, time)) for s in (store, changed))
    assert before == 8 * (1 + 7 * 3)
    assert after > before


def test_late_results_do_not_wrap_around_in_a_long_life(tmp_path):
    """A store counts an event's seconds from its visit's start in 32 bits, which is 68 years."""
    events = [
        (1, "1930-01-01", "LAB//A", None, 1),
        (1, "2000-01-01", "LAB//B", None, 2),
        (1, "2001-01-01", "C", None, 3),
    ]
    store = make_store(tmp_path, events)
    for seed in range(5):
        time = seconds("2000-01-02")
        changed = change_after(store, np.array([1]), np.array([time]), change="replaced", seed=seed)
        (shard,) = changed.shards
        times = np.repeat(shard.visit_start, np.diff(shard.event_offsets)) + shard.event_times
        assert (times <= time).sum() == 2 and (times >= seconds("1930-01-01")).all()


def test_a_patient_twice_or_elsewhere_is_refused(run):
    with pytest.raises(ValueError, match="given twice"):
        change_after(run.stores[0], np.array([1, 1]), np.zeros(2, int), change="removed")
    with pytest.raises(ValueError, match="not in the store"):
        change_after(run.stores[0], np.array([99]), np.zeros(1, int), change="removed")
    with pytest.raises(ValueError, match="'reversed' is not known"):
        change_after(run.stores[0], np.array([1]), np.zeros(1, int), change="reversed")


# The index time


def _sums(sequences):
    """Scores that read every code of an example."""
    starts = sequences.visit_offsets[sequences.example_offsets[:-1]]
    return np.add.reduceat(sequences.codes, starts)[:, None].astype(float)


def test_inputs_and_outputs_that_keep_to_the_index_time_pass(run):
    inputs, outputs = check_inputs(_rows(range(8)), run.stores[0], _model(run, predict=_sums))
    assert (inputs.passed, outputs.passed) == (True, True), (inputs, outputs)
    assert "8 rows, 168 later events" in inputs.detail


@pytest.mark.parametrize("shift_days", [0.1, 400.0])
def test_a_window_past_the_index_fails(run, shift_days):
    rows = _rows(range(8), "2005-03-01T09:00:00")  # the weight comes an hour later
    inputs, outputs = check_inputs(rows, run.stores[0], _model(run, shift_days=shift_days, predict=_sums))
    assert (inputs.passed, outputs.passed) == (False, False)
    assert "8 of 8 rows differ, e.g. patient 0 at 2005-03-01T09:00:00" in inputs.detail


def test_an_output_that_looks_elsewhere_fails(run):
    calls = iter(range(9))
    inputs, outputs = check_inputs(
        _rows([1, 2]), run.stores[0], _model(run, predict=lambda sequences: np.full((2, 1), float(next(calls))))
    )
    assert (inputs.passed, outputs.passed) == (True, False)


def test_without_a_future_or_a_model_nothing_can_be_told(run):
    inputs, outputs = check_inputs(_rows([3], "2030-01-01T00:00:00"), run.stores[0], _model(run, reason="adapters"))
    assert (inputs.passed, outputs.passed) == (None, None)
    assert "adapters" in outputs.detail


def test_labels_at_visits_have_read_nothing_later(run):
    finding = check_visit_inputs(_at_visits(np.arange(6)), run.stores[0], _model(run))
    assert finding.passed, finding
    assert finding.detail.startswith("6 labelled visits")


def test_labels_at_later_visits_than_their_own_fail(run):
    def one_visit_late(store, labels):
        return build_visit_level_sequences(store, run.vocab, labels._replace(times=labels.times + 366 * DAY))

    model = _model(run)._replace(make_visit_sequences=one_visit_late)
    assert check_visit_inputs(_at_visits(np.arange(6)), run.stores[0], model).passed is False


def test_outputs_at_visits_must_be_causal(run):
    def causal(sequences):
        return np.cumsum(sequences.ages + sequences.gap_days).astype(float)[:, None]

    def looks_ahead(sequences):
        return np.roll(causal(sequences), -1, axis=0)

    rows = _at_visits(np.array([2]))  # a sum over one example only
    assert check_visit_outputs(rows, run.stores[0], _model(run, predict_visits=causal)).passed
    assert check_visit_outputs(rows, run.stores[0], _model(run, predict_visits=looks_ahead)).passed is False
    once = rows.take(slice(0, 1))
    assert check_visit_outputs(once, run.stores[0], _model(run, predict_visits=causal)).passed is None
    assert check_visit_outputs(rows, run.stores[0], _model(run)).passed is None


def test_one_row_a_patient_is_drawn(monkeypatch):
    monkeypatch.setattr(index_time, "NUM_PATIENTS", 3)
    sample = index_time.one_a_patient(_at_visits(np.arange(5)), seed=0)
    assert len(np.unique(sample.subject_ids)) == len(sample.times) == 3


# Splits


def test_a_shared_patient_fails(run):
    assert check_split_overlap(run).passed
    shared = Run(**(vars(run) | {"splits": run.splits | {"test": np.array([7, 2])}}))
    finding = check_split_overlap(shared)
    assert finding.passed is False
    assert "1 patient is in both test and train, e.g. 2" in finding.detail
    assert check_split_overlap(Run(**(vars(run) | {"splits": run.splits | {"val": np.zeros(0, int)}}))).passed is False


def test_a_twin_under_another_id_fails(tmp_path, run):
    assert check_equal_records(run).passed
    twins = [(7 if subject == 0 else subject, *rest) for subject, *rest in _records([0]) + _records([1])]
    twins += _records([0])
    store = make_store(tmp_path / "twins", twins)
    splits = {"train": np.array([0]), "val": np.array([1]), "test": np.array([7])}
    finding = check_equal_records(Run(**(vars(run) | {"stores": (store,), "splits": splits})))
    assert finding.passed is False
    assert "those of 0 (train) and 7 (test)" in finding.detail


def test_short_records_cannot_be_told_apart(tmp_path, run):
    store = make_store(tmp_path / "short", _records(range(8), num_visits=1))
    assert check_equal_records(Run(**(vars(run) | {"stores": (store,)}))).passed is None


# Vocabulary


def test_a_vocabulary_of_all_patients_fails_and_its_foreign_tokens_are_named(run):
    assert check_vocabulary(run).passed
    everyone = fit_vocabulary(run.stores[0], np.arange(8), min_count=1, max_size=None)
    finding = check_vocabulary(Run(**(vars(run) | {"vocab": everyone})))
    assert finding.passed is False
    assert "2 tokens are not what train gives (DIAGNOSIS//OWN//6, DIAGNOSIS//OWN//7)" in finding.detail
    assert "the vocabulary of all patients" in finding.detail


def test_value_bins_of_all_patients_fail(run):
    settings = {"min_count": 1, "max_size": None, "value_bins": 2}
    everyone = fit_vocabulary(run.stores[0], np.arange(8), **settings)
    config = CONFIG | {"data.value_bins": 2}
    finding = check_vocabulary(Run(**(vars(run) | {"vocab": everyone, "config": config})))
    assert "1 code has other value bins than train gives (VITAL//WEIGHT)" in finding.detail


# Labels and predictions


def _with_flu(tmp_path, run, time):
    store = make_store(tmp_path / "flu", [*_records(range(8)), (7, time, "DIAGNOSIS//FLU", None, None)])
    return Run(**(vars(run) | {"stores": (store,)}))


def _record(rows, *, task=TASK, kind="binary", tested=None):
    return TaskRecord("flu", kind, task, {"flu": rows}, rows if tested is None else tested, ("flu",))


@pytest.mark.parametrize(
    ("time", "value", "fault"),
    [
        ("2005-03-11T00:00:00", 1.0, ""),
        ("2005-03-11T00:00:00", 0.0, "negative with an outcome in the window"),
        ("2005-05-11T00:00:00", 0.0, ""),
        ("2005-05-11T00:00:00", 1.0, "positive without an outcome in the window"),
        ("2005-03-01T12:00:00", 0.0, "the outcome is there already at the index time"),
        ("2005-03-01T12:00:01", 1.0, ""),
    ],
)
def test_labels_are_worked_out_again(tmp_path, run, time, value, fault):
    finding = check_labels(_with_flu(tmp_path, run, time), _record(_rows([7], value=value)))
    assert finding.passed is not bool(fault)
    assert fault in finding.detail


@pytest.mark.parametrize(
    ("days", "event", "fault"),
    [(10.0, 1, ""), (9.0, 1, "not the first outcome"), (15.0, 2, "comes before"), (5.0, 0, ""), (40.0, 0, "horizon")],
)
def test_days_and_events_are_worked_out_again(tmp_path, run, days, event, fault):
    task = Task("flu", outcome="time_to_codes", codes=TASK.codes, horizon_days=30, index="every_visit")
    rows = _rows([7])
    record = TaskRecord(
        "flu",
        "survival",
        task,
        {"days": rows._replace(values=np.array([[days]])), "event": rows._replace(values=np.array([[float(event)]]))},
        rows,
        ("flu",),
    )
    finding = check_labels(_with_flu(tmp_path, run, "2005-03-11T12:00:00"), record)
    assert finding.passed is not bool(fault)
    assert fault in finding.detail


def test_labels_made_elsewhere_cannot_be_worked_out(run):
    assert check_labels(run, _record(_rows([7]), task=None)).passed is None


@pytest.mark.parametrize(
    ("tested", "fault"),
    [
        (_rows([7]), ""),
        (_rows([2]), "1 patient is not of test, e.g. 2 (of train)"),
        (_rows([7, 7]), "1 row comes twice"),
        (_rows([7], "2005-03-02T12:00:00"), "1 prediction without a label"),
        (_rows([7], value=1.0), "another value of flu"),
        (_rows([]), "there are no predictions"),
    ],
)
def test_predictions_are_of_test_rows_only(run, tested, fault):
    finding = check_predictions(run, _record(_rows([2, 7]), tested=tested))
    assert finding.passed is not bool(fault)
    assert fault in finding.detail


# Chance, counting and recording


def test_shuffled_labels_give_chance_or_are_too_few(run):
    finding = check_shuffled(run, _record(_rows(range(8))), _model(run))
    assert finding.passed is None
    assert "too small to tell" in finding.detail
    assert check_shuffled(run, _record(_rows(range(8)), kind="regression"), _model(run)).passed is None


def test_shuffled_labels_that_still_rank_fail(tmp_path, run, monkeypatch):
    store = make_store(tmp_path / "many", _records(range(80), num_visits=2))
    values = (np.arange(80) % 2)[:, None].astype(float)
    rows = _rows(range(80), "2002-06-01T00:00:00")._replace(values=values)
    splits = {"train": np.arange(40), "val": np.zeros(0, int), "test": np.arange(40, 80)}
    vocab = fit_vocabulary(store, np.arange(40), min_count=1, max_size=None)
    many = Run(**(vars(run) | {"stores": (store,), "splits": splits, "vocab": vocab}))
    record = _record(rows, tested=rows.take(slice(40, 80)))
    assert check_shuffled(many, record, _model(many)).passed
    monkeypatch.setattr(np.random, "default_rng", lambda seed: _Unshuffled())
    leaky = build_visit_sequences  # a code that tells the label, in inputs of train and test alike

    def telling(store, labels):
        sequences = leaky(store, vocab, labels)
        first = sequences.visit_offsets[sequences.example_offsets[:-1]]
        codes = sequences.codes.copy()
        codes[first] = 5 + labels.subject_ids % 2
        return sequences._replace(codes=codes)

    assert check_shuffled(many, record, TaskModel(telling)).passed is False


class _Unshuffled:
    """A generator that leaves everything where it is."""

    def permutation(self, values):
        return np.arange(values) if np.ndim(values) == 0 else values


@pytest.mark.parametrize(("visits", "passed"), [(0.60, True), (0.79, None), (0.81, None)])
def test_a_visit_count_that_comes_close_is_a_warning(visits, passed):
    result = {"test": {"auroc": {"value": 0.8}}, "baselines": {"visit_count": {"auroc": {"value": visits}}}}
    finding = check_visit_count("flu", result)
    assert finding.passed is passed
    assert ("warning" in finding.detail) == (passed is None)


@pytest.mark.parametrize("result", [None, {}, {"test": {"auroc": {"value": 0.8}}, "baselines": {}}])
def test_without_a_visit_count_nothing_is_said(result):
    assert check_visit_count("flu", result).passed is None


def test_codes_stamped_with_the_admission_are_named(tmp_path, run):
    events = []
    for subject in range(25):
        events.append((subject, "2020-01-01T00:00:00", "ENCOUNTER//inpatient", None, subject))
        events.append((subject, "2020-01-04T00:00:00", "ENCOUNTER_END//inpatient", None, subject))
        events.append((subject, "2020-01-01T00:00:00", "DIAGNOSIS//ICD10//A1", None, subject))
        events.append((subject, f"2020-01-02T{subject % 24:02d}:00:00", "LAB//LOINC//1", 1.0, subject))
    store = make_store(tmp_path / "stays", events)
    finding = check_recording_times(Run(**(vars(run) | {"stores": (store,)})))
    assert finding.passed is None
    assert "warning: in 25 stays" in finding.detail
    assert "DIAGNOSIS//ICD10 (25 of 25)" in finding.detail
    assert "LAB" not in finding.detail
    assert "ENCOUNTER" not in finding.detail
    assert check_recording_times(run).passed is None, "no visit lasts a day"
