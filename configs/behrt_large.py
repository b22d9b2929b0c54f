"""BEHRT, large (E256 H512 L6 N8): the recipe of behrt_small.py with a larger model.

Run:     python -m experiments.run --config=configs/behrt_large.py
Cost:    made for a GPU: 18 s a step of pre-training on two shared CPU cores, four days for all (timed on some steps,
         2026-11-22; the whole recipe was not run).
"""

from ml_collections import ConfigDict

from configs import behrt_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`."""
    config = behrt_small.get_config(arg)
    config.name = "behrt_large"
    if arg != "debug":
        config.model.num_layers = 6
        config.data.num_patients = 20_000
        config.data.max_tokens = 1024
        config.model.embed_dim = 256
        config.model.hidden_dim = 512
        config.model.num_heads = 8
        config.pretrain.num_steps = 20_000
        config.pretrain.batch_size = 8
        config.pretrain.learning_rate = 1e-3
    return config
