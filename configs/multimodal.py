"""Vital signs and clinical notes: fusion LSTM for deterioration in the next 24 hours of a stay, and what each adds.

Run:     python -m experiments.run --config=configs/multimodal.py
Quick:   python -m experiments.run --config=configs/multimodal.py:debug     (a minute on a laptop)
Data:    simulated stays whose notes tell what vital signs do not, and the reverse; some stays lack either. The model is
         trained three times, on both and on each alone, beside the oracle of each.
Notes:   a note is the mean vector of its sentences by all-MiniLM-L6-v2, beside what a lexicon finds stated and denied;
         a window has the mean of its notes, the latest weighing most (half as much a day later), scaled as train says.
         The weights (90 MB) are found as ehrjax/models/minilm_weights.py says; an error tells the ways to get them.
         --config.stays.note_encoder=lexicon reads the lexicon's findings alone, as the quick form does.
Expect:  4 min from nothing on two quiet CPU cores, a quarter of it for the vectors of 40,200 sentences. 4,000
         patients, 486 of them in test, 2026-11-22; AUROC, of the oracle, and of both less that of the form:
             vitals    0.804 [0.769, 0.837]    0.825    +0.037 [+0.011, +0.063]
             notes     0.674 [0.637, 0.712]    0.741    +0.167 [+0.133, +0.202]
             both      0.841 [0.815, 0.866]    0.871
         Boosting on both 0.830 [0.804, 0.856] (model less it +0.011 [-0.002, +0.022]), logistic 0.807 [0.778, 0.834].
Tried:   MiniLM of whole notes, each weighing the same, 1,500 patients: vitals 0.792, notes 0.613, both 0.779.
         Logistic regression on what a window has of notes, AUROC on val / test:
             1,500 patients    whole notes, equal weights         0.639 / 0.585
                               whole notes, latest weighing most  0.665 / 0.623   (as in all that follows)
                               sentences                          0.708 / 0.628
                               lexicon                            0.735 / 0.635
                               sentences and lexicon              0.744 / 0.643
             4,000 patients    sentences                          0.714 / 0.678
                               lexicon                            0.705 / 0.651   (equal weights 0.684 / 0.633)
                               sentences and lexicon              0.727 / 0.680
                               the true statements                0.756 / 0.715
         Half-life, by the true statements on val: 6 h 0.728, 12 h 0.747, 24 h 0.756, 48 h 0.753, none 0.733.
         The notes branch alone on sentences, 600 steps: 0.682 / 0.649 at a learning rate of 1e-3 and weight decay of
         0.01, 0.693 / 0.659 at 3e-3 and 0.3, 0.683 / 0.644 with dropout of the vector, 0.702 / 0.673 whitened; with the
         lexicon, at 2e-3 and 0.3, 0.728 / 0.667.
Own data: as in vitals_lstm.py, and --config.stays.notes=FILE[,FILE...] (CSV, Parquet, JSONL, MEDS text_value).
"""

from ml_collections import ConfigDict

from configs import vitals_lstm


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys that are not named here are explained in vitals_lstm.py."""
    config = vitals_lstm.get_config(arg)
    config.name = "multimodal"
    config.model.modalities = ("vitals", "notes")
    config.model.modality_dropout_rate = 0.1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.3
    if arg == "debug":
        config.stays.note_encoder = "lexicon"
    else:
        config.train.num_steps = 400
        config.data.num_patients = 4000  # notes tell little in few patients, and rows of one stay are much alike
    return config
