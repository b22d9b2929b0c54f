"""Clinical tasks on one pre-trained model: diagnoses, readmission, mortality, progression, length of stay.

Run:     python -m experiments.run --config=configs/clinical_tasks.py
Quick:   python -m experiments.run --config=configs/clinical_tasks.py:debug
Model:   BEHRT small, pre-trained once as in behrt_small.py and fine-tuned on each task. Index rules, windows and
         exclusions of the tasks: ehrjax/data/tasks.py.
"""

from ml_collections import ConfigDict

from configs import behrt_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys are explained in lstm_small.py and behrt_small.py."""
    config = behrt_small.get_config(arg)
    config.name = "clinical_tasks"
    config.tasks = (
        "diabetes_onset",
        "conditions_1y",
        "mortality_1y",
        "readmission_30d",
        "time_to_ckd_hf",
        "length_of_stay",
    )
    return config
