"""BEHRT, small (E64 H128 L2 N4): masked-code and next-visit pre-training, then new type 2 diabetes within a year.

Run:     python -m experiments.run --config=configs/behrt_small.py
Quick:   python -m experiments.run --config=configs/behrt_small.py:debug     (a minute on a laptop)
Expect:  12 min 49 s on two CPU cores. 6,000 simulated patients, 2026-11-22, test patients, 95 % intervals: masked codes
         0.691 [0.687, 0.695], multinomial logistic on the visit's other codes 0.337, same type 0.125, unigram
         0.040 (val 0.691); next visit micro-F1 0.401 [0.398, 0.404], global frequency 0.361, patient history
         0.334, repeat last 0.333 (val 0.399); recall@10 0.339, patient history 0.280; diabetes onset AUROC
         0.871 [0.841, 0.897], boosting on counts with time windows 0.859 (difference +0.012 [-0.001, +0.026]),
         logistic 0.807, oracle 0.886. Patients' vectors by their diagnoses: precision at 10 neighbours 0.550
         (chance 0.369), silhouette 0.028.
         Eight pooled Synthea extracts, 1,630 patients, 800 steps, 252 test patients, 2026-11-22: masked codes 0.733
         [0.694, 0.774], logistic 0.508, same type 0.164, unigram 0.051; next visit micro-F1 0.611 [0.573, 0.650],
         patient history 0.402; recall@10 0.754 [0.716, 0.789], 0.639; with 15 % masked 0.721, 0.607, 0.749.
         Other real data, before 30 % of the codes were masked in place of 15 %. Trained on five Synthea extracts
         without observations, tested on three others (1,130 patients of other versions, 2026-11-22): masked
         codes 0.589 [0.568, 0.609], logistic 0.377, same type 0.186, unigram 0.038; next visit micro-F1 0.587 [0.568,
         0.608], patient history 0.530; recall@10 0.784 [0.767, 0.800], below patient history's 0.803: 53 % of the
         three's events have codes that train lacks (all observations) and are [UNK] to the model. Tested on own
         hold-out of the five (2026-11-21): 0.787 [0.748, 0.824], logistic 0.477; F1 0.540 [0.500, 0.576], 0.354;
         recall@10 0.653 [0.608, 0.697], 0.513. A simulated MEDS set of 10,000 that is mostly noise (2026-11-22): masked
         codes 0.420 [0.400, 0.440], logistic 0.280; F1 0.307 [0.291, 0.321], patient history 0.214; recall@10 0.494
         [0.479, 0.508], 0.426. Few labels: experiments/benchmarks/label_efficiency.py, figures in README.md.
Tried:   400 steps, single runs, 2026-11-22, test accuracy of masked codes and loss of the next visit in nats:

                                                five Synthea extracts    simulated patients
             15 % of the codes masked               0.650  2.73             0.604  3.21
             - 30 % (taken since)                   0.689  2.70             0.630  3.20
             - rate 1e-3                            0.577  2.97             0.520  3.23
             - rate 6e-3                            0.624  2.78             0.564  3.23
             - constant rate                        0.652  2.77
             - rows of 128                          0.672  2.73
             - min_count 1                          0.672  2.85
             - min_count 25 (fewer codes)           0.657  2.62
             - no value bins in place of 5          0.650  2.73             0.644  3.20
             - 10 value bins                                                0.613  3.20

         At full length 30 % gave 0.691, 15 % 0.685; evaluation always hides 15 %. Value bins stay, since values tell of
         diseases; predicted as well as read they gave 0.39 after 2,400 steps and next-visit F1 0.254, since most bins
         are noise. Learned positions without visit heads: 0.05 after 1,000 steps (models/behrt.py). Code embeddings
         from N(0, 0.02): 0.118 after 500 steps, from N(0, 0.1) 0.182 after 300. Rate 5e-3 fell behind 2e-3 (0.154,
         0.175; before rotary positions); 3e-3 taken since.
Own data: add --config.data.source=synthea --config.data.path=DIR[,DIR...]   (or meds, mimic4, omop)
"""

from ml_collections import ConfigDict

from configs import lstm_small


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is empty or `debug`. Keys that are not named here are explained in lstm_small.py."""
    config = lstm_small.get_config(arg)
    config.name = "behrt_small"

    config.data.max_visits = 1000  # max_tokens decides what is dropped
    config.data.max_tokens = 256

    config.model = ConfigDict()
    config.model.name = "behrt"
    config.model.embed_dim = 64
    config.model.hidden_dim = 128
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.dropout_rate = 0.1
    config.model.pooling = "last"  # last ([SEP] of the last visit), cls, mean, max
    config.model.causal = True  # fine-tuning reads labels at every visit of a causal pass

    config.pretrain.num_steps = 1600
    config.pretrain.objectives.mlm = 1.0
    config.pretrain.objectives.next_visit = 1.0
    config.pretrain.mask_rate = 0.3  # double of what is usual: see above
    config.pretrain.learning_rate = 3e-3
    config.pretrain.batch_size = 8

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 100
    config.train.num_steps = 400
    config.train.batch_size = 16  # packed rows of data.max_tokens

    if arg == "debug":
        config.data.max_tokens = 64
        config.model.embed_dim = 16
        config.model.hidden_dim = 16
        config.model.num_heads = 2
        config.pretrain.num_steps = 20
        config.pretrain.eval_every = 10
        config.pretrain.batch_size = 4
        config.train.num_steps = 10
        config.train.eval_every = 5
        config.train.batch_size = 4
    return config
