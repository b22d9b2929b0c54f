"""Hierarchical transformer, large (E256 H512, 6 layers over codes, 3 over visits).

Run:     python -m experiments.run --config=configs/hierarchical_large.py
Cost:    made for a GPU: 8 s a step of pre-training on two shared CPU cores, two days for all (timed on some steps,
         2026-11-22; the whole recipe was not run).
"""

from ml_collections import ConfigDict

from configs import behrt_large, hierarchical_small


def get_config(arg: str = "") -> ConfigDict:
    """The model of hierarchical_small.py, larger, in the recipe of behrt_large.py; `arg` is empty or `debug`."""
    config = behrt_large.get_config(arg)
    config.name = "hierarchical_large"
    config.model = hierarchical_small.get_config(arg).model
    if arg != "debug":
        config.model.num_visit_layers = 6
        config.model.num_sequence_layers = 3
        config.model.embed_dim = 256
        config.model.hidden_dim = 512
        config.model.num_heads = 8
    return config
