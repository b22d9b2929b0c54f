"""Visit LSTM, small (E128 H256 L1): new type 2 diabetes within a year of a visit.

Run:     python -m experiments.run --config=configs/lstm_small.py
Quick:   python -m experiments.run --config=configs/lstm_small.py:debug     (a minute on a laptop)
Expect:  3 minutes on two CPU cores; test AUROC 0.833 [0.801, 0.862], logistic regression 0.808, boosting 0.862 on
         counts with time windows, and 0.886 for the oracle (6,000 simulated patients, 2026-11-22).
Own data: add --config.data.source=synthea --config.data.path=DIR           (or meds, mimic4, omop)
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug` (a tiny cohort and a few steps, to see that all parts work)."""
    config = ConfigDict()
    config.name = "lstm_small"

    config.data = ConfigDict()
    config.data.source = "simulate"  # simulate, synthea, meds, mimic4, omop
    config.data.path = ""  # one directory, or several separated by commas, pooled
    config.data.test_path = ""  # a separate test set; then `path` is split into train and val only
    config.data.num_patients = 6000  # simulator only
    config.data.seed = 0  # of the simulator and of the patient split
    config.data.visits = "hybrid"  # encounter, same_day, time_window, hybrid
    config.data.value_bins = 5  # quantile bins of numeric values, fitted on train; 0 = none
    config.data.min_count = 5  # codes rarer than this in train back off to their parent
    config.data.max_vocab = 10_000
    config.data.max_visits = 50  # oldest visits beyond this are dropped
    config.data.max_codes = 64  # codes of one visit beyond this are dropped
    config.data.max_tokens = 256  # models of tokens, and pre-training: longest sequence, hence length of packed rows
    config.data.split_fractions = (0.7, 0.15, 0.15)  # train, val, test; not used where the source brings its splits
    config.data.split = "patient"  # or temporal: train on what was known at the cut-off, test patients after it
    config.data.cutoff = "0.8"  # a date, or the share of visits that end before it; for split=temporal only

    config.stays = ConfigDict()  # models of hospital stays only
    config.stays.window_hours = 24.0  # how far a window reaches back from the index time, within the stay
    config.stays.bin_hours = 1.0
    config.stays.variables = ("vitals",)  # names, or sets of them: vitals (six), icu (37); ehrjax/data/variables.py
    config.stays.summaries = False  # True: values as ranks, and statistics of the window as inputs
    config.stays.mapping = ""  # a file that says which codes measure which variable, beside the shipped ones
    config.stays.notes = ""  # a table of notes, or several separated by commas; simulated stays bring their own
    config.stays.note_encoder = "minilm"  # minilm (vectors of sentences beside the lexicon), lexicon (findings alone)
    config.stays.note_weights = ""  # folder of the MiniLM weights; "": as installed

    config.model = ConfigDict()
    config.model.name = "visit_lstm"
    config.model.embed_dim = 128
    config.model.hidden_dim = 256
    config.model.num_layers = 1
    config.model.dropout_rate = 0.3
    config.model.pooling = "sum"  # mean, sum, max, attention
    config.model.bidirectional = False
    config.model.use_time_features = True  # age and days since the last visit beside the pooled codes

    config.pretrain = ConfigDict()
    config.pretrain.num_steps = 0  # 0: no pre-training
    config.pretrain.objectives = ConfigDict()  # weights of the sum; 0 leaves an objective out
    config.pretrain.objectives.mlm = 0.0  # masked codes; models of tokens only
    config.pretrain.objectives.next_visit = 1.0  # the code set of each next visit, in one causal pass
    config.pretrain.objectives.pooled_next_visit = 0.0  # the last visit from the pooled history before it
    config.pretrain.objectives.contrastive = 0.0  # two views of a patient
    config.pretrain.objectives.skip_gram = 0.0  # codes of neighbouring visits; med2vec only
    config.pretrain.mask_rate = 0.15  # in training; evaluation hides 15 %
    config.pretrain.predict_values = False  # True: a value bin is part of what is predicted, not only of what is read
    config.pretrain.learning_rate = 1e-3
    config.pretrain.batch_size = 16  # packed rows of data.max_tokens
    config.pretrain.seed = 0
    config.pretrain.eval_every = 200
    config.pretrain.patience = 5
    config.pretrain.log_every = 20
    config.pretrain.code_vectors = ""  # parquet with vectors of codes to start the embedding from, matched by name

    config.tasks = ("diabetes_onset",)
    # Tried in this order where none of `tasks` has enough positives in the data.
    config.fallback_tasks = ("readmission_30d", "mortality_1y", "next_visit_class", "length_of_stay")
    config.custom_tasks = ConfigDict()  # NAME -> fields of a code-list task, see ehrjax/data/tasks.py

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"  # cosine (after a linear warm-up), constant, plateau
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 1e-2
    config.optimizer.clip_norm = 1.0

    config.train = ConfigDict()
    config.train.num_steps = 1000
    config.train.batch_size = 64
    config.train.num_buckets = 4  # lengths that val and test are grouped by; train is packed, if not bidirectional
    config.train.every_visit = True  # train on all index visits of a patient in one pass, not on the few drawn ones
    config.train.label_fraction = 1.0  # share of the train patients whose labels are used
    config.train.lora_rank = 0  # above 0: only adapters of this rank and the head are trained
    config.train.lora_alpha = 16.0
    config.train.survival = "discrete"  # loss of survival tasks: discrete, piecewise, cox
    config.train.num_intervals = 12  # of follow-up, for the former two; edges at quantiles of train's event times
    config.train.num_seeds = 1  # models trained in one program, whose mean is what is tested
    config.train.seed = 0
    config.train.eval_every = 50
    config.train.patience = 6  # evaluations without a better validation score before training stops
    config.train.log_every = 10

    config.eval = ConfigDict()
    config.eval.num_resamples = 1000  # bootstrap over patients
    config.eval.baselines = ("prevalence", "visit_count", "logistic", "boosting")
    config.eval.maps = (
        "pca",
        "tsne",
        "umap",
    )  # of pre-trained patients; umap where it is installed
    config.eval.few_shot_draws = 10  # of a few labelled patients, for each number of them
    config.eval.masked_steps = 4000  # at most, of the logistic baseline of masked codes
    config.eval.min_positives = 10  # in train, and 3 in val and in test; fewer and the task is not trained

    if arg == "debug":
        config.data.num_patients = 300
        config.model.embed_dim = 16
        config.model.hidden_dim = 16
        config.train.num_buckets = 1
        config.train.num_steps = 20
        config.train.eval_every = 10
        config.eval.num_resamples = 50
        config.eval.masked_steps = 20
        config.eval.maps = ("pca",)
        config.eval.few_shot_draws = 2
    elif arg:
        raise ValueError(f"unknown variant {arg!r} of {config.name}: use no variant or `debug`")
    return config
