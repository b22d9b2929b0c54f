"""Survival: days to diabetes, to kidney disease or heart failure, to readmission (death competing), to death.

Run:     python -m experiments.run --config=configs/survival.py
Quick:   python -m experiments.run --config=configs/survival.py:debug
Expect:  31 minutes on one busy CPU core. 6,000 simulated patients, 2026-11-22, test patients, C-index with 95 %
         intervals: kidney disease or heart failure 0.833 [0.787, 0.875], boosting on counts with time windows 0.834,
         logistic 0.828, oracle 0.845; diabetes 0.788 [0.761, 0.814], 0.778, 0.746, 0.806; death 0.904 [0.860, 0.941],
         0.906, 0.902, 0.919; readmission 0.760 [0.722, 0.793], below boosting's 0.778 and logistic 0.776, oracle
         0.808.
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
