"""BEHRT, medium (E128 H256 L4 N8): the recipe of behrt_small.py with a larger model.

Run:     python -m experiments.run --config=configs/behrt_medium.py
Cost:    1.9 s a step of pre-training and 1.8 s of fine-tuning on two shared CPU cores, 1 h 50 min for both (timed on
         some steps, 2026-11-22; the whole recipe was not run).
"""

from ml_collections import ConfigDict

from configs import behrt_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`."""
    config = behrt_small.get_config(arg)
    config.name = "behrt_medium"
    if arg != "debug":
        config.model.num_layers = 4
        config.data.num_patients = 20_000
        config.data.max_tokens = 512
        config.model.embed_dim = 128
        config.model.hidden_dim = 256
        config.model.num_heads = 8
        config.pretrain.num_steps = 3_000
        config.pretrain.batch_size = 8
        config.pretrain.learning_rate = 1e-3
    return config
