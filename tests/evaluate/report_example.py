"""A finished run, made up, in which every part of a report is present and descriptions are hostile."""

import json
from pathlib import Path

import numpy as np

from ehrjax.evaluate.predict import write_predictions
from ehrjax.evaluate.report import write_json

HOSTILE = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>\"|`& Ünï"
SYSTEMS = ("logistic", "boosting", "visit_count")
TASK = "diabetes_onset"


def entry(value: float, half: float = 0.03, **more) -> dict:
    return {"value": value, "low": value - half, "high": value + half, **more}


def example_results() -> dict:
    """results.json with every part that a report reads."""
    flow = {"subjects": 6000, "subjects_with_visits": 5990, "index_times": 42_000, "no_record": 12, "dead": 830}
    flow |= {
        "eligible": 9100,
        "subjects_eligible": 4200,
        "not_drawn": 0,
        "censored": 700,
        "kept": 8400,
        "positives": 680,
    }
    return {
        "model": {"name": "behrt", "num_params": 522_497},
        "data": {
            **{"num_patients": 6000, "num_events": 1_200_000, "num_visits": 90_000, "vocab_size": 812},
            **{"rows_read": 1_201_000, "rows_kept": 1_200_000, "rows_quarantined": 1000},
            "rows_by_reason": {"no_patient": 700, "bad_time": 280, "before_birth": 20},
            "files": [{"file": "a.csv", "rows_read": 3}, {"file": HOSTILE, "rows_read": 4}],
            "settings": {"visits": "hybrid"},
        },
        "pretrain": {
            "val": {"mlm_accuracy": entry(0.68), "next_visit_f1": entry(0.4)},
            "test": {"mlm_accuracy": entry(0.67, 0.01), "next_visit_f1": entry(0.4, 0.01)},
            "baselines": {
                "unigram": {"mlm_accuracy": entry(0.04, 0.01)},
                "repeat_last": {"next_visit_f1": entry(0.33)},
            },
        },
        "tasks": {TASK: _binary_task() | {"flow": flow}, "death": _survival_task(), "rare": _skipped()},
        "embeddings": {"silhouette": 0.41, "knn_precision_at_10": 0.72, "num_queries": 900, "clusters": _clusters()},
        "audit": {
            "passed": False,
            "checks": [
                {"name": "split_overlap", "passed": True, "detail": "0 of 6,000 patients in two splits"},
                {"name": "future_events", "passed": False, "detail": f"3 rows differ {HOSTILE}"},
                {"name": "recorded_late", "passed": None, "detail": "the source has no recording times"},
            ],
        },
        "train": {"steps": 2000, "seconds": 301.5, "tokens_per_second": 20_000.5},
    }


def _skipped() -> dict:
    return {"kind": None, "skipped": f"2 positives in val {HOSTILE}", "flow": {"subjects": 10, "dead": 4, "kept": 2}}


def _binary_task() -> dict:
    thresholds = (np.arange(1, 100) / 100).tolist()
    benefit = {
        "model": [0.08 - 0.2 * t for t in thresholds],
        "boosting": [0.08 - 0.25 * t for t in thresholds],
        "treat all": [0.08 - t if t < 0.99 else None for t in thresholds],
        "treat none": [0.0] * 99,
    }
    figures = {"auroc": entry(0.865), "auprc": entry(0.41), "brier": entry(0.06, 0.01)}
    undefined = {"value": None, "low": None, "high": None, "reason": "no fit"}
    few = {"num_patients": "<10", "num_positive": "<10", "reason": "fewer than 10 patients"}
    return {
        **{"kind": "binary", "num_train": 4200, "num_val": 900, "num_test": 900, "num_test_patients": 400},
        **{"prevalence": 0.081, "threshold": 0.12},
        "test": figures | {"calibration_slope": undefined},
        "baselines": {name: {"auroc": entry(0.78), "auprc": entry(0.3), "brier": entry(0.07)} for name in SYSTEMS},
        "oracle": {"auroc": 0.886, "latent_auroc": 0.93},
        "difference": {"baseline": "boosting", "auroc": entry(0.048), "brier": entry(-0.01, 0.004)},
        "recalibration": {
            "before": {"calibration_slope": 0.7, "ece": 0.04},
            "platt": {"calibration_slope": 0.98, "ece": 0.02, "fitted_slope": 0.7},
            "isotonic": {"reason": "all 900 validation labels are 0"},
        },
        "decision_curve": {"thresholds": thresholds, "net_benefit": benefit},
        "subgroups": {
            "sex": {
                "F": {"num_patients": 240, "num_positive": 22, "auroc": entry(0.86)},
                "M": {"num_patients": 160, "num_positive": 15, "auroc": entry(0.87)},
            },
            "race": {"asian": few, HOSTILE: {"num_patients": 390, "num_positive": "withheld", "auroc": entry(0.86)}},
        },
        "seeds": {
            "num_seeds": 5,
            "members": {"auroc": {"mean": 0.851, "std": 0.006, "min": 0.842, "max": 0.858}},
            "single": {"auroc": entry(0.85)},
            "risk_spread": {"median_std": 0.012, "p95_std": 0.08, "flip_share": 0.07},
        },
        "explanations": [_explanation(seed) for seed in range(3)],
    }


def _explanation(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    visits = []
    for number in range(1, 9):
        codes = [
            {
                "code": "LAB//LOINC//4548-4",
                "description": HOSTILE if k == 0 else "Hemoglobin A1c (Q3)",
                "attribution": a,
            }
            for k, a in enumerate(rng.normal(0, 0.3, 3).tolist())
        ]
        total = sum(code["attribution"] for code in codes)
        visit = {"number": number, "age": 50.0 + number, "days_before_last": 365.0 * (8 - number), "attribution": total}
        visit |= {"occlusion": None, "logit_after": 0.1 * number, "risk_after": 0.05 * number, "codes": codes}
        visits.append(visit)
    return {"example": 987_654, "subject_id": 123_454_321, "logit": 0.8, "risk": 0.4, "gap": 0.0, "visits": visits}


def _survival_task() -> dict:
    days = list(range(0, 731, 73))
    curves = {
        name: {"days": days, "observed": [rate * d for d in days], "predicted": [rate * 400, rate * 800]}
        for name, rate in (("low", 1e-4), ("high", 4e-4))
    }
    return {
        **{"kind": "survival", "num_train": 4200, "num_test": 900, "num_test_patients": 400, "prevalence": None},
        "test": {"concordance": entry(0.72), "concordance_ipcw": entry(0.71), "brier_365d": entry(0.05, 0.01)},
        "baselines": {"cox": {"concordance": entry(0.7), "concordance_ipcw": entry(0.69)}},
        "oracle": {"concordance": 0.74},
        "difference": {"baseline": "cox", "concordance": entry(0.02)},
        "survival": {"cause": "death", "horizons": [365, 730], "curves": curves},
    }


def _clusters() -> dict:
    code = {"code": HOSTILE, "num_patients": 90, "share": 0.9, "share_elsewhere": 0.1, "odds_ratio": 81.0}
    curve = {"times": [0.5, 1.0, 3.0], "survival": [0.9, 0.8, 0.5]}
    described = {
        "age": {"mean": 61.2, "sd": 11.0},
        "sex": {"F": 0.6, "M": 0.4},
        "enriched_codes": [code | {"p_adjusted": 1e-12}],
        "outcomes": {"death": {"num_patients": 100, "num_events": 9, "per_100_years": 3.1, "curve": curve}},
    }
    small = {"cluster": 1, "num_patients": 4, "share": 0.02, "reason": "not described: fewer than 10 patients"}
    return {"num_patients": 104, "clusters": [{"cluster": 0, "num_patients": 100, "share": 0.98, **described}, small]}


def example_map(num_points: int = 60) -> dict:
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 3, num_points)
    x, y = rng.normal(0, 1, (2, num_points)) + 4 * np.stack([cluster, cluster % 2])
    diseases = ("none", "type 2 diabetes", HOSTILE)
    return {
        **{"x": x.tolist(), "y": y.tolist(), "method": "tsne", "cluster": cluster.tolist()},
        "age": [None, *rng.uniform(5, 95, num_points - 1).tolist()],
        "disease": [diseases[k] for k in cluster],
        "outcome": (rng.random(num_points) < 0.2).tolist(),
        "top_codes": [[HOSTILE, "Metformin"] if k else [] for k in range(num_points)],
    }


def write_example(workdir: Path) -> Path:
    """All files of such a run, but for the report."""
    rng = np.random.default_rng(1)
    write_json(workdir / "results.json", example_results())
    write_json(workdir / "config.json", {"name": "behrt_small", "data.source": "simulate", "train.seed": 0})
    about = {
        "command": "python -m experiments.run --config=configs/behrt_small.py",
        "started": "2026-11-22T01:50:00+0000",
    }
    write_json(workdir / "environment.json", about | {"python": "3.11.0", "devices": ["cpu:cpu"]})
    write_json(workdir / "embedding_map.json", example_map())
    rows = [{"step": s, "part": "pretrain", "train/loss": 9 * 0.9**s, "val/loss": 9.2 * 0.9**s} for s in range(20)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 20, "tr')
    risks = rng.beta(1, 8, 400)
    write_predictions(
        workdir / "predictions" / f"{TASK}.parquet",
        "binary",
        subject_ids=np.arange(400) + 700_000_000,
        times=np.full(400, 86_400),
        labels=(rng.random(400) < risks)[:, None],
        scores=risks[:, None],
        mask=(np.arange(400) > 3)[:, None],
    )
    return workdir
