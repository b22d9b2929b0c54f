"""Vital signs and clinical notes: fusion LSTM for deterioration in the next 24 hours of a stay, and what each adds.

Run:     python -m experiments.run --config=configs/multimodal.py
Quick:   python -m experiments.run --config=configs/multimodal.py:debug     (a minute on a laptop)
Data:    simulated stays whose notes tell what vital signs do not, and the reverse; some stays lack either. The model is
         trained three times, on both and on each alone, beside the oracle of each.
Notes:   a note is the mean vector of its sentences by all-MiniLM-L6-v2, beside what a lexicon finds stated and denied;
         a window has the mean of its notes, the latest weighing most (half as much a day later), scaled as train says.
         The weights (90 MB) are found as ehrjax/models/minilm_weights.py says; an error tells the ways to get them.
         --config.stays.note_encoder=lexicon reads the lexicon's findings alone, as the quick form does.
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
