"""From a ConfigDict to the library's objects: below this file functions take plain keyword arguments.

The reference for the keys is `configs/lstm_small.py`, for those of `model` the fields of the model; a recipe may leave
out what it does not change.
"""

import dataclasses
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
from ehrjax.data.cutoff import parse_cutoff
from ehrjax.models.registry import MODELS
from ehrjax.objectives import survival
from ehrjax.train import optimizer
from ehrjax.types import Outputs, TokenBatch, VisitBatch

SOURCES = ("simulate", *READERS)
SPLIT_KINDS = ("patient", "temporal")
SHIFTED_SOURCES = ("mimic4", "physionet2012")  # dates that were moved, for each patient differently, or made up
FREE_SECTIONS = ("custom_tasks",)  # sections whose keys are the user's own names
DECIDED_BY_RUN = ("vocab_size", "num_outputs", "level", "max_tokens", "with_context")


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
    model = model_class(config)
    reference = lstm_small.get_config()
    reference.model = ConfigDict({"name": config.model.name} | _defaults(model))
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
    _check_split(reference.data)
    if not 0 < reference.train.label_fraction <= 1:
        raise ValueError(f"train.label_fraction={reference.train.label_fraction} must be above 0 and at most 1.")
    if reference.train.lora_rank and not reference.pretrain.num_steps:
        raise ValueError("train.lora_rank adapts a pre-trained encoder: set pretrain.num_steps, or lora_rank=0.")
    if reference.pretrain.objectives.skip_gram and "with_context" not in _fields(model):
        raise ValueError(f"pretrain.objectives.skip_gram is for med2vec: {config.model.name} has no context table.")
    if reference.train.num_seeds < 1:
        raise ValueError(f"train.num_seeds={reference.train.num_seeds} must be at least 1.")
    if reference.train.survival not in survival.KINDS:
        near = difflib.get_close_matches(reference.train.survival, survival.KINDS, n=1, cutoff=0.0)
        raise ValueError(f"train.survival={reference.train.survival!r} is not known: use {near[0]}.")
    if reads_stays(reference) and reference.pretrain.num_steps:
        raise ValueError(f"pretrain.num_steps is for models of codes: {config.model.name} reads stays, so set it to 0.")
    return reference


def _check_split(data: ConfigDict) -> None:
    if data.split not in SPLIT_KINDS:
        near = difflib.get_close_matches(str(data.split), SPLIT_KINDS, n=1) or [" or ".join(SPLIT_KINDS)]
        raise ValueError(f"data.split={data.split!r} is not known: use {near[0]}.")
    if data.split == "temporal":
        if data.source in SHIFTED_SOURCES:
            raise ValueError(
                f"data.split='temporal' needs real dates, which {data.source} has not: leave it at 'patient'."
            )
        try:
            parse_cutoff(data.cutoff)
        except ValueError as error:
            raise ValueError(f"data.cutoff: {error}") from error


def config_dict(config: ConfigDict) -> dict:
    """Plain JSON-able dict of the config (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def config_hash(config: ConfigDict) -> str:
    """Hash of all that the config says; a checkpoint of another config is refused."""
    text = json.dumps(config_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_class(config: ConfigDict) -> type[nn.Module]:
    """The class that `config.model.name` names."""
    name = config.model.get("name", "")
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.3)
        raise ValueError(f"model.name={name!r} is not known: use {' or '.join(near or MODELS)}.")
    return MODELS[name]


def _fields(model: type[nn.Module]) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(model) if field.name not in ("parent", "name")}


def _defaults(model: type[nn.Module]) -> dict[str, Any]:
    """What a recipe may set of a model, with its defaults."""
    return {name: field.default for name, field in _fields(model).items() if name not in DECIDED_BY_RUN}


def reads_stays(config: ConfigDict) -> bool:
    """Whether the model takes windows of hospital stays: vital signs on a grid, notes (else codes)."""
    return getattr(model_class(config), "reads_stays", False)


def reads_notes(config: ConfigDict) -> bool:
    """Whether the model takes the notes of a stay."""
    return reads_stays(config) and "notes" in config.model.get("modalities", ())


def reads_tokens(config: ConfigDict) -> bool:
    """Whether the model takes token sequences (else visits, or stays)."""
    return config.model.name != "visit_lstm" and not reads_stays(config)


def is_causal(config: ConfigDict) -> bool:
    """Whether the model's state after a visit depends on nothing later, so that labels can stand at every visit."""
    return not config.model.get("bidirectional", False) and config.model.get("causal", True)


def make_model(config: ConfigDict, *, vocab_size: int, num_outputs: int, level: str = "patient") -> nn.Module:
    """The model of `config.model`, with the sizes that the data decide; either `level` has the same parameters."""
    model = model_class(config)
    fields = {name: value for name, value in config.model.to_dict().items() if name != "name"}
    decided = {"vocab_size": vocab_size, "level": level, "max_tokens": config.data.max_tokens}
    fields |= {name: value for name, value in decided.items() if name in _fields(model)}
    return model(num_outputs=num_outputs, **fields)


def make_optimizer(
    config: ConfigDict, *, num_steps: int, learning_rate: float | None = None
) -> tuple[optax.GradientTransformation, optimizer.Plateau | None]:
    """The optimiser of `config.optimizer`, and the plateau rule where the schedule is `plateau`."""
    fields = config.optimizer.to_dict()
    plateau = optimizer.Plateau() if fields["schedule"] == "plateau" else None
    if plateau:
        fields["schedule"] = "constant"
    if learning_rate is not None:
        fields["learning_rate"] = learning_rate
    fields["warmup_steps"] = min(fields["warmup_steps"], num_steps // 2)
    return optimizer.make_optimizer(num_steps=num_steps, **fields), plateau


@cache
def apply_fn(model: nn.Module) -> Callable[[Any, VisitBatch | TokenBatch], Outputs]:
    """`(params, batch) -> Outputs` without dropout; the same object for the same model, so that it compiles once."""
    return lambda params, batch: model.apply({"params": params}, batch)


def count_params(params: Any) -> int:
    """Number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
