"""A store as it stood at a cut-off: nothing that came later is there, whatever it was."""

import numpy as np
import pytest

from ehrjax.data.cohorts import make_labels
from ehrjax.data.cutoff import StoreUntil, begun_after, cut_shard, cutoff_day, find_cutoff, parse_cutoff, whole_of
from ehrjax.data.perturb import change_after
from ehrjax.data.sequences import build_patient_sequences
from ehrjax.data.shards import NO_CLASS, NULL_TIME
from ehrjax.data.tasks import Task
from ehrjax.data.timeline import DAY
from ehrjax.data.vocab import fit_vocabulary
from tests.data.helpers import make_store, seconds

CUTOFF = seconds("2010-01-01") - 1
TASK = Task("flu", codes=("DIAGNOSIS//FLU",), horizon_days=30, washout_days=0, index="every_visit")


def _random_events(num_patients=30, seed=0):
    """Visits on some days of 2008 to 2011, the later ones with codes of their own and larger values."""
    rng, events = np.random.default_rng(seed), []
    for subject in range(num_patients):
        events.append((subject, None, f"GENDER//{'FM'[subject % 2]}", None, None))
        events.append((subject, "1970-05-05", "MEDS_BIRTH", None, None))
        for day in sorted(rng.integers(0, 4 * 365, rng.integers(1, 8))):
            time = np.datetime64("2008-01-01") + int(day)
            is_late = time >= np.datetime64("2010-01-01")
            for hour in rng.choice(np.arange(8, 18), 3, replace=False):
                code = rng.choice(["DIAGNOSIS//FLU", "DIAGNOSIS//COUGH", "DIAGNOSIS//NEW" if is_late else "LAB//OLD"])
                events.append((subject, f"{time}T{hour:02d}:00:00", str(code), None, None))
            events.append((subject, f"{time}T18:00:00", "LAB//X", float(rng.normal(9 if is_late else 0)), None))
    return events


def _rows(store):
    """Patients with their visits and events, codes by name, whatever the layout."""
    found = {}
    for shard in store.shards:
        for row, subject in enumerate(shard.subject_ids.tolist()):
            visits = range(shard.visit_offsets[row], shard.visit_offsets[row + 1])
            found[subject] = [
                (
                    int(shard.visit_start[v]),
                    int(shard.visit_end[v]),
                    [
                        (str(store.codes[shard.event_codes[e]]), int(shard.event_times[e]), str(shard.event_values[e]))
                        for e in range(shard.event_offsets[v], shard.event_offsets[v + 1])
                    ],
                )
                for v in visits
            ]
    return found


@pytest.mark.parametrize("text", ["", "2010-13-01", "0", "1.0", "-0.2", "nan", "yesterday"])
def test_what_is_no_cutoff_is_refused(text):
    with pytest.raises(ValueError, match=r"must be a date such as 2015-01-31, or the share"):
        parse_cutoff(text)


def test_a_cutoff_outside_the_data_is_refused_with_their_span(tmp_path):
    store = make_store(tmp_path, [(1, "2010-01-01", "A", None, None), (1, "2011-06-01", "A", None, None)])
    for text in ("2010-01-01", "2011-06-02", "1999-01-01"):
        with pytest.raises(ValueError, match=f"cut-off {text} must lie within the data, .* 2010-01-01 to 2011-06-01"):
            find_cutoff(store, text)
    cutoff = find_cutoff(store, "2010-01-02")
    assert cutoff == seconds("2010-01-01T23:59:59") and cutoff_day(cutoff) == "2010-01-02"


def test_a_share_is_of_the_visits_ends(tmp_path):
    days = [f"2010-01-{day:02d}T12:00:00" for day in range(1, 12)]
    store = make_store(tmp_path, [(1, day, "A", None, None) for day in days])
    assert cutoff_day(find_cutoff(store, "0.5")) == "2010-01-06"


def test_nothing_before_the_cutoff_is_refused(tmp_path):
    store = make_store(tmp_path, [(1, "2010-01-01", "A", None, None), (1, None, "GENDER//F", None, None)])
    with pytest.raises(ValueError, match="no patient has a visit before the cut-off 2009-12-31"):
        StoreUntil(store, seconds("2009-12-31") - 1)


@pytest.mark.parametrize("num_shards", [1, 7])
def test_it_is_the_store_that_would_have_been_built_then(tmp_path, num_shards):
    events = _random_events()
    cut = StoreUntil(make_store(tmp_path / "all", events, num_shards=num_shards), CUTOFF)
    first = {subject for subject, time, *_ in events if time and "1970" not in time and time < "2010-01-01"}
    earlier = [e for e in events if e[0] in first and (e[1] is None or e[1] < "2010-01-01")]
    then = make_store(tmp_path / "then", earlier)
    assert _rows(cut) == _rows(then)
    assert len(first) < 30, "some patients come later"
    statics = sum(len(shard.static_codes) for shard in cut.shards)
    assert statics == len(first)


def test_an_open_visit_shows_neither_its_end_nor_what_follows(tmp_path):
    events = [
        (1, "2009-12-31T08:00:00", "DIAGNOSIS//COUGH", None, 5),
        (1, "2010-01-03T08:00:00", "DIAGNOSIS//FLU", None, 5),
        (1, "2010-05-01T08:00:00", "DIAGNOSIS//FLU", None, 6),
        (1, "2010-06-01T00:00:00", "MEDS_DEATH", None, None),
    ]
    whole = make_store(tmp_path, events)
    store = StoreUntil(whole, CUTOFF)
    (shard,) = store.shards
    assert [str(store.codes[code]) for code in shard.event_codes] == ["DIAGNOSIS//COUGH"]
    assert shard.visit_end.tolist() == [CUTOFF + 1]
    assert shard.death.tolist() == [NULL_TIME]
    assert store.manifest["last_time"] == CUTOFF
    assert whole_of(store) is whole and whole_of(whole) is whole
    with pytest.raises(IndexError, match="shard 1 of 1"):
        store.shards[1]


def test_a_class_that_is_recorded_later_was_not_known(tmp_path):
    events = [(1, "2009-12-31T08:00:00", "A", None, 5), (1, "2010-01-03T08:00:00", "B", None, 5)]
    store = make_store(tmp_path, events)
    for name, expected in (("A", list(store.codes).index("A")), ("B", NO_CLASS)):
        shard = store.shards[0]._replace(visit_class=np.array([list(store.codes).index(name)], np.int32))
        assert cut_shard(shard, CUTOFF).visit_class.tolist() == [expected]


def test_training_is_the_same_whatever_comes_after(tmp_path):
    """Vocabulary, value bins, pre-training sequences and labels, bit for bit."""
    store = make_store(tmp_path, _random_events(), num_shards=2)
    everyone = np.sort(store.subject_ids)
    made = []
    for whole in (
        store,
        *(
            change_after(store, everyone, np.full(len(everyone), CUTOFF), change=change)
            for change in ("removed", "replaced")
        ),
    ):
        then = StoreUntil(whole, CUTOFF)
        ids = np.sort(then.subject_ids)
        vocab = fit_vocabulary(then, ids, min_count=1, value_bins=3)
        labels = make_labels(then, TASK, until=CUTOFF)
        made.append((vocab, build_patient_sequences(then, vocab, ids), labels))
    for vocab, sequences, labels in made[1:]:
        assert vocab.content_hash == made[0][0].content_hash
        for name, column in sequences._asdict().items():
            np.testing.assert_array_equal(column, getattr(made[0][1], name), err_msg=name)
        np.testing.assert_array_equal(labels.times, made[0][2].times)
        np.testing.assert_array_equal(labels.values, made[0][2].values)
    leaky = fit_vocabulary(store, everyone, min_count=1, value_bins=3)
    assert "DIAGNOSIS//NEW" in leaky.tokens and "DIAGNOSIS//NEW" not in made[0][0].tokens
    assert leaky.edges != made[0][0].edges


def test_windows_end_by_the_cutoff_before_and_begin_after_it_behind(tmp_path):
    soon = [(999, "2009-12-05", "DIAGNOSIS//COUGH", None, None), (999, "2009-12-20", "DIAGNOSIS//FLU", None, None)]
    store = make_store(tmp_path, _random_events(200) + soon)
    then = StoreUntil(store, CUTOFF)
    train = make_labels(then, TASK, until=CUTOFF)
    assert (train.times + 30 * DAY <= CUTOFF).all()
    assert train.flow["settled_after_cutoff"] > 0 and train.flow["kept"] == len(train.times)
    assert make_labels(then, TASK).times.max() + 30 * DAY > CUTOFF, "an early case would be taken, its controls not"
    test = make_labels(store, TASK, after=CUTOFF)
    assert (test.times > CUTOFF).all()
    everything = make_labels(store, TASK)
    late = everything.times > CUTOFF
    np.testing.assert_array_equal(test.times, everything.times[late])
    np.testing.assert_array_equal(test.values, everything.values[late])


def test_random_dates_lie_on_their_side_of_the_cutoff(tmp_path):
    store = make_store(tmp_path, _random_events(200))
    task = Task("flu", codes=("DIAGNOSIS//FLU",), horizon_days=30, washout_days=0, index="random_date")
    before, after = make_labels(StoreUntil(store, CUTOFF), task, until=CUTOFF), make_labels(store, task, after=CUTOFF)
    assert before.times.max() + 30 * DAY <= CUTOFF < after.times.min()
    long = Task("flu", codes=("DIAGNOSIS//FLU",), horizon_days=2000, index="random_date")
    with pytest.raises(ValueError, match=r"spans \d+ days, too few for a random date"):
        make_labels(store, long, after=CUTOFF)


def test_visits_after_the_cutoff_are_told_in_the_order_of_sequences(tmp_path):
    store = make_store(tmp_path, _random_events(), num_shards=3)
    ids = np.sort(store.subject_ids)[::2]
    vocab = fit_vocabulary(store, ids, min_count=1)
    sequences = build_patient_sequences(store, vocab, ids)
    later = begun_after(store, ids, CUTOFF)
    has_new = np.isin(sequences.codes, vocab.index["DIAGNOSIS//NEW"])
    visit = np.repeat(np.arange(len(later)), np.diff(sequences.visit_offsets))
    assert later[visit[has_new]].all() and not later[visit[np.isin(sequences.codes, vocab.index["LAB//OLD"])]].any()
    np.testing.assert_array_equal(later[sequences.example_offsets[1:] - 1], sequences.times > CUTOFF)
