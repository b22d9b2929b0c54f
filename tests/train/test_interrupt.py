"""Killed or told to stop, at any moment: the same command ends with the same bits as an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ehrjax.train.interrupt import Interrupted, StopRequest
from ehrjax.train.log import TIMING_KEYS
from tests.train.tiny_run import make_batch, tiny_fit

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300  # seconds suffice; a busy machine takes its time


def start(workdir: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-m", "tests.train.tiny_run", str(workdir), *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def num_lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(process: subprocess.Popen, workdir: Path, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while num_lines(workdir) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)


def figures(workdir: Path) -> list[dict]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMING_KEYS} for row in rows]


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, tiny_fit(workdir)


@pytest.fixture
def python_handles_sigint():
    """A process started in the background inherits SIGINT as ignored: give it Python's own handler."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def test_the_first_signal_is_noted_and_a_second_acts_as_ever(python_handles_sigint):
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert stop.signum is None
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("signum", "step"), [(signal.SIGTERM, 12), (signal.SIGINT, 9), (signal.SIGINT, 19)])
def test_a_signal_saves_says_how_to_go_on_and_costs_nothing(tmp_path, undisturbed, signum, step):
    """Step 12 is between evaluations and within a log interval, 9 ends in an evaluation, 19 is the last."""

    def batch_at(index):
        if index == step:
            os.kill(os.getpid(), signum)
        return make_batch(index)

    with pytest.raises(
        Interrupted, match=rf"{signum.name}: saved a checkpoint at step {step + 1} .* To go on, run: py"
    ) as e:
        tiny_fit(tmp_path, batch_at=batch_at)
    assert e.value.exit_code == 128 + signum
    result = tiny_fit(tmp_path)
    reference_dir, reference = undisturbed
    assert_same((result.params, result.state), (reference.params, reference.state))
    assert result.best_step == reference.best_step and figures(tmp_path) == figures(reference_dir)


def test_the_undisturbed_run_uses_what_must_survive(undisturbed):
    """Otherwise the comparisons of this file would not notice a plateau or a best step that is lost."""
    _, reference = undisturbed
    rate = reference.state.opt_state[-1]
    assert float(rate.plateau_scale) < 1 and int(rate.count) == reference.steps


def test_sigterm_of_a_process_ends_in_143_and_prints_the_command(tmp_path, undisturbed):
    with start(tmp_path, "--delay=0.1") as process:
        wait_for_lines(process, tmp_path, 2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 143
    assert "finishing this step" in err and f"To go on, run: python -m tests.train.tiny_run {tmp_path}" in err
    assert "Traceback" not in err and "WARNING" not in err
    assert_same(tiny_fit(tmp_path).params, undisturbed[1].params)


def test_sigkill_at_any_moment_changes_no_bit(tmp_path, undisturbed):
    """Killed within a first save, within a later one, and between steps."""
    rng = random.Random(0)
    for number, after in ((1, rng.uniform(0, 0.05)), (2, rng.uniform(0, 0.1))):
        with start(tmp_path, f"--kill-in-save={number}", f"--kill-after={after}") as process:
            process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == -signal.SIGKILL
    with start(tmp_path, "--delay=0.1") as process:
        wait_for_lines(process, tmp_path, num_lines(tmp_path) + 1)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
    result = tiny_fit(tmp_path)
    reference_dir, reference = undisturbed
    assert_same((result.params, result.state), (reference.params, reference.state))
    assert figures(tmp_path) == figures(reference_dir)
