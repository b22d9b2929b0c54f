"""From a ConfigDict to the library's objects: below this file functions take plain keyword arguments.

The reference for the keys is `configs/lstm_small.py`; a recipe may leave out what it does not change.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import lstm_small

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
    return reference


def config_dict(config: ConfigDict) -> dict:
    """Plain JSON-able dict of the config (tuples become lists)."""
    return json.loads(config.to_json_best_effort())


def config_hash(config: ConfigDict) -> str:
    """Hash of all that the config says; a checkpoint of another config is refused."""
    text = json.dumps(config_dict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
