"""Med2Vec (E64): code and visit vectors by skip-gram over visits, then new type 2 diabetes within a year.

Run:     python -m experiments.run --config=configs/med2vec.py
Quick:   python -m experiments.run --config=configs/med2vec.py:debug     (a minute on a laptop)
Reuse:   add --config.pretrain.code_vectors=runs/med2vec/code_vectors.parquet to another recipe of embed_dim 64
"""

from ml_collections import ConfigDict

from configs import behrt_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`."""
    config = behrt_small.get_config(arg)
    config.name = "med2vec"

    config.model = ConfigDict()
    config.model.name = "med2vec"
    config.model.embed_dim = 16 if arg == "debug" else 64
    config.model.dropout_rate = 0.1
    config.model.pooling = "last"  # last: mean of the visits so far; mean: the same of all visits
    config.model.causal = True

    config.pretrain.objectives.mlm = 0.0
    config.pretrain.objectives.next_visit = 0.0
    config.pretrain.objectives.skip_gram = 1.0
    config.pretrain.learning_rate = 1e-2
    return config
