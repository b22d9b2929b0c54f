"""BEHRT masked-code training beside torch's `nn.TransformerEncoder`, in real tokens a second.

    python -m experiments.benchmarks.behrt_throughput [--size=small|medium|large|all] [--batch-size=ROWS]
        [--lengths=DIR] [--threads=2] [--rounds=5] [--steps=4] [--clock=wall|cpu] [--keep-memory]
    python -m experiments.benchmarks.behrt_throughput --device=gpu    (see behrt_gpu.py)

A step is forward, backward, clipping and AdamW; sizes, data, dropout and masking (15 %) are the same, in float32.
Batches are made before the clock starts and every shape is compiled before. Variants take turns, round after round, so
that a busy machine slows all alike; the table holds medians over rounds, and a ratio is the median of the rounds'
ratios. Only `torch stock` has dropout on attention probabilities (with it torch leaves its fused attention). On a
machine with other work `--threads=1 --clock=cpu` counts the process's CPU time instead.

    torch padded    nn.TransformerEncoder, one patient a row padded to T, logits at every position: what is usual
    torch stock     the same with torch's own settings: dropout also on attention probabilities and inside the
                    feed-forward, GELU by erf (the others have neither dropout, and the tanh formula)
    torch packed    scaled_dot_product_attention over packed rows, logits at the masked positions alone
    packed          ours on the same packed rows, the same model (learned positions, all heads see the patient)
    packed, recipe  ours as the recipes have it: rotary positions, half of the heads see their own visit
    .. / few        packed rows again, but as many patients a batch as the padded one has, so fewer rows

Measured on two CPU threads, wall time, quiet machine, 2026-11-22, `packed` over torch stock / padded / packed: small
4.39 / 3.41 / 1.38; medium (32 rows) 2.90 / 2.17 / 0.96, again 1.01; large (32 rows) 4.11 / 2.34 / 0.94, again 1.08.
With whole batches instead of chunks (objectives/chunks.py) it was medium 2.17 / 1.53 / 0.66 and large 2.01 / 1.34 /
0.51: page faults and cache misses of activations that grow with the rows. Torch packed has 2.2 to 2.6 of torch padded
itself.

`--keep-memory` tells malloc to keep freed memory instead of handing it back to the system, for both sides: without
chunks that was worth 20 %, with them nothing.
`--lengths` takes the lengths of the patients of a store (ehrjax.data.build) instead of log-normal ones.
"""

import argparse
import ctypes
import os
import time
from functools import partial

import numpy as np

from ehrjax.types import VisitSequences

VOCAB_SIZE = 1000
BATCH_SIZES = {"small": 16, "medium": 32, "large": 64}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MASK_RATE = 0.15
SAME_MODEL = {"position": "learned", "visit_heads": False}


def lognormal_lengths(num_patients: int, max_tokens: int, seed: int = 0) -> np.ndarray:
    """Tokens a patient: log-normal, cut at `max_tokens`, about 47 % of it on average."""
    rng = np.random.default_rng(seed)
    return np.clip(np.round(rng.lognormal(np.log(0.4 * max_tokens), 0.8, num_patients)), 4, max_tokens).astype(int)


def make_sequences(lengths: np.ndarray, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> VisitSequences:
    """Made-up patients of so many tokens each ([CLS], codes, a [SEP] a visit), about five codes a visit."""
    rng = np.random.default_rng(seed)
    visits = np.maximum((lengths - 1) // 6, 1)
    codes = lengths - 1 - visits
    owner = np.repeat(np.arange(len(lengths)), codes)
    first = np.concatenate([[0], np.cumsum(visits)])
    codes_each = np.bincount(first[owner] + rng.integers(0, visits[owner]), minlength=first[-1])
    ids = 5 + np.minimum((vocab_size - 5) * rng.power(0.3, codes.sum()), vocab_size - 6)
    return VisitSequences(
        codes=ids.astype(np.int32),
        visit_offsets=np.concatenate([[0], np.cumsum(codes_each)]),
        example_offsets=first,
        ages=rng.uniform(0, 90, first[-1]).astype(np.float32),
        gap_days=rng.uniform(0, 400, first[-1]).astype(np.float32),
        subject_ids=np.arange(len(lengths)),
        times=np.zeros(len(lengths), np.int64),
        labels=np.zeros((len(lengths), 0), np.float32),
        label_mask=np.zeros((len(lengths), 0), bool),
    )


def store_lengths(path: str, max_tokens: int, num_patients: int) -> np.ndarray:
    """Tokens of patients of a store, cut at `max_tokens`."""
    from ehrjax.data.sequences import build_patient_sequences
    from ehrjax.data.store import open_store
    from ehrjax.data.token_batching import count_tokens
    from ehrjax.data.vocab import fit_vocabulary

    store = open_store(path)
    vocab = fit_vocabulary(store, store.subject_ids, min_count=5, max_size=10_000)
    tokens = count_tokens(build_patient_sequences(store, vocab, store.subject_ids))
    return np.clip(np.random.default_rng(0).permutation(tokens)[:num_patients], 4, max_tokens)


def one_a_row(sequences, max_tokens, batch_size, num_batches):
    """Padded batches: patients in a random order, one a row."""
    from ehrjax.data.token_batching import TokenBatches
    from ehrjax.data.windows import take_examples

    batches = []
    for number in range(num_batches):
        members = np.arange(batch_size)[:, None] + number * batch_size
        alone = [TokenBatches(take_examples(sequences, m), **_options(max_tokens, 1)).batch_at(0) for m in members]
        fields = ("tokens", "ages", "visit_ids", "positions", "segment_ids")
        stacked = {name: np.concatenate([getattr(batch, name) for batch in alone]) for name in fields}
        masked = type(alone[0].masked)(*map(np.concatenate, zip(*(batch.masked for batch in alone), strict=True)))
        batches.append(alone[0]._replace(**stacked, masked=masked))
    return batches


def packed_batches(sequences, max_tokens, batch_size, num_batches):
    """Full batches of packed rows."""
    from ehrjax.data.token_batching import TokenBatches

    batches = TokenBatches(sequences, **_options(max_tokens, batch_size))
    every = (batches.batch_at(step) for step in range(batches.num_batches_per_epoch))
    return [batch for batch in every if batch.example_mask.all()][:num_batches]


def _options(max_tokens, batch_size):
    return {"row_tokens": max_tokens, "batch_size": batch_size, "mask_rate": MASK_RATE, "vocab_size": VOCAB_SIZE}


class OurRun:
    """Train steps of our model on some batches, every shape compiled."""

    def __init__(self, batches, size, **options):
        import jax

        from ehrjax.models.behrt import SIZES, Behrt
        from ehrjax.models.pretraining import Pretraining
        from ehrjax.objectives.chunks import in_chunks
        from ehrjax.objectives.mlm import make_mlm_objective
        from ehrjax.train.optimizer import make_optimizer
        from ehrjax.train.state import create_state
        from ehrjax.train.step import make_train_step

        self.num_tokens = sum(int((batch.segment_ids > 0).sum()) for batch in batches)
        self.fill = self.num_tokens / sum(batch.tokens.size for batch in batches)
        self.batches = [jax.device_put(batch) for batch in batches]
        sizes = SIZES[size] if isinstance(size, str) else size
        encoder = Behrt(VOCAB_SIZE, **{**sizes, **options})
        model = Pretraining(encoder, VOCAB_SIZE, heads=("mlm",), tie_embeddings=False)
        tx = make_optimizer(learning_rate=1e-3, num_steps=10_000)
        self.key = jax.random.key(0)
        params = jax.jit(model.init)(self.key, self.batches[0])["params"]
        state = jax.tree.map(jax.numpy.copy, create_state(params, tx))
        step = jax.jit(make_train_step(in_chunks(make_mlm_objective(model)), tx), donate_argnums=0)
        self.step = step.lower(state, self.batches[0], self.key).compile()
        self.state = state
        self.train()

    def train(self) -> None:
        """One pass over the batches."""
        import jax

        for batch in self.batches:
            self.state, metrics = self.step(self.state, batch, self.key)
        jax.block_until_ready((self.state, metrics))


class TorchRun:
    """The same with torch, on padded or packed rows."""

    def __init__(self, batches, size, *, packed, stock=False):
        import torch

        from ehrjax.models.behrt import SIZES
        from experiments.benchmarks.torch_behrt import TorchBehrt, to_packed, to_padded

        self.num_tokens = sum(int((batch.segment_ids > 0).sum()) for batch in batches)
        self.fill = self.num_tokens / sum(batch.tokens.size for batch in batches)
        self.batches = [(to_packed if packed else to_padded)(batch) for batch in batches]
        self.model = TorchBehrt(VOCAB_SIZE, **SIZES[size], stock=stock).train()
        self.loss = self.model.loss_packed if packed else self.model.loss_padded
        self.tx = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
        self.train()

    def train(self) -> None:
        """One pass over the batches."""
        import torch

        for batch in self.batches:
            self.tx.zero_grad(set_to_none=True)
            self.loss(*batch).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.tx.step()


def make_runs(size, args):
    """Variant name -> run, and the mean length of a patient."""
    from ehrjax.models.behrt import SIZES

    max_tokens, rows = SIZES[size]["max_tokens"], args.batch_size or BATCH_SIZES[size]
    num_patients = max(20 * args.steps, 100) * rows
    lengths = store_lengths(args.lengths, max_tokens, num_patients) if args.lengths else None
    lengths = lognormal_lengths(num_patients, max_tokens) if lengths is None else lengths
    sequences = make_sequences(lengths)
    padded = one_a_row(sequences, max_tokens, rows, args.steps)
    packed = packed_batches(sequences, max_tokens, rows, args.steps)
    few = packed_batches(sequences, max_tokens, max(round(rows * lengths.mean() / max_tokens), 1), args.steps)
    runs = {
        "torch padded": partial(TorchRun, padded, size, packed=False),
        "torch stock": partial(TorchRun, padded, size, packed=False, stock=True),
        "torch packed": partial(TorchRun, packed, size, packed=True),
        "packed": partial(OurRun, packed, size, **SAME_MODEL),
        "packed, recipe": partial(OurRun, packed, size),
        "torch packed / few": partial(TorchRun, few, size, packed=True),
        "packed / few": partial(OurRun, few, size, **SAME_MODEL),
    }
    return {name: make() for name, make in runs.items() if not args.only or name in args.only.split(",")}


def measure(runs, rounds, clock):
    """Variant -> real tokens a second in each round."""
    rates = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run.train()
            rates[name].append(run.num_tokens / (clock() - start))
    return {name: np.array(values) for name, values in rates.items()}


def keep_freed_memory() -> None:
    """Let glibc's malloc serve large blocks from one heap that never shrinks; to be called before threads start."""
    malloc_options = ((-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1))  # arenas, mmap threshold, trim threshold (malloc.h)
    libc = ctypes.CDLL(None)
    for option, value in malloc_options:
        libc.mallopt(option, value)


def print_table(title, runs, rates):
    """Medians, and ratios to the torch baselines (of batches of as many patients, for the runs marked few)."""
    columns = f"{'tokens/s':>10}{'slots used':>12}{'x torch padded':>16}{'x torch stock':>15}{'x torch packed':>16}"
    print(f"\n{title}\n{'':20}{columns}")
    for name, run in runs.items():
        packed = "torch packed / few" if name.endswith("few") else "torch packed"
        bases = ("torch padded", "torch stock", packed)
        ratios = [f"{np.median(rates[name] / rates[base]):.2f}" if base in rates else "-" for base in bases]
        shown = f"{ratios[0]:>16}{ratios[1]:>15}{ratios[2]:>16}"
        print(f"{name:20}{np.median(rates[name]):10.0f}{run.fill:12.0%}{shown}", flush=True)


def main(argv=None):
    """Measure and print; with --device=gpu that part instead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="all", choices=(*BATCH_SIZES, "all"))
    parser.add_argument("--batch-size", type=int, default=0, help="rows; 0 = 16, 32, 64 by size")
    parser.add_argument("--lengths", default="", help="a store whose patients' lengths to take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="batches a round")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    parser.add_argument("--only", default="", help="variants, separated by commas")
    parser.add_argument("--keep-memory", action="store_true", help="malloc keeps freed memory")
    parser.add_argument("--device", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--record", default="behrt_gpu.json", help="where --device=gpu writes its figures")
    args = parser.parse_args(argv)
    if args.device == "gpu":
        from experiments.benchmarks.behrt_gpu import main as measure_gpu

        return measure_gpu(args.record)
    if args.keep_memory:
        keep_freed_memory()
    # XLA sizes its pool by the cores it may use, once, so this comes before JAX is imported.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    import torch

    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, {args.clock} time, {args.steps} steps a round, medians of {args.rounds} rounds")
    for size in BATCH_SIZES if args.size == "all" else (args.size,):
        runs = make_runs(size, args)
        title = f"{size}, batches of {args.batch_size or BATCH_SIZES[size]} rows"
        print_table(title, runs, measure(runs, args.rounds, CLOCKS[args.clock]))


if __name__ == "__main__":
    main()
