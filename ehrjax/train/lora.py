"""LoRA (Hu et al., 2021, arXiv:2106.09685): fine-tune low-rank additions to some matrices, and leave those as they are.

All of it transforms parameter trees, so it serves any model. What is trained is a tree of its own,
`{"adapters": {PATH: {"a", "b"}}, "head": {NAME: ..}}`: state, optimiser and checkpoints of `fit` hold nothing else. The
base comes with the batches (`with_base`), because arrays that a jitted step closes over are compiled into it as
constants, once for every shape of batch: 80 MB at 20 million parameters.

    trainable = init_trainable(key, base, rank=8)
    fit(state=create_state(trainable, tx), train_step=make_train_step(make_lora_objective(objective, alpha=16.0), tx),
        batch_at=with_base(batches.batch_at, base), ...)
    params = merge_trainable(base, result.params, alpha=16.0)
"""

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from ehrjax.train.optimizer import NO_DECAY_SUFFIXES
from ehrjax.train.step import Objective
from ehrjax.types import LossOutput

ATTENTION = ("attention/[^/]+", "visit_pooling/[^/]+")  # the matrices of every attention, as in the paper
ALL = (".*",)
STACKED = "layers"  # parameters below this name have the layers of a scan on axis 0
FORMAT_VERSION = 1


class OnBase(NamedTuple):
    """A batch, and the frozen parameters that the adapters add to."""

    base: Any
    batch: Any

    @property
    def example_ids(self) -> Array:
        return self.batch.example_ids


def init_lora(
    key: Array, params: Mapping[str, Any], *, rank: int, targets: Iterable[str] = ATTENTION
) -> dict[str, dict[str, Array]]:
    """Adapters `{PATH: {"a": [.. in rank], "b": [.. rank out]}}`, PATH as in "encoder/layers/attention/qkv/kernel".

    A matrix [in out], or a stack of them [layers in out] below a name "layers", gets an adapter where one of `targets`
    (regular expressions) matches the last parts of its path, with or without "/kernel". Biases, norm scales and
    embeddings never do. `a` is normal with variance 1/in, `b` zeros: at first nothing changes. Raises ValueError for a
    rank below 1, for no match, and for a kernel of more axes.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1.")
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    matrices = {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if _is_matrix(path, leaf)}
    patterns = [re.compile(f"(.*/)?({target})(/kernel)?") for target in targets]
    chosen = [path for path in sorted(matrices) if any(pattern.fullmatch(path) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"targets={targets} match no matrix. There are: {', '.join(sorted(matrices))}.")
    return {path: _init_adapter(key, path, jnp.shape(matrices[path]), rank) for path in chosen}


def merge(params: Mapping[str, Any], adapters: Mapping[str, Any], *, alpha: float) -> dict[str, Any]:
    """The parameters with W + alpha/rank * a b for each adapter; pure, and differentiable in both."""
    return _add(params, adapters, alpha)


def unmerge(params: Mapping[str, Any], adapters: Mapping[str, Any], *, alpha: float) -> dict[str, Any]:
    """What `merge` made `params` of, up to rounding."""
    return _add(params, adapters, -alpha)


def init_trainable(
    key: Array,
    params: Mapping[str, Any],
    *,
    rank: int,
    targets: Iterable[str] = ATTENTION,
    head: Iterable[str] = ("head",),
) -> dict[str, Any]:
    """What LoRA trains: adapters, and the parameters below the names `head`, which are trained as a whole."""
    head = tuple(head)
    missing = [name for name in head if name not in params]
    if missing:
        raise ValueError(f"head={missing[0]!r} is not in the parameters: use some of {', '.join(sorted(params))}.")
    body = {name: part for name, part in params.items() if name not in head}
    trainable: dict[str, Any] = {"adapters": init_lora(key, body, rank=rank, targets=targets)}
    return trainable | ({"head": {name: params[name] for name in head}} if head else {})


def merge_trainable(params: Mapping[str, Any], trainable: Mapping[str, Any], *, alpha: float) -> dict[str, Any]:
    """Parameters of the model itself: the base with the adapters merged and the trained heads in place of its own."""
    return {**merge(params, trainable["adapters"], alpha=alpha), **trainable.get("head", {})}


def num_trainable(trainable: Any) -> int:
    """How many numbers are trained."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(trainable))


def make_lora_objective(objective: Objective, *, alpha: float) -> Objective:
    """The objective as a function of what LoRA trains; its batches are `OnBase`, and no gradient reaches the base."""

    def on_base(trainable: Any, batch: OnBase, key: Array | None, train: bool) -> LossOutput:
        params = merge_trainable(jax.lax.stop_gradient(batch.base), trainable, alpha=alpha)
        return objective(params, batch.batch, key, train)

    return on_base


def with_base(batch_at: Callable[[int], Any], params: Any) -> Callable[[int], OnBase]:
    """`batch_at` whose batches carry the frozen parameters, which go to the device once."""
    base = jax.device_put(params)
    return lambda step: OnBase(base, batch_at(step))


def save_adapters(path: str | Path, trainable: Mapping[str, Any], params: Any, *, alpha: float) -> None:
    """Write what LoRA trained as .npz (no pickle), with rank, alpha and the hash of the base `params`.

    The file is whole or absent.
    """
    path = Path(path)
    leaves = flatten_dict(trainable)
    meta = {"version": FORMAT_VERSION, "alpha": alpha, "base_hash": hash_params(params)}
    meta |= {"rank": max(pair["a"].shape[-1] for pair in trainable["adapters"].values()), "leaves": list(leaves)}
    arrays = {f"leaf_{index}": np.asarray(leaf) for index, leaf in enumerate(leaves.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_adapters(path: str | Path, params: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `save_adapters` wrote, as NumPy arrays, and its `rank`, `alpha` and `base_hash`; executes nothing it reads.

    Raises ValueError where the file is not one, or where `params` are given and are not the base it was trained on.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            leaves = {tuple(names): file[f"leaf_{index}"] for index, names in enumerate(meta.pop("leaves"))}
        version = meta.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of adapters ({error}): save them again.") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: format {version} of adapters, this version reads {FORMAT_VERSION}: save them again.")
    if params is not None and hash_params(params) != meta["base_hash"]:
        raise ValueError(f"{path}: adapters of other parameters (hash {meta['base_hash'][:12]}): load their own base.")
    return unflatten_dict(leaves), meta


def hash_params(params: Any) -> str:
    """SHA-256 (hex) of the names, shapes, dtypes and numbers of a tree of parameters."""
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _is_matrix(path: str, leaf: Array) -> bool:
    *parents, name = path.split("/")
    return jnp.ndim(leaf) - (STACKED in parents) >= 2 and not name.lower().endswith(NO_DECAY_SUFFIXES)


def _init_adapter(key: Array, path: str, shape: tuple[int, ...], rank: int) -> dict[str, Array]:
    *stack, num_in, num_out = shape
    if len(stack) > (STACKED in path.split("/")[:-1]):
        raise ValueError(
            f"{path} of shape {shape} is neither a matrix nor, below a name {STACKED!r}, a stack of them: leave it out "
            "of targets."
        )
    # By the path, so that an adapter starts the same whatever other targets there are.
    normal = jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), (*stack, num_in, rank))
    return {"a": normal / np.sqrt(num_in), "b": jnp.zeros((*stack, rank, num_out))}


def _add(params: Mapping[str, Any], adapters: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    leaves = dict(flatten_dict(params, sep="/"))
    for path, pair in adapters.items():
        change = _product(pair, alpha)
        if path not in leaves or jnp.shape(leaves[path]) != change.shape:
            found = f"shape {jnp.shape(leaves[path])}" if path in leaves else "no such path"
            raise ValueError(f"adapter {path} of shape {change.shape} does not fit the parameters ({found}).")
        leaves[path] = leaves[path] + change.astype(leaves[path].dtype)
    return unflatten_dict(leaves, sep="/")


def _product(pair: Mapping[str, Float[Array, "..."]], alpha: float) -> Float[Array, "*stack D K"]:
    return (alpha / pair["a"].shape[-1]) * jnp.matmul(pair["a"], pair["b"])
