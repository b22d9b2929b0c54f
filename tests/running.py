"""Runs as a user starts them, and runs that are killed, for the tests of the main job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


def _command(workdir: Path, *extra: str, recipe: str = "lstm_small") -> list[str]:
    config = f"--config=configs/{recipe}.py:debug"
    return [sys.executable, "-m", "experiments.run", config, f"--workdir={workdir}", *extra]


def start_run(workdir: Path, *extra: str, recipe: str = "lstm_small") -> subprocess.CompletedProcess:
    """The debug form of a recipe, run to its end as a user would."""
    command = _command(workdir, *extra, recipe=recipe)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)


def run_until_killed(workdir: Path, sign: Path, delay: float, *extra: str, recipe: str = "lstm_small") -> None:
    """Start the run, wait until `sign` exists, then SIGKILL it `delay` seconds later."""
    command, quiet = _command(workdir, *extra, recipe=recipe), subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True) as process:
        deadline = time.monotonic() + 900
        while not sign.exists() and process.poll() is None:
            assert time.monotonic() < deadline, f"{sign} never came"
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def leaves_of(tree, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of nested dicts by path."""
    if not isinstance(tree, dict):
        return {prefix: np.asarray(tree)}
    return {name: leaf for key, value in tree.items() for name, leaf in leaves_of(value, f"{prefix}/{key}").items()}
