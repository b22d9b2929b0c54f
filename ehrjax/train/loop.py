"""`fit`: the training loop, and all that it takes to stop at any moment and go on with the same result.

Everything that influences training is either a pure function of the step (batch, randomness, learning-rate schedule) or
in the checkpoint (state, early-stopping counters, plateau, figures not yet logged). Checkpoints are written after each
evaluation and when asked to stop.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ehrjax.train.checkpoint import Checkpoints
from ehrjax.train.interrupt import Interrupted, StopRequest
from ehrjax.train.log import MetricsLog, Progress, read_metrics, write_atomic
from ehrjax.train.optimizer import Plateau, reduce_on_plateau
from ehrjax.train.state import TrainState
from ehrjax.train.step import mean_metrics


class NonFiniteLossError(FloatingPointError):
    """Loss or gradient became NaN or infinite; the file named in the message holds the step and the batch's ids."""


@dataclass
class FitResult:
    """What training leaves behind. Counts and seconds cover the whole run, over interruptions."""

    params: Any  # of the best evaluation, or the last ones where nothing was evaluated
    state: TrainState  # after the last step
    best_step: int | None
    best_value: float | None
    history: list[dict[str, Any]]  # the lines of metrics.jsonl
    steps: int
    seconds: float
    examples_per_second: float  # of the training steps: compilation, evaluation and checkpoints apart
    num_compilations: int
    stopped_early: bool


@dataclass
class LoopState:
    """The loop's counters, stored as JSON in each checkpoint."""

    best_value: float | None = None
    best_step: int | None = None
    num_bad_evals: int = 0
    num_compilations: int = 0
    num_examples: int = 0
    seconds: float = 0.0
    train_seconds: float = 0.0
    # Of the current log interval:
    pending: list[dict[str, Any]] = field(default_factory=list)
    interval_examples: int = 0
    interval_seconds: float = 0.0


def batch_example_ids(batch: Any) -> np.ndarray:
    """The real examples of a batch that has `example_ids` (-1 for padding rows)."""
    ids = np.asarray(batch.example_ids)
    return ids[ids >= 0]


def fit(
    *,
    state: TrainState,
    train_step: Callable[[TrainState, Any, jax.Array], tuple[TrainState, Any]],
    batch_at: Callable[[int], Any],
    num_steps: int,
    base_key: jax.Array,
    workdir: str | Path,
    eval_every: int,
    eval_fn: Callable[[Any], Mapping[str, float]] | None = None,
    observe: Callable[[TrainState], tuple[TrainState, Mapping[str, float], int]] | None = None,
    monitor: str = "val/loss",
    mode: str = "min",
    patience: int | None = None,
    plateau: Plateau | None = None,
    log_every: int = 50,
    meta: Mapping[str, str] | None = None,
    resume_command: str = "the same command again",
    examples_of: Callable[[Any], np.ndarray] = batch_example_ids,
    part: str = "",
    progress: bool = True,
) -> FitResult:
    """Train for `num_steps` updates, or until `patience` evaluations in a row bring no new best `monitor`.

    `train_step` (see `make_train_step`) is jitted here with its state donated. The same call on the same `workdir`
    resumes from the last checkpoint, or returns the stored result of a finished run; bit for bit, on CPU, what an
    undisturbed run gives. `part` names one of several trainings in a workdir (`checkpoints/PART`). Raises Interrupted
    after SIGINT or SIGTERM, NonFiniteLossError, and CheckpointMismatchError when `meta` differs from the stored one.

    `observe(state) -> (state, figures, num_bad_evals)` takes the place of `eval_fn` and `plateau` for a state that
    keeps its best weights itself, as its `params` (see `ensemble`).
    """
    arguments = {**locals(), "workdir": Path(workdir)}
    if num_steps < 1 or eval_every < 1 or log_every < 1 or mode not in ("min", "max"):
        given = f"num_steps={num_steps}, eval_every={eval_every}, log_every={log_every}, mode={mode!r}"
        raise ValueError(f"{given}: steps must be at least 1, and mode 'min' or 'max'.")
    checkpoints = Checkpoints(arguments["workdir"] / "checkpoints" / part, meta=arguments.pop("meta") or {})
    try:
        run = _Run(**arguments, checkpoints=checkpoints)
        return run.finished_result() or run.train()
    finally:
        checkpoints.close()


@dataclass
class _Run:
    """One call of `fit`: its arguments, and what changes while it runs."""

    state: TrainState
    train_step: Callable[..., Any]
    batch_at: Callable[[int], Any]
    num_steps: int
    base_key: jax.Array
    workdir: Path
    eval_every: int
    eval_fn: Callable[[Any], Mapping[str, float]] | None
    observe: Callable[[TrainState], tuple[TrainState, Mapping[str, float], int]] | None
    monitor: str
    mode: str
    patience: int | None
    plateau: Plateau | None
    log_every: int
    resume_command: str
    examples_of: Callable[[Any], np.ndarray]
    part: str
    progress: bool
    checkpoints: Checkpoints

    def finished_result(self) -> FitResult | None:
        summary = self.checkpoints.read_complete()
        if summary is None:
            return None
        last = self.checkpoints.latest_step()
        self.state = self.checkpoints.restore(last, self.state)
        return self._result(LoopState(**summary["loop"]), summary["stopped_early"])

    def train(self) -> FitResult:
        self._start()
        try:
            with StopRequest() as stop:
                while not self._is_done():
                    self._take_step()
                    if self.step % self.eval_every == 0 or self.step == self.num_steps:
                        self._evaluate()
                    if stop.signum is not None:
                        self._stop(stop.signum)
        finally:
            self.log.close()
            self.bar.close()
        stopped_early = self.step < self.num_steps
        summary = {"loop": asdict(self.loop), "stopped_early": stopped_early}
        self.checkpoints.mark_complete(summary)
        return self._result(self.loop, stopped_early)

    def _start(self) -> None:
        self.loop = LoopState()
        latest = self.checkpoints.latest_step()
        if latest is None:
            # The step donates its input: without a copy the caller's arrays would be gone.
            self.state = jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), self.state)
        else:
            self.state = self.checkpoints.restore(latest, self.state)
            stored = self.checkpoints.read_loop(latest)
            self.loop = LoopState(**{name: stored[name] for name in LoopState.__dataclass_fields__})
        self.step = int(self.state.step)
        self.log = MetricsLog(self.workdir / "metrics.jsonl", part=self.part, resume_step=self.step)
        self.bar = Progress(self.num_steps, initial=self.step, label=self.part or "train", enabled=self.progress)
        if latest is not None:
            self.bar.say(f"resuming at step {self.step} of {self.num_steps}")
        self.on_device: list[Any] = []  # metrics of the steps since the last fetch
        self.jitted = jax.jit(self._counted_step, donate_argnums=0)
        self.clock = time.perf_counter()

    def _counted_step(self, state: TrainState, batch: Any, base_key: jax.Array) -> Any:
        self.loop.num_compilations += 1  # Python runs this body once a trace
        return self.train_step(state, batch, base_key)

    def _take_step(self) -> None:
        batch = self.batch_at(self.step)
        before, started = self.loop.num_compilations, time.perf_counter()
        self.state, metrics = self.jitted(self.state, batch, self.base_key)
        if self.loop.num_compilations > before:
            self.loop.interval_seconds -= time.perf_counter() - started
        self.on_device.append(metrics)
        # Two steps in flight overlap host and device; more would only make a stop request wait.
        jax.block_until_ready(self.on_device[-2:-1])
        self.step += 1
        self.loop.interval_examples += len(self.examples_of(batch))
        self.bar.step()
        if self.step % self.log_every == 0 or self.step == self.num_steps:
            self._write_train_line()

    def _fetch(self) -> None:
        """Bring the pending metrics to the host, refuse non-finite ones, and stop the training clock."""
        rows = jax.device_get(self.on_device)
        first = self.step - len(rows)
        self.on_device = []
        for index, row in enumerate(rows):
            row = {name: [float(total), float(weight)] for name, (total, weight) in row.items()}
            if not np.isfinite([row["loss"], row.get("grad_norm", [0.0, 1.0])]).all():
                self._refuse_non_finite(first + index, row)
            self.loop.pending.append(row)
        self.loop.interval_seconds += self._lap()

    def _lap(self) -> float:
        now = time.perf_counter()
        lap, self.clock = now - self.clock, now
        self.loop.seconds += lap
        return lap

    def _refuse_non_finite(self, batch_index: int, row: dict[str, list[float]]) -> None:
        ids = np.asarray(self.examples_of(self.batch_at(batch_index))).tolist()
        path = self.workdir / "nonfinite.json"
        figures = {name: [str(value) for value in row[name]] for name in ("loss", "grad_norm") if name in row}
        about = {"part": self.part, "step": batch_index + 1, "batch_index": batch_index, "example_ids": ids}
        write_atomic(path, json.dumps({**about, "sum_and_weight": figures}))
        raise NonFiniteLossError(
            f"Loss or gradient is not finite at step {batch_index + 1} ({figures}). Its {len(ids)} example ids are in "
            f"{path}: look at their values, or lower optimizer.learning_rate. No checkpoint was written after it."
        )

    def _write_train_line(self) -> None:
        self._fetch()
        loop = self.loop
        values: dict[str, Any] = mean_metrics(loop.pending, prefix="train/")
        loop.num_examples += loop.interval_examples
        loop.train_seconds += loop.interval_seconds
        speed = loop.interval_examples / max(loop.interval_seconds, 1e-9)
        self.bar.show({"loss": values["train/loss"], "examples/s": speed})
        values |= {"examples": loop.num_examples, "examples_per_second": speed, "seconds": loop.seconds}
        self.log.write(self.step, values)
        loop.pending, loop.interval_examples, loop.interval_seconds = [], 0, 0.0

    def _is_done(self) -> bool:
        is_stalled = self.patience is not None and self.loop.num_bad_evals >= self.patience
        return self.step >= self.num_steps or is_stalled

    def _evaluate(self) -> None:
        self._fetch()
        if self.eval_fn is not None or self.observe is not None:
            values = self._validate()
            value = values[self.monitor]
            self.log.write(self.step, {**values, "seconds": self.loop.seconds + time.perf_counter() - self.clock})
            self.bar.show({self.monitor: value})
            best = " (best)" if self.loop.best_step == self.step else ""
            others = "".join(f", {name} {v:.4g}" for name, v in values.items() if name != self.monitor)
            self.bar.say(f"step {self.step} of {self.num_steps}, {self.monitor} {value:.4g}{others}{best}")
        self._save()

    def _validate(self) -> dict[str, float]:
        """Validation figures; counters and state are brought up to date with them."""
        if self.observe is not None:
            state, figures, num_bad_evals = self.observe(self.state)
            self._monitored(figures)
            self.state, self.loop.num_bad_evals = state, num_bad_evals
            return dict(figures)
        figures = {name: float(value) for name, value in self.eval_fn(self.state.params).items()}
        self._observe(self._monitored(figures))
        return figures

    def _monitored(self, values: dict[str, float]) -> float:
        if self.monitor not in values:
            raise ValueError(f"monitor={self.monitor!r} is not among the validation figures {sorted(values)}.")
        if not math.isfinite(values[self.monitor]):
            raise ValueError(
                f"{self.monitor} is {values[self.monitor]} at step {self.step}: it cannot choose the best weights. "
                f"Is there one class only in the validation split? Monitor another of {sorted(values)}."
            )
        return values[self.monitor]

    def _observe(self, value: float) -> None:
        best = self.loop.best_value
        if best is None or (value < best if self.mode == "min" else value > best):
            self.loop.best_value, self.loop.best_step, self.loop.num_bad_evals = value, self.step, 0
        else:
            self.loop.num_bad_evals += 1
        if self.plateau is not None:
            opt_state = reduce_on_plateau(self.state.opt_state, value, self.plateau, mode=self.mode)
            self.state = self.state._replace(opt_state=opt_state)

    def _save(self) -> None:
        self._lap()
        self.log.sync()
        self.checkpoints.save(self.state, asdict(self.loop), best_step=self.loop.best_step)
        self._lap()

    def _stop(self, signum: int) -> None:
        self._fetch()
        self._save()
        name = signal.Signals(signum).name
        message = f"{name}: saved a checkpoint at step {self.step} of {self.num_steps} in {self.checkpoints.directory}."
        raise Interrupted(signum, f"{message} To go on, run: {self.resume_command}")

    def _result(self, loop: LoopState, stopped_early: bool) -> FitResult:
        params = self.state.params
        if loop.best_step is not None:
            params = self.checkpoints.restore_params(loop.best_step, params)
        return FitResult(
            params=params,
            state=self.state,
            best_step=loop.best_step,
            best_value=loop.best_value,
            history=read_metrics(self.workdir / "metrics.jsonl", part=self.part),
            steps=int(self.state.step),
            seconds=loop.seconds,
            examples_per_second=loop.num_examples / max(loop.train_seconds, 1e-9),
            num_compilations=loop.num_compilations,
            stopped_early=stopped_early,
        )
