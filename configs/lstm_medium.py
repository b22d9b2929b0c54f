"""Visit LSTM, medium (E256 H512 L2): the recipe of lstm_small.py with a larger model.

Run:     python -m experiments.run --config=configs/lstm_medium.py
Expect:  8 minutes on two CPU cores; test AUROC 0.844 [0.824, 0.864], logistic regression 0.792 [0.768, 0.813], boosting
         0.814 [0.791, 0.835] (both without time windows), oracle 0.865 (20,000 simulated patients, 2026-11-21).
"""

from ml_collections import ConfigDict

from configs import lstm_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`."""
    config = lstm_small.get_config(arg)
    config.name = "lstm_medium"
    config.model.num_layers = 2
    config.model.dropout_rate = 0.3
    if arg != "debug":
        config.data.num_patients = 20_000
        config.train.num_steps = 700
        config.model.embed_dim = 256
        config.model.hidden_dim = 512
    return config
