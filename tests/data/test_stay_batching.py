"""Batches of stays: nothing lost, nothing twice, a pure function of the step, one shape, faulty rows named."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from ehrjax.data.stay_batching import CHECKED_ROWS, StayBatches
from ehrjax.types import StayBatch
from tests.stays import NUM_TIMES, make_stays

LENGTHS = np.random.default_rng(1).integers(0, NUM_TIMES + 1, 23)
SHARED = set(StayBatch._fields) - {"example_mask", "example_ids"}


def assert_rows(batch, stays):
    """The batch's real rows hold what the stays of their ids hold."""
    ids = batch.example_ids[batch.example_mask]
    for name in SHARED:
        np.testing.assert_array_equal(getattr(batch, name)[batch.example_mask], getattr(stays, name)[ids])


def test_no_stays_are_refused():
    with pytest.raises(ValueError, match="no stays to batch: the cohort is empty"):
        StayBatches(make_stays([]), batch_size=2)


def test_no_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        StayBatches(make_stays([1]), batch_size=0)


@pytest.mark.parametrize("name", ["values", "hours_since", "statics", "summaries", "notes"])
def test_a_value_that_is_not_finite_is_refused_by_row(name):
    stays = make_stays(np.full(CHECKED_ROWS + 3, 2))
    getattr(stays, name)[CHECKED_ROWS + 1, -1] = np.nan
    with pytest.raises(ValueError, match=rf"{name}\[{CHECKED_ROWS + 1}, .*\(subject {CHECKED_ROWS + 101}\) is nan"):
        StayBatches(stays, batch_size=2)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("values", (3, 5)),
        ("observed", (3, 5, 2)),
        ("time_mask", (3, 4)),
        ("statics", (3,)),
        ("summaries", (2, 4)),
        ("notes", (2, 8)),
        ("has_notes", (3, 1)),
        ("labels", (3,)),
        ("label_mask", (3, 2)),
        ("times", (4,)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(name, shape):
    stays = replace(make_stays([1, 2, 3]), **{name: np.zeros(shape)})
    with pytest.raises(ValueError, match=rf"{name} has shape \({', '.join(map(str, shape))}"):
        StayBatches(stays, batch_size=2)


def test_labels_may_be_unknown_where_masked():
    stays = make_stays([1, 2])
    stays.labels[0], stays.label_mask[0] = np.nan, False
    batch = next(StayBatches(stays, batch_size=2).eval_batches())
    assert np.isnan(batch.labels[0, 0]) and batch.label_mask[:, 0].tolist() == [False, True]


def test_stays_without_any_grid_or_notes():
    stays = make_stays([0, 0, 0])
    grid = {name: getattr(stays, name)[:, :0] for name in ("values", "observed", "hours_since", "time_mask")}
    batches = StayBatches(replace(stays, notes=stays.notes[:, :0], **grid), batch_size=2)
    batch = batches.batch_at(0)
    assert batch.values.shape == (2, 0, 3) and batch.notes.shape == (2, 0) and batches.padding_fraction == 0.0


def test_every_stay_once_an_epoch_with_its_own_values():
    stays = make_stays(LENGTHS, num_labels=2)
    batches = StayBatches(stays, batch_size=4, seed=3)
    for epoch in (0, 5):
        steps = range(epoch * batches.num_batches_per_epoch, (epoch + 1) * batches.num_batches_per_epoch)
        found = [batches.batch_at(step) for step in steps]
        ids = np.concatenate([batch.example_ids[batch.example_mask] for batch in found])
        np.testing.assert_array_equal(np.sort(ids), np.arange(len(LENGTHS)))
        for batch in found:
            assert_rows(batch, stays)


def test_batch_is_a_pure_function_of_seed_and_step():
    stays = make_stays(LENGTHS)
    one, other = (StayBatches(stays, batch_size=4, seed=3) for _ in range(2))
    steps = [30, 2, 9, 2, 16]
    forward = {step: one.batch_at(step) for step in sorted(steps)}
    for step in steps:  # another order, with epochs visited back and forth
        jax.tree.map(np.testing.assert_array_equal, other.batch_at(step), forward[step])
    assert other.batch_at(2).example_ids.tolist() != other.batch_at(8).example_ids.tolist()
    different = StayBatches(stays, batch_size=4, seed=4)
    assert any(different.batch_at(s).example_ids.tolist() != one.batch_at(s).example_ids.tolist() for s in range(6))


def test_eval_batches_are_in_order_with_empty_rows_behind():
    stays = make_stays(LENGTHS)
    batches = list(StayBatches(stays, batch_size=4).eval_batches())
    ids = np.concatenate([batch.example_ids for batch in batches])
    np.testing.assert_array_equal(ids, [*range(len(LENGTHS)), -1])
    for batch in batches:
        assert_rows(batch, stays)
    padding = batches[-1].example_ids < 0
    for name in SHARED | {"example_mask"}:
        assert not getattr(batches[-1], name)[padding].any()


def test_one_shape_and_one_dtype_whatever_comes_in():
    stays = make_stays(LENGTHS)
    stays = replace(stays, values=stays.values.astype(np.float64), observed=stays.observed.astype(np.int64))
    batches = StayBatches(stays, batch_size=4)
    found = [*map(batches.batch_at, range(12)), *batches.eval_batches()]
    assert len({tuple((leaf.shape, leaf.dtype) for leaf in batch) for batch in found}) == 1
    assert found[0].values.dtype == np.float32 and found[0].observed.dtype == bool


def test_padding_is_counted_with_that_of_padding_rows():
    stays = make_stays([NUM_TIMES, NUM_TIMES, 0])
    assert StayBatches(stays, batch_size=2).padding_fraction == pytest.approx(0.5)
    assert StayBatches(stays, batch_size=8).batch_size == 3


def test_memory_mapped_stays_give_the_same_batches(tmp_path):
    stays = make_stays(LENGTHS)
    np.save(tmp_path / "values.npy", stays.values)
    mapped = replace(stays, values=np.load(tmp_path / "values.npy", mmap_mode="r"))
    ours, theirs = (StayBatches(each, batch_size=4) for each in (mapped, stays))
    for step in range(ours.num_batches_per_epoch):
        jax.tree.map(np.testing.assert_array_equal, ours.batch_at(step), theirs.batch_at(step))


def test_rows_are_taken_by_index_and_by_mask():
    stays = make_stays(LENGTHS)
    chosen = stays.take(np.array([4, 1]))
    assert chosen.subject_ids.tolist() == [104, 101]
    np.testing.assert_array_equal(chosen.values, stays.values[[4, 1]])
    assert stays.take(stays.has_vitals).has_vitals.all()
