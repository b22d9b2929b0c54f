"""Predictions on disk are scored by the meds-evaluation package as by our own metrics."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ehrjax.evaluate.predict import write_predictions
from ehrjax.metrics.classification import auprc, auroc, brier


def score(folder: Path, predictions: Path) -> dict[str, float]:
    """Figures of the `meds-evaluation-cli` of a folder, every row with the same weight."""
    out = predictions.with_suffix(".json")
    command = [str(folder / "meds-evaluation-cli"), f"predictions_path={predictions}", f"output_file={out}"]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=predictions.parent)
    return json.loads(out.read_text())["samples_equally_weighted"]


def check_scores(folder: Path, out: Path) -> None:
    """Our figures of some predictions, tied scores and several rows a patient among them, equal the package's."""
    rng = np.random.default_rng(0)
    labels = rng.random(300) < 0.3
    scores = np.round(np.clip(0.3 * labels + rng.random(300) * 0.7, 0, 1), 2)
    ids, times = np.repeat(np.arange(100), 3), 1_600_000_000 + np.arange(300)
    write_predictions(
        out / "task.parquet", "binary", subject_ids=ids, times=times, labels=labels, scores=scores, threshold=0.4
    )
    figures = score(folder, out / "task.parquet")
    assert figures["roc_auc_score"] == pytest.approx(auroc(labels, scores), abs=1e-9)
    assert figures["average_precision_score"] == pytest.approx(auprc(labels, scores), abs=1e-9)
    assert figures["brier_score"] == pytest.approx(brier(labels, scores), abs=1e-9)
    assert figures["binary_accuracy"] == pytest.approx(((scores >= 0.4) == labels).mean(), abs=1e-9)


def test_the_package_gives_our_figures(tmp_path):
    pytest.importorskip("meds_evaluation", reason="needs the meds-evaluation package")
    check_scores(Path(sys.executable).parent, tmp_path)
