"""Hierarchical transformer, small (E64 H128, 2 layers over codes, 1 over visits): the recipe of behrt_small.py.

Run:     python -m experiments.run --config=configs/hierarchical_small.py
Quick:   python -m experiments.run --config=configs/hierarchical_small.py:debug     (a minute on a laptop)
"""

from ml_collections import ConfigDict

from configs import behrt_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`."""
    config = behrt_small.get_config(arg)
    config.name = "hierarchical_small"
    is_debug = arg == "debug"

    config.model = ConfigDict()
    config.model.name = "hierarchical"
    config.model.embed_dim = 16 if is_debug else 64
    config.model.hidden_dim = 16 if is_debug else 128
    config.model.num_visit_layers = 2
    config.model.num_sequence_layers = 1
    config.model.num_heads = 2 if is_debug else 4
    config.model.dropout_rate = 0.1
    config.model.pooling = "last"  # last, mean, max
    config.model.causal = True
    return config
