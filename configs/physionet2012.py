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
    config.stays.bin_hours = 4.0
    config.stays.variables = ("icu",)
    config.stays.summaries = True

    config.model = ConfigDict()
    config.model.name = "stay_network"  # ramps over summaries of the window beside an LSTM over its bins
    config.model.hidden_dim = 64
    config.model.num_ramps = 4
    config.model.dropout_rate = 0.5
    config.model.feature_dropout_rate = 0.4
    config.model.series_dropout_rate = 0.3

    config.tasks = ("in_hospital_death_48h",)
    config.fallback_tasks = ()

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 60
    config.optimizer.weight_decay = 0.5
    config.train.num_steps = 600
    config.train.batch_size = 200
    config.train.patience = 12  # as many as there are: the schedule ends before
    config.train.num_seeds = 5

    if arg == "debug":
        config.model.hidden_dim = 8
        config.train.num_steps = 20
        config.train.num_seeds = 2
    return config
