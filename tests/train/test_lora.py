"""LoRA: nothing changes at first, only adapters and head move, merged = adapted, small files that restore."""

import pickle
from pathlib import Path

import jax
import numpy as np
import pytest

from ehrjax.models.behrt import SIZES, Behrt
from ehrjax.models.hierarchical import Hierarchical
from ehrjax.objectives.supervised import make_supervised_objective
from ehrjax.train.checkpoint import Checkpoints, restore_best_params
from ehrjax.train.loop import fit
from ehrjax.train.lora import (
    ALL,
    ATTENTION,
    OnBase,
    hash_params,
    init_lora,
    init_trainable,
    load_adapters,
    make_lora_objective,
    merge,
    merge_trainable,
    num_trainable,
    save_adapters,
    unmerge,
    with_base,
)
from ehrjax.train.optimizer import make_optimizer
from ehrjax.train.state import create_state
from ehrjax.train.step import make_train_step
from tests.sequences import VOCAB_SIZE, random_params
from tests.tokens import make_token_batch, make_token_batches

MODEL = Behrt(
    VOCAB_SIZE, embed_dim=4, hidden_dim=8, num_layers=2, num_heads=2, max_tokens=40, num_outputs=1, dropout_rate=0.0
)
VISITS = [1, 4, 2, 3]
BATCH = make_token_batch(VISITS, row_tokens=40)
BASE = random_params(MODEL, BATCH)["params"]
OBJECTIVE = make_supervised_objective(MODEL, "binary")
ALPHA = 4.0
QKV = "encoder/layers/attention/qkv/kernel"


def trained(trainable, seed=0):
    """As after training: no adapter is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), trainable)


@pytest.fixture(scope="module")
def step():
    """A compiled gradient of the loss in what is trained and in the base."""
    objective = make_lora_objective(OBJECTIVE, alpha=ALPHA)
    return jax.jit(jax.value_and_grad(lambda t, base: objective(t, OnBase(base, BATCH), None, False).loss_sum, (0, 1)))


def test_rank_and_targets_that_make_no_adapter_are_refused():
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        init_lora(jax.random.key(0), BASE, rank=0)
    with pytest.raises(ValueError, match=rf"\('nothing',\) match no matrix. There are: .*{QKV}.*project/kernel"):
        init_lora(jax.random.key(0), BASE, rank=2, targets=("nothing",))
    for target in ("attention/qkv/bias", "embedding/embedding", "attention_norm/scale", "kv"):
        with pytest.raises(ValueError, match="match no matrix"):
            init_lora(jax.random.key(0), BASE, rank=2, targets=(target,))
    with pytest.raises(ValueError, match="'tail' is not in the parameters: use some of age_embedding"):
        init_trainable(jax.random.key(0), BASE, rank=2, head=("tail",))


def test_a_kernel_of_three_axes_is_a_stack_only_below_layers():
    with pytest.raises(ValueError, match=r"attention/q/kernel of shape \(4, 2, 3\) is neither a matrix nor"):
        init_lora(jax.random.key(0), {"attention": {"q": {"kernel": np.zeros((4, 2, 3))}}}, rank=2)
    with pytest.raises(ValueError, match="is neither a matrix nor"):
        init_lora(jax.random.key(0), {"layers": {"attention": {"q": {"kernel": np.zeros((5, 4, 2, 3))}}}}, rank=2)


def test_adapters_have_the_shapes_of_their_matrices_and_do_not_depend_on_each_other():
    few = init_lora(jax.random.key(0), BASE, rank=3, targets=("qkv",))
    assert list(few) == [QKV]
    assert few[QKV]["a"].shape == (2, 8, 3) and few[QKV]["b"].shape == (2, 3, 24)
    assert (few[QKV]["a"][0] != few[QKV]["a"][1]).all()
    many = init_lora(jax.random.key(0), BASE, rank=3, targets=ALL)
    assert {path for path in many if "/" in path} >= {QKV, "encoder/layers/ffn/in/kernel", "project/kernel"}
    assert not [path for path in many if path.endswith(("bias", "scale", "embedding"))]
    np.testing.assert_array_equal(few[QKV]["a"], many[QKV]["a"])
    assert num_trainable(few) == 2 * 3 * (8 + 24)


def test_matrices_that_are_not_called_kernel_are_found_by_path():
    params = {"lstm": {"layer_0_forward_input": np.zeros((3, 8)), "layer_0_forward_bias": np.zeros(8)}}
    assert list(init_lora(jax.random.key(0), params, rank=1, targets=("lstm/.*",))) == ["lstm/layer_0_forward_input"]


def test_adapters_change_nothing_at_first(step):
    trainable = init_trainable(jax.random.key(0), BASE, rank=2)
    merged = merge_trainable(BASE, trainable, alpha=ALPHA)
    jax.tree.map(np.testing.assert_array_equal, merged, BASE)
    plain = OBJECTIVE(BASE, BATCH, None, False).loss_sum
    np.testing.assert_allclose(step(trainable, BASE)[0], plain, rtol=1e-6)


def test_gradients_reach_b_at_once_and_a_after_a_step_and_never_the_base(step):
    trainable = init_trainable(jax.random.key(0), BASE, rank=2, targets=ALL)
    _, (first, base) = step(trainable, BASE)
    for pair in first["adapters"].values():
        assert (pair["a"] == 0).all() and (pair["b"] != 0).any()
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(base))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(first["head"]))
    moved = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, trainable, first)
    second = step(moved, BASE)[1][0]
    assert all((pair["a"] != 0).any() for pair in second["adapters"].values())


@pytest.mark.parametrize("model", [MODEL, Hierarchical(VOCAB_SIZE, 4, 8, num_heads=2, num_outputs=1)])
def test_merging_adds_the_product_and_unmerging_takes_it_back(model):
    base = random_params(model, BATCH)["params"]
    adapters = trained(init_lora(jax.random.key(0), base, rank=2, targets=ATTENTION))
    assert {path.split("/")[-2] for path in adapters} in ({"qkv", "out"}, {"qkv", "out", "value", "score"})
    merged = jax.jit(lambda p, a: merge(p, a, alpha=ALPHA))(base, adapters)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    for path, pair in adapters.items():
        before, after = base, merged
        for name in path.split("/"):
            before, after = before[name], after[name]
        expected = before + ALPHA / 2 * np.einsum("...ir,...ro->...io", pair["a"], pair["b"])
        np.testing.assert_allclose(after, expected, atol=1e-6)
        assert np.abs(after - before).max() > 1e-3
    back = unmerge(merged, adapters, alpha=ALPHA)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), back, base)


def test_the_merged_model_is_the_adapted_one(step):
    trainable = trained(init_trainable(jax.random.key(0), BASE, rank=2))
    merged = merge_trainable(BASE, trainable, alpha=ALPHA)
    np.testing.assert_array_equal(merged["head"]["bias"], trainable["head"]["head"]["bias"])
    plain = OBJECTIVE(merged, BATCH, None, False).loss_sum
    np.testing.assert_allclose(step(trainable, BASE)[0], plain, rtol=1e-5)


def test_adapters_of_another_model_are_named():
    adapters = init_lora(jax.random.key(0), BASE, rank=2, targets=("qkv",))
    with pytest.raises(ValueError, match=f"adapter {QKV} .*no such path"):
        merge({"head": BASE["head"]}, adapters, alpha=ALPHA)
    wrong = {QKV: {"a": np.zeros((2, 8, 2)), "b": np.zeros((2, 2, 9))}}
    with pytest.raises(ValueError, match=r"shape \(2, 8, 9\) does not fit the parameters \(shape \(2, 8, 24\)\)"):
        merge(BASE, wrong, alpha=ALPHA)


def lora_fit(workdir, *, num_steps=6, fail_at=None):
    """A few steps of fine-tuning through the training loop, which dies at batch `fail_at` where given."""
    batches = make_token_batches(VISITS, row_tokens=40, batch_size=1)
    tx = make_optimizer(learning_rate=0.01, num_steps=num_steps, schedule="constant")
    model = MODEL.clone(dropout_rate=0.5)  # so that randomness matters to the result
    objective = make_lora_objective(make_supervised_objective(model, "binary"), alpha=ALPHA)

    def batch_at(index):
        if index == fail_at:
            raise RuntimeError("power cut")
        return batches.batch_at(index)

    return fit(
        state=create_state(init_trainable(jax.random.key(0), BASE, rank=2), tx),
        train_step=make_train_step(objective, tx),
        batch_at=with_base(batch_at, BASE),
        num_steps=num_steps,
        base_key=jax.random.key(1),
        workdir=workdir,
        eval_every=2,
        progress=False,
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("fit")
    before = hash_params(BASE)
    result = lora_fit(workdir)
    assert hash_params(BASE) == before  # bit for bit
    return workdir, result


def test_only_adapters_and_head_move_and_only_they_are_in_the_checkpoint(fitted):
    workdir, result = fitted
    start = init_trainable(jax.random.key(0), BASE, rank=2)
    assert jax.tree.structure(result.params) == jax.tree.structure(start)
    moved = jax.tree.map(lambda one, other: bool((one != other).any()), result.params, start)
    assert all(jax.tree.leaves(moved))
    assert result.num_compilations == 1 and result.history[-1]["examples"] > 0
    restored = restore_best_params(workdir / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, restored, jax.tree.map(np.asarray, result.params))


def test_a_resumed_fine_tuning_equals_an_undisturbed_one(fitted, tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        lora_fit(tmp_path, fail_at=3)
    assert (tmp_path / "checkpoints" / "2").is_dir()
    resumed = lora_fit(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, fitted[1].params)


def test_the_base_is_an_argument_of_the_step_and_no_constant_in_it():
    tx = make_optimizer(learning_rate=0.01, num_steps=2)
    state = create_state(init_trainable(jax.random.key(0), BASE, rank=2), tx)
    batch = with_base(lambda step: BATCH, BASE)(0)
    traced = jax.make_jaxpr(make_train_step(make_lora_objective(OBJECTIVE, alpha=ALPHA), tx))
    jaxpr = traced(state, batch, jax.random.key(1))
    assert sum(np.size(const) for const in jaxpr.consts) < 10


def test_a_checkpoint_is_small_beside_one_of_the_whole_model(tmp_path):
    model = Behrt(1000, **SIZES["small"], num_outputs=1)
    base = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(model.init, jax.random.key(0), BATCH)
    )
    trainable = init_trainable(jax.random.key(0), base["params"], rank=4)
    tx, sizes = make_optimizer(learning_rate=0.01, num_steps=2), {}
    for name, params in (("whole", _noise(base["params"])), ("adapters", _noise(trainable))):
        checkpoints = Checkpoints(tmp_path / name, meta={})
        checkpoints.save(create_state(params, tx), {}, best_step=None)
        checkpoints.close()
        sizes[name] = sum(file.stat().st_size for file in (tmp_path / name).rglob("*") if file.is_file())
    save_adapters(tmp_path / "adapters.npz", trainable, base["params"], alpha=8.0)
    assert sizes["adapters"] < sizes["whole"] / 10
    assert (tmp_path / "adapters.npz").stat().st_size < 4 * num_trainable(trainable) + 10_000


def _noise(tree):
    """Numbers that do not compress."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


def test_saved_adapters_come_back_with_what_they_belong_to(tmp_path):
    trainable = trained(init_trainable(jax.random.key(0), BASE, rank=2))
    save_adapters(tmp_path / "new" / "adapters.npz", trainable, BASE, alpha=ALPHA)
    loaded, meta = load_adapters(tmp_path / "new" / "adapters.npz", BASE)
    jax.tree.map(np.testing.assert_array_equal, loaded, trainable)
    assert meta == {"rank": 2, "alpha": ALPHA, "base_hash": hash_params(BASE)}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["adapters.npz"]
    other = jax.tree.map(np.copy, BASE)
    other["project"]["bias"][0] += 1e-6
    with pytest.raises(ValueError, match="adapters of other parameters"):
        load_adapters(tmp_path / "new" / "adapters.npz", other)


def test_a_file_that_is_no_adapters_is_refused_and_nothing_in_it_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    bomb = np.empty(1, object)
    bomb[0] = Bomb()
    np.savez(tmp_path / "bomb.npz", meta=bomb)
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "noise.npz").write_bytes(b"noise")
    np.savez(tmp_path / "other.npz", weights=np.zeros(2))
    for name in ("bomb.npz", "bomb.pkl", "noise.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name}: not a file of adapters"):
            load_adapters(tmp_path / name)
    assert not (tmp_path / "ran").exists()
