"""From a ConfigDict to the library's objects: below this file functions take plain keyword arguments.

The reference for the keys is `configs/lstm_small.py`; a recipe may leave out what it does not change.
"""

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import optax
from ml_collections import ConfigDict

from configs import lstm_small
from ehrjax.data.build import READERS
from ehrjax.models.visit_lstm import VisitLstm
from ehrjax.train import optimizer
from ehrjax.types import Outputs, VisitBatch

SOURCES = ("simulate", *READERS)
FREE_SECTIONS = ("custom_tasks",)  # sections whose keys are the user's own names


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value, e.g. ("train.num_steps", 1000)."""
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, ConfigDict) and name not in FREE_SECTIONS:
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def check_config(config: ConfigDict) -> ConfigDict:
    """The config with defaults for absent keys; an unknown key is a ValueError that names the nearest right one."""
    reference = lstm_small.get_config()
    known = dict(flatten(reference))
    for key, _ in flatten(config):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known keys: {', '.join(sorted(known))}."
            raise ValueError(f"config key {key!r} is not known.{hint}")
    reference.update(config)
    if reference.data.source not in SOURCES:
        near = difflib.get_close_matches(str(reference.data.source), SOURCES, n=1) or [", ".join(SOURCES)]
        raise ValueError(f"data.source={reference.data.source!r} is not known: use {near[0]}.")
    if reference.train.num_seeds != 1:
        raise ValueError(f"train.num_seeds={reference.train.num_seeds}: this version trains one seed a run; use 1.")
    return reference


def config_dict(config: ConfigDict) -> dict:
    """Plain JSON-able dict of the config (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def config_hash(config: ConfigDict) -> str:
    """Hash of all that the config says; a checkpoint of another config is refused."""
    text = json.dumps(config_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


MODELS = {"visit_lstm": VisitLstm}


def make_model(config: ConfigDict, *, vocab_size: int, num_outputs: int, level: str = "patient") -> nn.Module:
    """The model of `config.model`, with the sizes that the data decide; either `level` has the same parameters."""
    fields = config.model.to_dict()
    name = fields.pop("name")
    if name not in MODELS:
        raise ValueError(f"model.name={name!r} is not known: use one of {', '.join(MODELS)}.")
    return MODELS[name](vocab_size=vocab_size, num_outputs=num_outputs, level=level, **fields)


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optimizer.Plateau | None]:
    """The optimiser of `config.optimizer`, and the plateau rule where the schedule is `plateau`."""
    fields = config.optimizer.to_dict()
    plateau = optimizer.Plateau() if fields["schedule"] == "plateau" else None
    if plateau:
        fields["schedule"] = "constant"
    fields["warmup_steps"] = min(fields["warmup_steps"], config.train.num_steps // 2)
    return optimizer.make_optimizer(num_steps=config.train.num_steps, **fields), plateau


@cache
def apply_fn(model: nn.Module) -> Callable[[Any, VisitBatch], Outputs]:
    """`(params, batch) -> Outputs` without dropout; the same object for the same model, so that it compiles once."""
    return lambda params, batch: model.apply({"params": params}, batch)


def count_params(params: Any) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
