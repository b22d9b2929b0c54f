"""Hierarchical transformer, medium (E128 H256, 4 layers over codes, 2 over visits).

Run:     python -m experiments.run --config=configs/hierarchical_medium.py
Cost:    0.9 s a step of pre-training and as much of fine-tuning on two shared CPU cores, 55 min for both (timed on
         some steps, 2026-11-22; the whole recipe was not run).
"""

from ml_collections import ConfigDict

from configs import behrt_medium, hierarchical_small


def get_config(arg: str = "") -> ConfigDict:
    """The model of hierarchical_small.py, larger, in the recipe of behrt_medium.py; `arg` is empty or `debug`."""
    config = behrt_medium.get_config(arg)
    config.name = "hierarchical_medium"
    config.model = hierarchical_small.get_config(arg).model
    if arg != "debug":
        config.model.num_visit_layers = 4
        config.model.num_sequence_layers = 2
        config.model.embed_dim = 128
        config.model.hidden_dim = 256
        config.model.num_heads = 8
    return config
