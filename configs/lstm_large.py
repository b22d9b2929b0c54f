"""Visit LSTM, large (E512 H1024 L3): the recipe of lstm_small.py with a larger model.

Run:     python -m experiments.run --config=configs/lstm_large.py
Cost:    1.7 s a step on two shared CPU cores, half an hour at most (timed on some steps, 2026-11-22; the whole recipe
         was not run).
"""

from ml_collections import ConfigDict

from configs import lstm_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`."""
    config = lstm_small.get_config(arg)
    config.name = "lstm_large"
    config.model.num_layers = 3
    config.model.dropout_rate = 0.4
    if arg != "debug":
        config.data.num_patients = 20_000
        config.model.embed_dim = 512
        config.model.hidden_dim = 1024
    return config
