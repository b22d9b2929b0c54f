"""PhysioNet / CinC Challenge 2012: death in hospital from the first 48 hours of an ICU stay, all 37 variables.

Run:     python -m experiments.run --config=configs/physionet2012.py --config.data.path=DIR
         python -m experiments.run --config=configs/physionet2012.py --config.data.path=DIR --config.data.test_path=DIR2
Quick:   the same with configs/physionet2012.py:debug
Data:    DIR holds folders of text files, or set-a.tar.gz, with Outcomes-a.txt beside them (all sets in DIR are used);
         without test_path, 15 % of the patients are held out. https://physionet.org/content/challenge-2012/
Score:   event1 is the challenge's: the lesser of sensitivity and positive predictivity, the threshold chosen on val.
"""

from ml_collections import ConfigDict

from configs import lstm_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys that are not named here are explained in lstm_small.py."""
    config = lstm_small.get_config(arg)
    config.name = "physionet2012"
    config.data.source = "physionet2012"
    config.data.value_bins = 0  # codes are not read

    config.stays.window_hours = 48.0
    config.stays.bin_hours = 2.0
    config.stays.variables = ("icu",)

    config.model = ConfigDict()
    config.model.name = "fusion_lstm"
    config.model.modalities = ("vitals",)
    # What was measured, and how long ago, carries much of the signal.
    config.model.inputs = ("values", "observed", "hours_since", "statics")
    config.model.hidden_dim = 64
    config.model.num_layers = 2
    config.model.dropout_rate = 0.4

    config.tasks = ("in_hospital_death_48h",)
    config.fallback_tasks = ()

    config.optimizer.learning_rate = 1e-3
    config.train.num_steps = 1500
    config.train.batch_size = 64
    config.train.patience = 8

    if arg == "debug":
        config.stays.bin_hours = 8.0
        config.model.hidden_dim = 8
        config.model.num_layers = 1
        config.train.num_steps = 20
    return config
