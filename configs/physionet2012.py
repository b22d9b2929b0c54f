"""PhysioNet / CinC Challenge 2012: death in hospital from the first 48 hours of an ICU stay, all 37 variables.

Run:     python -m experiments.run --config=configs/physionet2012.py --config.data.path=DIR
         python -m experiments.run --config=configs/physionet2012.py --config.data.path=DIR --config.data.test_path=DIR2
Quick:   the same with configs/physionet2012.py:debug
Data:    DIR holds folders of text files, or set-a.tar.gz, with Outcomes-a.txt beside them (all sets in DIR are used);
         without test_path, 15 % of the patients are held out. https://physionet.org/content/challenge-2012/
Expect:  5 minutes on one busy CPU core (reading the files apart). Sets a and b (8,000 stays), 1,173 of them held out,
         2026-11-22: AUROC 0.890 [0.864, 0.913], boosting on the same inputs 0.885 (difference +0.004 [-0.009, +0.017]),
         logistic 0.870; AUPRC 0.557 [0.476, 0.630], 0.559, 0.500; Brier 0.084, 0.084, 0.090; event1 0.530 [0.460,
         0.598], 0.514, 0.497. Single members have AUROC 0.888 (sd 0.002 of five).
Tried:   fusion_lstm on values, masks and hours since in bins of 2 h, no summaries: AUROC 0.875 [0.847, 0.899], event1
         0.509.
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
