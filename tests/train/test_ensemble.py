"""Members trained in one program: each is what it would be alone, stops and keeps its best by itself, and resumes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.train.checkpoint import restore_best_params
from ehrjax.train.ensemble import create_members, fit_members, member_of
from ehrjax.train.log import TIMING_KEYS
from ehrjax.train.loop import NonFiniteLossError
from ehrjax.train.optimizer import Plateau, make_optimizer
from ehrjax.train.state import create_state
from ehrjax.train.step import make_eval_step, make_train_step, mean_metrics
from ehrjax.types import LossOutput
from tests.train.tiny_run import NUM_STEPS, init_params, make_batch, objective, tiny_fit

NUM_MEMBERS = 3
TX = make_optimizer(learning_rate=0.3, num_steps=NUM_STEPS, warmup_steps=3)
EVAL_STEP = jax.jit(make_eval_step(objective))
KEYS = jax.random.split(jax.random.key(1), NUM_MEMBERS)


def starts() -> list[dict]:
    """Initial parameters that differ by member."""
    return [jax.tree.map(lambda leaf, k=k: leaf * (1.0 + 0.5 * k), init_params()) for k in range(NUM_MEMBERS)]


def evaluate(params) -> dict[str, float]:
    return mean_metrics([EVAL_STEP(params, make_batch(10_000))], prefix="val/")


def fit_all(workdir, **changes):
    arguments = {
        "tx": TX,
        "train_step": make_train_step(objective, TX),
        "base_keys": KEYS,
        "eval_fn": evaluate,
        "batch_at": make_batch,
        "num_steps": NUM_STEPS,
        "workdir": workdir,
        "eval_every": 2,
        "log_every": 4,
        "plateau": Plateau(patience=1),
        "meta": {"config_hash": "c0"},
        "progress": False,
    }
    return fit_members(starts(), **{**arguments, **changes})


def fit_alone(workdir, member, **changes):
    settings = {"eval_fn": evaluate, "eval_every": 2, "base_key": KEYS[member], "progress": False}
    return tiny_fit(workdir, state=create_state(starts()[member], TX), **{**settings, **changes})


def by_place(rows, calls):
    """An eval_fn of members evaluated in turn that returns the rows of losses, one a round."""

    def eval_fn(params):
        calls.append(jax.tree.map(np.array, params))
        return {"val/loss": losses[len(calls) - 1]}

    losses = [loss for row in rows for loss in row]
    return eval_fn


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def assert_close(one, two):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, two)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_each_member_is_what_it_is_alone(tmp_path, monkeypatch, backend):
    """With plateau and patience, so that rates differ and some stop before others; in a loop and side by side."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    together = fit_all(tmp_path / "all", patience=2)
    members = together.state.opt_state
    steps = []
    for k in range(NUM_MEMBERS):
        alone = fit_alone(tmp_path / str(k), k, patience=2)
        assert_close(member_of(together.params, k), alone.params)
        assert_close(member_of(members.params, k), alone.state.params)
        assert members.best_step[k] == alone.best_step
        assert float(members.best_value[k]) == pytest.approx(alone.best_value, rel=1e-4)
        steps.append(alone.steps)
    assert together.steps == max(steps)
    assert together.num_compilations == 1
    first = member_of(together.params, 0)
    assert not np.allclose(first["first"]["kernel"], member_of(together.params, 1)["first"]["kernel"])


def test_members_keep_their_own_best_and_a_stopped_one_stays_as_it_was(tmp_path):
    calls = []
    # Member 1 stops at step 6, member 2 at step 10: they are not evaluated again.
    rows = [(5.0, 5.0, 5.0), (4.0, 6.0, 5.0), (4.5, 7.0, 3.0), (3.0, 4.0), (3.5, 4.0), (3.2,)]
    result = fit_all(tmp_path, eval_fn=by_place(rows, calls), patience=2)
    members = result.state.opt_state
    np.testing.assert_array_equal(members.best_step, [8, 2, 6])
    np.testing.assert_array_equal(members.best_value, [3.0, 5.0, 3.0])
    assert result.stopped_early and result.steps == 12
    for k, call in enumerate((9, 1, 8)):
        assert_same(member_of(result.params, k), calls[call])
    assert_same(member_of(members.params, 1), calls[7])
    lines = [row for row in result.history if "val/loss" in row]
    assert [row["num_training_members"] for row in lines] == [3, 3, 3, 2, 2, 1]
    assert lines[3]["val/loss"] == 3.5
    assert_same(restore_best_params(tmp_path / "checkpoints"), result.params)


def test_without_patience_nobody_stops_and_the_best_is_still_kept(tmp_path):
    calls = []
    rows = [(1.0 + i, 9.0 - i, 2.0) for i in range(NUM_STEPS // 2)]
    result = fit_all(tmp_path, eval_fn=by_place(rows, calls), patience=None)
    np.testing.assert_array_equal(result.state.opt_state.best_step, [2, NUM_STEPS, 2])
    assert result.steps == NUM_STEPS and not result.stopped_early


def test_stopped_and_resumed_ends_with_the_same_bits(tmp_path):
    class Kill(Exception):
        pass

    def killed_at(step):
        def batch_at(index):
            if index == step:
                raise Kill
            return make_batch(index)

        return batch_at

    undisturbed = fit_all(tmp_path / "one", patience=2)
    for step in (3, undisturbed.steps - 1):
        with pytest.raises(Kill):
            fit_all(tmp_path / "two", patience=2, batch_at=killed_at(step))
    resumed = fit_all(tmp_path / "two", patience=2)
    assert_same(resumed.params, undisturbed.params)
    assert_same(resumed.state, undisturbed.state)
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    again = fit_all(tmp_path / "two", patience=2, batch_at=killed_at(0))
    assert_same(again.params, undisturbed.params)
    assert_same(again.state, undisturbed.state)


def figures(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING_KEYS} for row in rows]


def test_one_member_whose_loss_is_not_finite_stops_the_run(tmp_path):
    def square_root(params, batch, key, train):
        return LossOutput(jnp.sqrt(params["w"]) * jnp.sum(batch.inputs**2), jnp.ones(()))

    tx = make_optimizer(learning_rate=0.1, num_steps=NUM_STEPS)
    members = [{"w": jnp.asarray(value)} for value in (1.0, -1.0)]
    settings = {"eval_every": 2, "num_steps": 4, "batch_at": make_batch, "workdir": tmp_path, "progress": False}
    with pytest.raises(NonFiniteLossError, match="step 1 "):
        fit_members(
            members,
            tx,
            make_train_step(square_root, tx),
            base_keys=KEYS[:2],
            eval_fn=lambda params: {"val/loss": 0.0},
            **settings,
        )


def test_one_member_whose_validation_loss_is_nan_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="val/loss is nan at step 2"):
        fit_all(tmp_path, eval_fn=by_place([(1.0, float("nan"), 1.0)], []))
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_batch_without_labels_changes_nothing_but_the_step(tmp_path):
    def unlabelled(params, batch, key, train):
        return LossOutput(jnp.sum(params["second"]["bias"]), jnp.zeros(()))

    state = create_members(starts(), TX)
    result = fit_all(
        tmp_path,
        train_step=make_train_step(unlabelled, TX),
        eval_fn=lambda params: {"val/loss": 1.0},
        plateau=None,
        num_steps=2,
    )
    assert_same(result.state.opt_state.params, state.opt_state.params)
    assert result.steps == 2
