"""BEHRT, small (E64 H128 L2 N4): masked-code and next-visit pre-training, then new type 2 diabetes within a year.

Run:     python -m experiments.run --config=configs/behrt_small.py
Quick:   python -m experiments.run --config=configs/behrt_small.py:debug     (a minute on a laptop)
Own data: add --config.data.source=synthea --config.data.path=DIR[,DIR...]   (or meds, mimic4, omop)
"""

from ml_collections import ConfigDict

from configs import lstm_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys that are not named here are explained in lstm_small.py."""
    config = lstm_small.get_config(arg)
    config.name = "behrt_small"

    config.data.max_visits = 1000  # max_tokens decides what is dropped
    config.data.max_tokens = 256

    config.model = ConfigDict()
    config.model.name = "behrt"
    config.model.embed_dim = 64
    config.model.hidden_dim = 128
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.dropout_rate = 0.1
    config.model.pooling = "last"  # last ([SEP] of the last visit), cls, mean, max
    config.model.causal = True  # fine-tuning reads labels at every visit of a causal pass

    config.pretrain.num_steps = 1600
    config.pretrain.objectives.mlm = 1.0
    config.pretrain.objectives.next_visit = 1.0
    config.pretrain.learning_rate = 3e-3
    config.pretrain.batch_size = 8  # small: at the start, steps count for more than codes

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    config.train.num_steps = 400
    config.train.batch_size = 16  # packed rows of data.max_tokens

    if arg == "debug":
        config.data.max_tokens = 64
        config.model.embed_dim = 16
        config.model.hidden_dim = 16
        config.model.num_heads = 2
        config.pretrain.num_steps = 20
        config.pretrain.eval_every = 10
        config.pretrain.batch_size = 4
        config.train.num_steps = 10
        config.train.eval_every = 5
        config.train.batch_size = 4
    return config
