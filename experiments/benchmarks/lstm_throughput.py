"""LSTM training throughput beside torch's packed `nn.LSTM`, in patients a second, on the CPU.

    python -m experiments.benchmarks.lstm_throughput [--size=small] [--source=lognormal|simulate|synthea]
        [--path=DIR,DIR...] [--threads=2] [--batch-size=64] [--num-patients=1536] [--rounds=5] [--clock=wall]
        [--poolings]

A round of every variant is one epoch over the same patients, with the same sizes, dropout, clipping and AdamW, in
float32. Batches are made before the clock starts and every shape is compiled before. Variants take turns, round after
round, so that a busy machine slows all alike; the table holds medians over rounds, and a ratio is the median of the
rounds' ratios. On a machine with other work `--threads=1 --clock=cpu` counts the process's CPU time instead: with
several threads torch's spin while they wait for a core, and wall time then flatters ours.

    torch padded    nn.Embedding [B V C D], masked pooling, pack_padded_sequence, nn.LSTM
    torch bags      the same with EmbeddingBag instead of padded codes (no attention pooling)
    torch bucketed  torch bags on our batches of patients of similar length
    padded          ours, every batch as long as the longest patient
    bucketed        ours, on batches of patients of similar length
    packed          ours as in the main job: rows of several patients, about as many patients a batch
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from ehrjax.types import VisitSequences

POOLINGS = ("mean", "sum", "max", "attention")
MAX_VISITS = 50
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def lognormal_sequences(num_patients: int, vocab_size: int = 1000, seed: int = 0) -> VisitSequences:
    """Made-up patients: log-normal visit counts of mean 19 (at most 50), about 6 codes a visit."""
    rng = np.random.default_rng(seed)
    visits = np.clip(np.round(rng.lognormal(2.65, 0.9, num_patients)), 1, MAX_VISITS).astype(int)
    codes = np.minimum(1 + rng.negative_binomial(0.8, 0.8 / 5.8, visits.sum()), 64)
    ids = 5 + np.minimum((vocab_size - 5) * rng.power(0.3, codes.sum()), vocab_size - 6)
    return _sequences(ids.astype(np.int32), codes, visits)


def record_sequences(source: str, paths: str, num_patients: int, folder: Path) -> tuple[VisitSequences, int]:
    """The last 50 visits of patients of a real or simulated record, and the vocabulary's size."""
    from ehrjax.data.build import build_store
    from ehrjax.data.labels import Labels
    from ehrjax.data.sequences import build_visit_sequences, drop_without_visits
    from ehrjax.data.simulate import write
    from ehrjax.data.store import StoreSettings
    from ehrjax.data.vocab import fit_vocabulary

    if source == "simulate":
        source, paths = "synthea", str(write(folder / "simulated", num_patients=num_patients))
    elif not paths:
        raise SystemExit(f"--source={source} needs --path=DIR[,DIR...]")
    store = build_store(source, paths, folder / "store", settings=StoreSettings())
    ids = np.sort(store.subject_ids)
    late = np.full(len(ids), np.datetime64("2200-01-01", "s").astype(np.int64))
    ones = np.ones((len(ids), 1))
    labels = Labels("all", "binary", ("y",), ids, late, ones.astype(np.float32), ones.astype(bool), late, {})
    labels = drop_without_visits(store, labels)
    drawn = np.random.default_rng(0).permutation(len(labels.subject_ids))[:num_patients]
    labels = labels.take(np.sort(drawn))
    vocab = fit_vocabulary(store, labels.subject_ids, min_count=5, max_size=10_000, value_bins=5)
    return build_visit_sequences(store, vocab, labels, max_visits=MAX_VISITS, max_codes=64), len(vocab)


class OurRun:
    """Train steps of our model on some batches, every shape compiled."""

    def __init__(self, model, batches):
        import jax

        from ehrjax.objectives.supervised import make_supervised_objective
        from ehrjax.train.optimizer import make_optimizer
        from ehrjax.train.state import create_state
        from ehrjax.train.step import make_train_step

        self.batches = [jax.device_put(batches.batch_at(step)) for step in range(batches.num_batches_per_epoch)]
        self.fill = 1.0 - batches.padding_fraction
        tx = make_optimizer(learning_rate=1e-3, num_steps=10_000)
        self.step = jax.jit(make_train_step(make_supervised_objective(model, "binary"), tx), donate_argnums=0)
        self.key = jax.random.key(0)
        params = jax.jit(model.init)(self.key, self.batches[0])["params"]
        # A donated state must not hold one buffer twice, and fresh optimiser states share their zeros.
        self.state = jax.tree.map(jax.numpy.copy, create_state(params, tx))
        self.train()

    def train(self) -> None:
        """One pass over the batches."""
        import jax

        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch, self.key)
        jax.block_until_ready((self.state, metrics))


class TorchRun:
    """The same with torch; `bags` takes EmbeddingBag instead of padded codes."""

    def __init__(self, model, batches, *, bags):
        import jax
        import torch

        from experiments.benchmarks.torch_lstm import to_bags, to_padded

        own = [batches.batch_at(step) for step in range(batches.num_batches_per_epoch)]
        own = [jax.tree.map(lambda x, rows=b.example_mask: x[rows], b) for b in own]  # torch cannot pack empty rows
        self.batches = [((to_bags if bags else to_padded)(b), torch.from_numpy(b.labels)) for b in own]
        self.fill = 1.0
        self.model = model.train()
        self.forward = model.forward_bags if bags else model.forward
        self.tx = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        self.train()

    def train(self) -> None:
        """One pass over the batches."""
        import torch

        for inputs, labels in self.batches:
            self.tx.zero_grad(set_to_none=True)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(self.forward(*inputs)[0], labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.tx.step()


def make_runs(sequences, vocab_size, args, pooling, *, only_main):
    """Variant name -> run."""
    from ehrjax.data.batching import VisitBatches
    from ehrjax.data.packing import pack_visits
    from ehrjax.models.visit_lstm import SIZES, VisitLstm
    from experiments.benchmarks.torch_lstm import TorchVisitLstm

    size = SIZES[args.size]
    ours = VisitLstm(vocab_size, **size, pooling=pooling)
    bucketed = VisitBatches(sequences, batch_size=args.batch_size)
    mixed = VisitBatches(sequences, batch_size=args.batch_size, num_buckets=1)

    def torch_run(batches, bags):
        return TorchRun(TorchVisitLstm(vocab_size, **size, pooling=pooling), batches, bags=bags)

    runs = {"torch padded": torch_run(mixed, False)}
    if pooling != "attention":
        runs["torch bags"] = torch_run(mixed, True)
    if not only_main:
        runs["torch bucketed"] = torch_run(bucketed, True)
        runs["padded"] = OurRun(ours, mixed)
        runs["bucketed"] = OurRun(ours, bucketed)
    rows = pack_visits(sequences).sequences
    rows_a_batch = round(args.batch_size * len(rows.subject_ids) / len(sequences.subject_ids))
    packed = VisitBatches(rows, batch_size=rows_a_batch, num_buckets=1, level="visit")
    runs["packed"] = OurRun(VisitLstm(vocab_size, **size, pooling=pooling, level="visit"), packed)
    return runs


def measure(runs, num_patients, rounds, clock):
    """Variant -> patients a second in each round."""
    rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run.train()
            rates[name].append(num_patients / (clock() - start))
    return {name: np.array(values) for name, values in rates.items()}


def print_table(title, runs, rates):
    """Medians, and ratios to both torch baselines."""
    print(f"\n{title}\n{'':16}{'patients/s':>12}{'visit slots used':>18}{'x torch padded':>16}{'x torch bags':>14}")
    for name, run in runs.items():
        ratios = [
            f"{np.median(rates[name] / rates[base]):.2f}" if base in rates else "-"
            for base in ("torch padded", "torch bags")
        ]
        print(f"{name:16}{np.median(rates[name]):12.0f}{run.fill:18.0%}{ratios[0]:>16}{ratios[1]:>14}")


def main(argv=None):
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=("small", "medium", "large"))
    parser.add_argument("--source", default="lognormal", help="lognormal, simulate, or a reader's name with --path")
    parser.add_argument("--path", default="", help="folders of tables, separated by commas")
    parser.add_argument("--num-patients", type=int, default=1536, help="an epoch's patients")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--poolings", action="store_true", help="the four poolings instead of the variants")
    args = parser.parse_args(argv)
    # XLA sizes its pool by the cores it may use, once, so this comes before JAX is imported.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import torch

    torch.set_num_threads(args.threads)
    if args.source == "lognormal":
        sequences, vocab_size = lognormal_sequences(args.num_patients), 1000
    else:
        with tempfile.TemporaryDirectory() as folder:
            sequences, vocab_size = record_sequences(args.source, args.path, args.num_patients, Path(folder))
    visits, codes = np.diff(sequences.example_offsets), np.diff(sequences.visit_offsets)
    print(
        f"{args.source}: {len(visits)} patients, {visits.mean():.1f} visits each (median {np.median(visits):.0f}), "
        f"{codes.mean():.1f} codes a visit, vocabulary {vocab_size};\nbatches of {args.batch_size}, "
        f"{args.threads} threads, {args.clock} time, medians of {args.rounds} rounds"
    )
    for pooling in POOLINGS if args.poolings else ("mean",):
        runs = make_runs(sequences, vocab_size, args, pooling, only_main=args.poolings)
        print_table(
            f"{args.size}, {pooling} pooling", runs, measure(runs, len(visits), args.rounds, CLOCKS[args.clock])
        )


def _sequences(codes, codes_each, visits_each) -> VisitSequences:
    """Sequences with random labels, and no times."""
    count, zeros = len(visits_each), np.zeros(len(codes_each), np.float32)
    labels = np.random.default_rng(1).integers(0, 2, (count, 1)).astype(np.float32)
    return VisitSequences(
        codes=codes,
        visit_offsets=np.concatenate([[0], np.cumsum(codes_each)]),
        example_offsets=np.concatenate([[0], np.cumsum(visits_each)]),
        ages=zeros,
        gap_days=zeros,
        subject_ids=np.arange(count),
        times=np.zeros(count, np.int64),
        labels=labels,
        label_mask=np.ones_like(labels, bool),
    )


if __name__ == "__main__":
    main()
