"""Harrell's and Uno's C of a million patients beside lifelines, and beside scikit-survival at a size that it can do.

    python -m experiments.benchmarks.concordance [--num-patients=1000000] [--num-shared=10000] [--num-resamples=1000]

Seconds are processor seconds of one process, so that a busy machine does not lengthen them. Half of the patients are
censored. Times in whole days have many ties, continuous ones none (the slowest case: one position a patient).
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ehrjax.metrics.bootstrap import bootstrap
from ehrjax.metrics.survival import concordance, concordance_ipcw


def simulate(num_patients: int, *, in_days: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (days, event) [n, 2] of exponential times and as frequent censoring, and a noisy risk [n]."""
    rng = np.random.default_rng(seed)
    log_hazards = rng.normal(size=num_patients)
    times = rng.exponential(1000 * np.exp(-log_hazards))
    ends = rng.exponential(1000 * np.exp(-rng.normal(size=num_patients)))
    observed = np.minimum(times, ends)
    labels = np.column_stack([np.ceil(observed) if in_days else observed, times <= ends])
    return labels, log_hazards + rng.normal(size=num_patients)


def timed(function: Callable[..., Any], *arguments, **options) -> tuple[Any, float]:
    """What the function returns, and its processor seconds."""
    start = time.process_time()
    value = function(*arguments, **options)
    return value, time.process_time() - start


def report_large(num_patients: int) -> None:
    """Both metrics at full size, and Harrell's by lifelines."""
    from lifelines.utils import concordance_index

    for in_days in (True, False):
        labels, risks = simulate(num_patients, in_days=in_days)
        systems = {
            "concordance": concordance,
            "concordance_ipcw": concordance_ipcw,
            "lifelines": lambda y, s: concordance_index(y[:, 0], -s, y[:, 1]),
        }
        for name, system in systems.items():
            value, seconds = timed(system, labels, risks)
            unit = "days" if in_days else "continuous"
            print(f"{name:17s} {num_patients:>9,} patients, {unit:10s} {value:.6f}  {seconds:7.2f} s")


def report_shared(num_patients: int) -> None:
    """Harrell's C of the same patients by all three; scikit-survival's grows with the square."""
    from lifelines.utils import concordance_index
    from sksurv.metrics import concordance_index_censored

    labels, risks = simulate(num_patients, in_days=True)
    days, events = labels.T
    systems = {
        "ehrjax": lambda: concordance(labels, risks),
        "lifelines": lambda: concordance_index(days, -risks, events),
        "scikit-survival": lambda: concordance_index_censored(events == 1, days, risks)[0],
    }
    for name, system in systems.items():
        value, seconds = timed(system)
        print(f"{name:17s} {num_patients:>9,} patients, days       {value:.6f}  {seconds:7.3f} s")


def report_bootstrap(num_patients: int, num_resamples: int) -> None:
    """The interval of Harrell's C."""
    labels, risks = simulate(num_patients, in_days=True)
    metrics = {"c_index": concordance}
    intervals, seconds = timed(bootstrap, metrics, labels, risks, np.arange(num_patients), num_resamples=num_resamples)
    value, low, high, _ = intervals["c_index"]
    what = f"{num_resamples:,} resamples of {num_patients:,} patients"
    print(f"bootstrap, {what}: {value:.4f} ({low:.4f} to {high:.4f})  {seconds:7.2f} s")


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-patients", type=int, default=1_000_000)
    parser.add_argument("--num-shared", type=int, default=10_000)
    parser.add_argument("--num-resamples", type=int, default=1000)
    arguments = parser.parse_args()
    report_large(arguments.num_patients)
    report_shared(arguments.num_shared)
    report_bootstrap(arguments.num_shared, arguments.num_resamples)


if __name__ == "__main__":
    main()
