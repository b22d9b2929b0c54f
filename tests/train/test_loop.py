"""fit: early stopping, non-finite losses, finished runs, counted compilations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.train.checkpoint import CheckpointMismatchError
from ehrjax.train.loop import NonFiniteLossError
from ehrjax.train.optimizer import make_optimizer
from ehrjax.train.state import create_state
from ehrjax.train.step import make_train_step
from ehrjax.types import LossOutput
from tests.train.tiny_run import NUM_STEPS, make_batch, tiny_fit


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def scripted(values, seen):
    """An eval_fn that returns `values` in turn as val/auroc and keeps the parameters it was shown."""

    def eval_fn(params):
        seen.append(jax.tree.map(np.array, params))
        return {"val/auroc": values[len(seen) - 1]}

    return eval_fn


def test_nan_loss_stops_and_names_the_step_and_the_batch_behind_it(tmp_path):
    def poisoned(step):
        batch = make_batch(step)
        return batch._replace(inputs=batch.inputs * np.nan) if step == 7 else batch

    with pytest.raises(NonFiniteLossError, match=r"step 8 .* 6 example ids are in .*nonfinite\.json"):
        tiny_fit(tmp_path, batch_at=poisoned)
    report = json.loads((tmp_path / "nonfinite.json").read_text())
    assert report["step"] == 8 and report["batch_index"] == 7
    assert report["example_ids"] == list(range(7 * 6, 8 * 6))
    # Nothing of the poisoned step was saved: with the data mended, the same call ends as if it had never been.
    result = tiny_fit(tmp_path)
    assert result.steps == NUM_STEPS and np.isfinite(result.params["first"]["kernel"]).all()


def test_a_gradient_that_is_nan_under_a_finite_loss_blames_its_own_batch(tmp_path):
    def square_root(params, batch, key, train):
        return LossOutput(jnp.sqrt(jnp.sum((batch.inputs * params["w"]) ** 2)), jnp.ones(()))

    def batch_at(step):
        batch = make_batch(step)
        return batch._replace(inputs=batch.inputs * (step != 2))

    tx = make_optimizer(learning_rate=0.1, num_steps=NUM_STEPS)
    state = create_state({"w": jnp.ones(())}, tx)
    with pytest.raises(NonFiniteLossError, match="step 3 "):
        tiny_fit(tmp_path, state=state, train_step=make_train_step(square_root, tx), batch_at=batch_at)


def test_early_stopping_returns_the_best_weights_not_the_last(tmp_path):
    seen = []
    eval_fn = scripted([0.6, 0.8, 0.8, 0.7], seen)
    result = tiny_fit(tmp_path, eval_fn=eval_fn, eval_every=3, monitor="val/auroc", mode="max", patience=2)
    assert result.stopped_early and result.steps == 12
    assert (result.best_step, result.best_value) == (6, 0.8)
    assert_same(result.params, seen[1])
    assert_same(result.state.params, seen[3])
    again = tiny_fit(tmp_path, eval_fn=None, eval_every=3, monitor="val/auroc", mode="max", patience=2)
    assert again.stopped_early and again.steps == 12
    assert_same(again.params, seen[1])


def test_a_monitor_that_is_nan_or_unknown_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"val/auroc is nan at step 5.*one class only"):
        tiny_fit(tmp_path / "a", eval_fn=scripted([float("nan")], []), monitor="val/auroc", mode="max")
    with pytest.raises(ValueError, match=r"monitor='val/los' is not among .*'val/loss'"):
        tiny_fit(tmp_path / "b", monitor="val/los")


@pytest.mark.parametrize("bad", [{"num_steps": 0}, {"eval_every": 0}, {"log_every": 0}, {"mode": "best"}])
def test_impossible_arguments_are_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        tiny_fit(tmp_path / "run", **bad)
    assert not (tmp_path / "run").exists()


def test_without_evaluation_the_last_weights_are_returned(tmp_path):
    result = tiny_fit(tmp_path, eval_fn=None, num_steps=7)
    assert result.best_step is None and result.steps == 7 and not result.stopped_early
    assert_same(result.params, result.state.params)


def test_a_finished_run_returns_its_result_without_a_step(tmp_path):
    def never(step):
        raise AssertionError("a finished run needs no batch")

    first = tiny_fit(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text()
    again = tiny_fit(tmp_path, batch_at=never)
    assert_same(again.params, first.params)
    assert_same(again.state, first.state)
    for name in ("best_step", "best_value", "steps", "seconds", "examples_per_second", "num_compilations", "history"):
        assert getattr(again, name) == getattr(first, name)
    assert (tmp_path / "metrics.jsonl").read_text() == lines
    with pytest.raises(CheckpointMismatchError, match=r"config_hash c0 \(this run: c1\)"):
        tiny_fit(tmp_path, meta={"config_hash": "c1", "vocabulary_hash": "v0"})


def test_one_compilation_a_shape(tmp_path):
    assert tiny_fit(tmp_path / "one", num_steps=6).num_compilations == 1
    two = tiny_fit(tmp_path / "two", num_steps=6, batch_at=lambda step: make_batch(step, size=4 + 2 * (step % 2)))
    assert two.num_compilations == 2


def test_the_callers_state_survives_although_the_step_donates(tmp_path):
    tx = make_optimizer(learning_rate=0.05, num_steps=NUM_STEPS)
    state = create_state({"first": {"kernel": jnp.ones((8, 16)), "bias": jnp.zeros(16)}}, tx)
    state.params["second"] = {"kernel": jnp.ones((16, 1)), "bias": jnp.zeros(1)}
    state = create_state(state.params, tx)
    tiny_fit(tmp_path, state=state, num_steps=5)
    np.testing.assert_array_equal(state.params["first"]["kernel"], 1.0)


def test_lines_hold_means_over_the_interval_and_counts(tmp_path):
    result = tiny_fit(tmp_path)
    train = [row for row in result.history if "train/loss" in row]
    assert [row["step"] for row in train] == list(range(4, NUM_STEPS + 1, 4))
    assert [row["examples"] for row in train] == [6 * row["step"] for row in train]
    assert [row["step"] for row in result.history if "val/loss" in row] == list(range(5, NUM_STEPS + 1, 5))
    assert all(row["examples_per_second"] > 0 for row in train) and result.examples_per_second > 0
    fine = [row["train/loss"] for row in tiny_fit(tmp_path / "fine", log_every=1).history if "train/loss" in row]
    assert [row["train/loss"] for row in train] == pytest.approx(np.mean(np.reshape(fine, (-1, 4)), axis=1).tolist())


def test_parts_share_a_metrics_file_and_nothing_else(tmp_path):
    one = tiny_fit(tmp_path, part="pretrain", num_steps=8)
    two = tiny_fit(tmp_path, part="task", num_steps=4)
    assert {row["part"] for row in one.history} == {"pretrain"} and one.steps == 8
    assert {row["part"] for row in two.history} == {"task"} and two.steps == 4
    assert tiny_fit(tmp_path, part="pretrain", num_steps=8).history == one.history
    assert (tmp_path / "checkpoints" / "pretrain" / "8").is_dir()
