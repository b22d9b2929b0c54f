"""Survival: days to diabetes, to kidney disease or heart failure, to readmission (death competing), to death.

Run:     python -m experiments.run --config=configs/survival.py
Quick:   python -m experiments.run --config=configs/survival.py:debug
Model:   BEHRT small, pre-trained as in behrt_small.py; hazards in discrete time (--config.train.survival=piecewise, or
         cox). Index rules, horizons and exclusions of the tasks: ehrjax/data/tasks.py.
"""

from ml_collections import ConfigDict

from configs import behrt_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys are explained in lstm_small.py and behrt_small.py."""
    config = behrt_small.get_config(arg)
    config.name = "survival"
    config.tasks = ("time_to_ckd_hf", "time_to_diabetes", "time_to_readmission", "time_to_death")
    return config
