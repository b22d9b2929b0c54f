"""The study of pre-training on shares of the labels: complete, resumable after a kill, its summary right by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ehrjax.data.labels import Labels
from experiments.benchmarks import label_efficiency as study
from experiments.benchmarks.label_efficiency_report import SYSTEMS, run_name, summarise, table

ROOT = Path(__file__).resolve().parents[1]


def _run(out: Path, *extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "experiments.benchmarks.label_efficiency", "--debug", f"--out={out}", *extra]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_a_study_trains_all_systems_on_the_same_labels(tmp_path):
    done = _run(tmp_path, "--fractions=1.0")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = study.read_runs(tmp_path / "runs.jsonl")
    assert [run["system"] for run in runs] == list(SYSTEMS)
    assert len({run["num_labels"] for run in runs}) == 1
    assert (tmp_path / "label_efficiency.png").read_bytes()[:4] == b"\x89PNG"
    row = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert row["lstm"]["mean"] == pytest.approx(runs[-1]["auroc"])
    assert not list((tmp_path / "runs").iterdir()), "checkpoints of finished trainings are left"


def test_a_killed_study_trains_again_only_what_it_lost(tmp_path, monkeypatch):
    trained = []

    def fake(_, system, fraction, seed):
        trained.append((system, fraction, seed))
        row = {"system": system, "fraction": fraction, "seed": seed}
        return row | ({"skipped": "no positive"} if fraction < 0.1 else {"auroc": 0.5, "best_step": 2, "seconds": 1.0})

    monkeypatch.setattr(study, "fine_tune", fake)
    args = study.parse(["--debug", f"--out={tmp_path}", "--fractions=1.0,0.01"])
    of = study.Study(args, {}, None, None, {})
    first = study.run_study(of)
    assert len(first) == len(trained) == 6
    lines = (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-1]) + lines[-1][:20])
    trained.clear()
    assert study.run_study(of) == first
    assert trained == [("lstm", 0.01, 0)]
    assert (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True) == lines
    trained.clear()
    args.num_seeds = 2
    study.run_study(of)
    assert {seed for _, _, seed in trained} == {1}


def test_other_options_in_the_same_folder_are_refused(tmp_path):
    args = study.parse(["--debug", f"--out={tmp_path}"])
    study.claim(args)
    study.claim(study.parse(["--debug", f"--out={tmp_path}", "--num-seeds=3", "--fractions=0.5"]))
    with pytest.raises(ValueError, match="steps: 4 there, 5 now"):
        study.claim(study.parse(["--debug", f"--out={tmp_path}", "--steps=5"]))


def test_lines_cut_by_a_kill_are_taken_out(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert study.read_runs(path) == []
    path.write_text('{"seed": 0}\n{"se')
    assert study.read_runs(path) == [{"seed": 0}]
    assert path.read_text() == '{"seed": 0}\n'


def _labels(num_rows: int) -> Labels:
    values = (np.arange(num_rows) % 2).astype(np.float32)[:, None]
    ids = np.arange(num_rows)
    return Labels("y", "binary", ("y",), ids, ids, values, np.ones(values.shape, bool), ids, {})


def test_the_summary_pairs_seeds_and_leaves_out_skipped_runs(tmp_path):
    test = _labels(40)
    scores = {"pretrained": test.values, "scratch": 1 - test.values, "lstm": np.full_like(test.values, 0.5)}
    aurocs = {"pretrained": 1.0, "scratch": 0.0, "lstm": 0.5}
    runs = []
    for seed in range(2):
        for system, auroc in aurocs.items():
            row = {"system": system, "fraction": 0.1, "seed": seed, "num_patients": 4, "num_positives": 2}
            runs.append(row | {"auroc": auroc, "best_step": 20})
            np.save(tmp_path / f"{run_name(system, 0.1, seed)}.npy", scores[system])
    for system in SYSTEMS:
        skipped = {"system": system, "seed": 0, "num_patients": 1, "num_positives": 0, "skipped": "no positive"}
        runs += [skipped | {"fraction": 0.01}]
    runs[4] = {key: value for key, value in runs[4].items() if key != "auroc"} | {"skipped": "no positive"}
    most, least = summarise(runs, test, tmp_path, num_resamples=50)
    assert most["gain_over_scratch"] == {"mean": 1.0, "sd": None, "n": 1, "low": 1.0, "high": 1.0}
    assert (most["gain_over_lstm"]["mean"], most["gain_over_lstm"]["sd"], most["skipped"]) == (0.5, 0.0, 1)
    assert least["skipped"] == 3
    assert least["gain_over_lstm"]["mean"] is None
    assert "1.000 ± 0.000" in table([most, least])
