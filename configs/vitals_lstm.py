"""Vital signs alone: an LSTM over the last 24 hours of a hospital stay, for deterioration in the next 24.

Run:     python -m experiments.run --config=configs/vitals_lstm.py
Quick:   python -m experiments.run --config=configs/vitals_lstm.py:debug     (a minute on a laptop)
Data:    simulated stays with vital signs (their notes are for multimodal.py); one row every six hours of a stay.
Own data: add --config.data.source=mimic4 --config.data.path=DIR (or synthea, omop, meds) and tasks of that data, e.g.
         --config.tasks="('mortality_1y',)", or label files (custom_tasks); stays.mapping names codes of your own.
"""

from ml_collections import ConfigDict

from configs import lstm_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys that are not named here are explained in lstm_small.py."""
    config = lstm_small.get_config(arg)
    config.name = "vitals_lstm"
    config.data.num_patients = 1500
    config.data.value_bins = 0  # codes are not read

    config.model = ConfigDict()
    config.model.name = "fusion_lstm"
    config.model.modalities = ("vitals",)
    config.model.inputs = ("values", "observed", "hours_since")  # of each variable at each hour
    config.model.hidden_dim = 128
    config.model.num_layers = 2
    config.model.dropout_rate = 0.3

    config.tasks = ("deterioration_24h",)
    config.fallback_tasks = ()

    config.train.num_steps = 600
    config.train.batch_size = 128
    config.train.patience = 4

    if arg == "debug":
        config.data.num_patients = 150
        config.train.num_steps = 20
        config.model.hidden_dim = 16
        config.model.num_layers = 1
    return config
