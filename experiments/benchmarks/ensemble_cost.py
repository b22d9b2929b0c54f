"""Cost of training K members in one program against training one: steady-state step time and compilation.

    python -m experiments.benchmarks.ensemble_cost [--model=lstm|behrt|both] [--num-seeds=5] [--batch-size=16]
        [--threads=2] [--rounds=5] [--steps=4] [--clock=wall]

Small sizes on made-up patients (log-normal visit counts), the same batches and optimiser for all. Variants take turns,
round after round, so that a busy machine slows all alike; a ratio is the median of the rounds' ratios. The first step,
which compiles, is timed apart. `--threads=1 --clock=cpu` counts the process's CPU time, on a machine with other work.

    one       the training step of one model
    members   all in one program (`make_members_step`), as `train.num_seeds` trains them

Two CPU threads, quiet, 2026-11-22, five members over one: LSTM 5.8 (5.5 to 6.4), BEHRT 4.5 (4.4 to 5.3).

A ratio below K is what one program saves over K runs, beside the host's work, which is done once instead of K times.
"""

import argparse
import os
import time
from typing import Any, NamedTuple

import numpy as np

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
VOCAB_SIZE, NUM_PATIENTS, ROW_TOKENS, BEHRT_ROWS = 1000, 256, 256, 4


class Variant(NamedTuple):
    """A compiled step, its state (replaced as it trains), its key, and seconds of the first step."""

    step: Any
    state: list[Any]
    key: Any
    first_seconds: float


def make_case(name: str, batch_size: int) -> tuple[Any, list[Any]]:
    """A small model and the batches of an epoch, on the device."""
    import jax

    from ehrjax.data.batching import VisitBatches
    from ehrjax.data.packing import pack_visits
    from ehrjax.data.token_batching import TokenBatches
    from ehrjax.data.windows import truncate
    from ehrjax.models import behrt, visit_lstm
    from experiments.benchmarks.lstm_throughput import lognormal_sequences

    sequences = lognormal_sequences(NUM_PATIENTS, VOCAB_SIZE)
    if name == "lstm":
        packed = pack_visits(sequences).sequences
        rows = max(1, round(batch_size * len(packed.subject_ids) / NUM_PATIENTS))
        batches = VisitBatches(packed, batch_size=rows, num_buckets=1, level="visit")
        model = visit_lstm.VisitLstm(VOCAB_SIZE, **visit_lstm.SIZES["small"], level="visit")
    else:
        cut = truncate(sequences, max_tokens=ROW_TOKENS)
        batches = TokenBatches(cut, row_tokens=ROW_TOKENS, batch_size=BEHRT_ROWS)
        sizes = {**behrt.SIZES["small"], "max_tokens": ROW_TOKENS}
        model = behrt.Behrt(VOCAB_SIZE, **sizes, num_outputs=1, causal=True)
    return model, [jax.device_put(batches.batch_at(step)) for step in range(batches.num_batches_per_epoch)]


def make_variants(model: Any, batches: list[Any], num_seeds: int, clock) -> dict[str, Variant]:
    """Both variants, every shape compiled."""
    import jax

    from ehrjax.objectives.supervised import make_supervised_objective
    from ehrjax.train.ensemble import create_members, make_members_step
    from ehrjax.train.optimizer import make_optimizer
    from ehrjax.train.state import create_state
    from ehrjax.train.step import make_train_step

    tx = make_optimizer(learning_rate=1e-3, num_steps=10_000)
    step = make_train_step(make_supervised_objective(model, "binary"), tx)
    keys = jax.random.split(jax.random.key(0), num_seeds)
    init = jax.jit(model.init)
    starts = [init(key, batches[0])["params"] for key in keys]
    cases = {
        "one": (step, create_state(starts[0], tx), keys[0]),
        "members": (make_members_step(step, patience=None), create_members(starts, tx), keys),
    }
    variants = {}
    for name, (function, state, key) in cases.items():
        # Copied, since the donated state of one variant may share buffers with another's.
        state = jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), state)
        compiled, started = jax.jit(function, donate_argnums=0), clock()
        state, _ = jax.block_until_ready(compiled(state, batches[0], key))
        variants[name] = Variant(compiled, [state], key, clock() - started)
        train(variants[name], batches)
    return variants


def train(variant: Variant, batches: list[Any]) -> None:
    """A step on each of the batches."""
    import jax

    for batch in batches:
        variant.state[0], _ = variant.step(variant.state[0], batch, variant.key)
    jax.block_until_ready(variant.state[0])


def measure(variants: dict[str, Variant], batches: list[Any], rounds: int, clock) -> dict[str, np.ndarray]:
    """Variant -> seconds a step in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            started = clock()
            train(variant, batches)
            seconds[name].append((clock() - started) / len(batches))
    return {name: np.array(values) for name, values in seconds.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="both", choices=("lstm", "behrt", "both"))
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16, help="patients, of the LSTM")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="a round")
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS))
    args = parser.parse_args(argv)
    # XLA sizes its pool by the cores it may use, once, so this comes before JAX is imported.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    clock, count = CLOCKS[args.clock], args.num_seeds
    print(f"{count} members, {args.threads} threads, {args.clock} time, medians of {args.rounds} rounds")
    for name in ("lstm", "behrt") if args.model == "both" else (args.model,):
        model, batches = make_case(name, args.batch_size)
        batches = batches[: args.steps]
        variants = make_variants(model, batches, count, clock)
        seconds = measure(variants, batches, args.rounds, clock)
        ratios = seconds["members"] / seconds["one"]
        print(f"\n{name}{'ms a step':>20}{'first step, s':>16}")
        for variant, values in seconds.items():
            print(f"  {variant:10}{1e3 * np.median(values):12.1f}{variants[variant].first_seconds:16.1f}")
        print(
            f"  {count} members cost {np.median(ratios):.2f} x one ({ratios.min():.2f} to {ratios.max():.2f}), "
            f"{np.median(ratios) / count:.2f} a member",
            flush=True,
        )


if __name__ == "__main__":
    main()
