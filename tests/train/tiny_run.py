"""A training run of a few hundred parameters, in process or as a subprocess that tests kill.

    python -m tests.train.tiny_run WORKDIR [--delay=SECONDS] [--kill-in-save=N] [--kill-after=SECONDS]

`--delay` makes each step last long enough to be hit; `--kill-in-save` kills the process within its N-th checkpoint.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ehrjax.train.checkpoint import Checkpoints
from ehrjax.train.interrupt import Interrupted
from ehrjax.train.loop import FitResult, fit
from ehrjax.train.optimizer import Plateau, make_optimizer
from ehrjax.train.state import create_state
from ehrjax.train.step import make_eval_step, make_train_step, mean_metrics
from ehrjax.types import LossOutput

NUM_STEPS = 20


class Batch(NamedTuple):
    """Inputs [B 8], targets [B 1], and the row numbers they came from."""

    inputs: np.ndarray
    targets: np.ndarray
    example_ids: np.ndarray


def make_batch(step: int, *, size: int = 6) -> Batch:
    rng = np.random.default_rng([7, step])
    inputs = rng.normal(size=(size, 8)).astype(np.float32)
    return Batch(inputs, np.sin(inputs.sum(1, keepdims=True)), np.arange(step * size, (step + 1) * size))


def init_params() -> dict:
    first, second = jax.random.split(jax.random.key(0))
    return {
        "first": {"kernel": 0.3 * jax.random.normal(first, (8, 16)), "bias": jnp.zeros(16)},
        "second": {"kernel": 0.3 * jax.random.normal(second, (16, 1)), "bias": jnp.zeros(1)},
    }


def objective(params: dict, batch: Batch, key: jax.Array, train: bool) -> LossOutput:
    """Squared error of a two-layer perceptron with dropout, so that randomness matters to the result."""
    hidden = jnp.tanh(batch.inputs @ params["first"]["kernel"] + params["first"]["bias"][None])
    if train:
        hidden = hidden * jax.random.bernoulli(key, 0.8, hidden.shape) / 0.8
    error = hidden @ params["second"]["kernel"] + params["second"]["bias"][None] - batch.targets
    weight = jnp.asarray(float(len(batch.inputs)))
    return LossOutput(jnp.sum(error**2), weight, {"absolute_error": (jnp.sum(jnp.abs(error)), weight)})


def tiny_fit(workdir: Path, *, delay: float = 0.0, **changes: object) -> FitResult:
    tx = make_optimizer(learning_rate=0.3, num_steps=NUM_STEPS, warmup_steps=3)
    eval_step = jax.jit(make_eval_step(objective))

    def batch_at(step: int) -> Batch:
        time.sleep(delay)
        return make_batch(step)

    def eval_fn(params: dict) -> dict[str, float]:
        return mean_metrics([eval_step(params, make_batch(10_000 + i)) for i in range(2)], prefix="val/")

    arguments = {
        "state": create_state(init_params(), tx),
        "train_step": make_train_step(objective, tx),
        "batch_at": batch_at,
        "num_steps": NUM_STEPS,
        "base_key": jax.random.key(1),
        "workdir": workdir,
        "eval_fn": eval_fn,
        "eval_every": 5,
        "log_every": 4,
        "plateau": Plateau(patience=1),
        "meta": {"config_hash": "c0", "vocabulary_hash": "v0"},
        "resume_command": f"python -m tests.train.tiny_run {workdir}",
    }
    return fit(**{**arguments, **changes})


def _kill_in_save(number: int, after: float) -> None:
    """Let the process kill itself `after` seconds into its `number`-th save."""
    save, calls = Checkpoints.save, []

    def save_and_die(self: Checkpoints, *args: object, **kwargs: object) -> None:
        calls.append(1)
        if len(calls) == number:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            save(self, *args, **kwargs)
            time.sleep(5)  # a save faster than `after` must not escape
        save(self, *args, **kwargs)

    Checkpoints.save = save_and_die


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--kill-in-save", type=int, default=0)
    parser.add_argument("--kill-after", type=float, default=0.0)
    args = parser.parse_args()
    if args.kill_in_save:
        _kill_in_save(args.kill_in_save, args.kill_after)
    try:
        tiny_fit(args.workdir, delay=args.delay)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
