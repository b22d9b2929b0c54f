"""Checkpoints: best and last kept, torn ones passed over, other configs refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ehrjax.train.checkpoint import CheckpointMismatchError, Checkpoints, restore_best_params
from ehrjax.train.optimizer import make_optimizer
from ehrjax.train.state import TrainState, create_state

META = {"config_hash": "c0", "vocabulary_hash": "v0"}


def state_at(step: int) -> TrainState:
    params = {"layer": {"kernel": jnp.full((2, 3), float(step)), "bias": jnp.zeros(3)}}
    state = create_state(params, make_optimizer(learning_rate=0.1, num_steps=100))
    return state._replace(step=jnp.asarray(step, jnp.int32))


def save_all(folder, steps_and_best):
    checkpoints = Checkpoints(folder, meta=META)
    for step, best in steps_and_best:
        checkpoints.save(state_at(step), {"num_bad_evals": step}, best_step=best)
    return checkpoints


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder", meta=META)
    assert checkpoints.latest_step() is None and checkpoints.read_complete() is None
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        restore_best_params(tmp_path)


def test_best_and_last_are_kept_and_come_back_whole(tmp_path):
    checkpoints = save_all(tmp_path, [(5, 5), (10, 10), (15, 10), (20, 10)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]
    restored = checkpoints.restore(20, state_at(0))
    assert jax.tree.structure(restored) == jax.tree.structure(state_at(0))
    jax.tree.map(np.testing.assert_array_equal, restored, state_at(20))
    assert checkpoints.read_loop(20) == {"num_bad_evals": 20, "best_step": 10, "meta": META}
    np.testing.assert_array_equal(checkpoints.restore_params(10, state_at(0).params)["layer"]["kernel"], 10.0)


def test_best_parameters_load_without_optimiser_or_template(tmp_path):
    save_all(tmp_path, [(5, 5), (10, 5)]).close()
    params = restore_best_params(tmp_path, meta=META)
    assert isinstance(params["layer"]["kernel"], np.ndarray) and params["layer"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(params["layer"]["kernel"], 5.0)
    assert set(params["layer"]) == {"kernel", "bias"}


def test_without_evaluation_the_last_parameters_are_the_best(tmp_path):
    save_all(tmp_path, [(5, None), (10, None)]).close()
    np.testing.assert_array_equal(restore_best_params(tmp_path)["layer"]["kernel"], 10.0)


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    checkpoints = save_all(tmp_path, [(5, 5), (5, 5)])
    assert checkpoints.latest_step() == 5


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before(tmp_path, limit_file_size):
    checkpoints = save_all(tmp_path, [(5, 5)])
    with limit_file_size(50), pytest.raises(OSError, match=rf"step 10 to {tmp_path}: .*resumes from the checkpoint"):
        checkpoints.save(state_at(10), {"num_bad_evals": 1}, best_step=10)
    again = save_all(tmp_path, [])
    assert again.latest_step() == 5
    again.save(state_at(10), {"num_bad_evals": 1}, best_step=10)
    assert again.latest_step() == 10


@pytest.mark.parametrize("torn", ["_CHECKPOINT_METADATA", "params", "rest", "loop"])
def test_a_torn_checkpoint_is_passed_over_and_can_be_written_again(tmp_path, torn):
    save_all(tmp_path, [(5, 5), (10, 5)]).close()
    victim = tmp_path / "10" / torn
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    (tmp_path / "15.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    (tmp_path / "20").mkdir()
    assert float(restore_best_params(tmp_path)["layer"]["kernel"][0, 0]) == 5.0
    checkpoints = Checkpoints(tmp_path, meta=META)
    assert checkpoints.latest_step() == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5"]
    checkpoints.save(state_at(10), {}, best_step=5)
    assert checkpoints.latest_step() == 10


def test_a_checkpoint_whose_best_one_is_gone_is_not_resumed_from(tmp_path):
    save_all(tmp_path, [(5, 5), (10, 5)]).close()
    shutil.rmtree(tmp_path / "5")
    assert Checkpoints(tmp_path, meta=META).latest_step() is None


@pytest.mark.parametrize("name", ["config_hash", "vocabulary_hash"])
def test_another_config_or_vocabulary_is_refused_with_both_hashes(tmp_path, name):
    save_all(tmp_path, [(5, 5)]).close()
    other = {**META, name: "other"}
    message = rf"{name} {META[name]} \(this run: other\)\. Choose another --workdir"
    with pytest.raises(CheckpointMismatchError, match=message):
        Checkpoints(tmp_path, meta=other)
    with pytest.raises(CheckpointMismatchError, match=message):
        restore_best_params(tmp_path, meta=other)


def test_completion_is_remembered_only_with_its_checkpoint(tmp_path):
    checkpoints = save_all(tmp_path, [(5, 5), (10, 5)])
    checkpoints.mark_complete({"seconds": 1.5})
    assert Checkpoints(tmp_path, meta=META).read_complete() == {"seconds": 1.5, "step": 10}
    shutil.rmtree(tmp_path / "10")
    assert Checkpoints(tmp_path, meta=META).read_complete() is None
