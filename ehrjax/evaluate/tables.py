"""results.json as text: one aligned table a task, model beside baselines and oracle."""

from collections.abc import Mapping, Sequence
from typing import Any

from ehrjax.wording import counted

FEW_PATIENTS = 30  # a bootstrap over fewer gives intervals that are too narrow
ORACLE_NAMES = {"": "oracle (record)", "latent_": "oracle (latent)"}
RANKED_BY = {"auroc": "AUROC", "macro_auroc": "macro AUROC", "c_index": "C-index", "concordance": "C-index"}


def number(entry: Any, key: str = "value") -> float | None:
    """A figure from {"value", "low", "high"}, or from a bare number as the oracle has; None where it is absent."""
    if isinstance(entry, Mapping):
        return entry.get(key)
    return entry if key == "value" else None


def systems_of(task: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What a task compares, by column: the model, the fitted baselines, the oracle in its forms."""
    fitted = {name: row for name, row in (task.get("baselines") or {}).items() if "skipped" not in row}
    oracle = task.get("oracle") or {}
    latent = {key.removeprefix("latent_"): value for key, value in oracle.items() if key.startswith("latent_")}
    record = {key: value for key, value in oracle.items() if not key.startswith("latent_")}
    oracles = {ORACLE_NAMES[""]: record, ORACLE_NAMES["latent_"]: latent}
    return {"model": task["test"], **fitted, **{name: row for name, row in oracles.items() if row}}


# Of the many figures of pre-training, those that a table shows; results.json has all.
PRETRAIN_METRICS = (
    *("mlm_loss", "mlm_accuracy", "mlm_top5_accuracy", "mlm_top10_accuracy"),
    *("next_visit_f1", "next_visit_macro_f1", "next_visit_recall_at_10", "next_visit_precision_at_10"),
    *("next_visit_recall_at_10_new", "next_visit_recall_at_10_recurrent"),
)


def results_table(results: Mapping[str, Any]) -> str:
    """Pre-training and all tasks of results.json as plain text, test split, with 95 % intervals in brackets."""
    parts = [pretrain_text(results)] if results.get("pretrain") else []
    return "\n\n".join([*parts, *(task_text(name, task) for name, task in results["tasks"].items())])


def pretrain_rows(pretrained: Mapping[str, Any]) -> list[list[str]]:
    """Heading and a row a metric; columns: the model on val, on test, and the baselines on test."""
    systems = {"model": pretrained["test"], **pretrained["baselines"]}
    rows = [["", "model (val)", *systems]]
    for metric in PRETRAIN_METRICS:
        if metric in pretrained["test"]:
            cells = [cell(row.get(metric)) for row in systems.values()]
            rows.append([metric, cell({"value": number(pretrained["val"][metric])}), *cells])
    return rows


def pretrain_text(results: Mapping[str, Any]) -> str:
    """Pre-training: model and baselines on the same hidden codes and next visits; then the embeddings' figures."""
    lines = ["pretrain, test split", "", *aligned(pretrain_rows(results["pretrain"]))]
    return "\n".join([*lines, f"- {embedding_note(results)}"])


def embedding_note(results: Mapping[str, Any]) -> str:
    """The figures of the patient embeddings in one line, or why there are none."""
    embeddings = results.get("embeddings") or {}
    figures = [f"{name} {digits(value)}" for name, value in embeddings.items() if isinstance(value, float)]
    reasons = [embeddings["reason"]] if embeddings.get("reason") else []
    return "patient embeddings: " + ", ".join([*figures, *reasons] or ["not judged"])


def task_text(name: str, task: Mapping[str, Any]) -> str:
    """One task: a heading, a row a metric and a column a system, then what was skipped and why."""
    if not task.get("kind"):
        return f"{name}: not trained. {task.get('skipped', '')}".rstrip()
    lines = [heading(name, task), "", *aligned(task_rows(task)), *(f"- {note}" for note in notes(task))]
    rows = modality_rows(task)
    return "\n".join([*lines, *(["", *aligned(rows)] if rows else [])])


def task_rows(task: Mapping[str, Any]) -> list[list[str]]:
    """Heading and a row a metric; columns: model, baselines, oracle, then the model's paired difference to the best
    baseline where there is one.
    """
    systems, difference = systems_of(task), task.get("difference") or {}
    against = [f"model - {difference['baseline']}"] if difference.get("baseline") else []
    rows = [["", *systems, *against]]
    for metric in task["test"]:
        differences = [cell(difference.get(metric), signed=True)] if against else []
        rows.append([metric, *(cell(row.get(metric)) for row in systems.values()), *differences])
    return rows


def modality_rows(task: Mapping[str, Any]) -> list[list[str]]:
    """Heading and a row for each modality alone and for both: figures, those of its oracle, both less it; or []."""
    forms = task.get("modalities") or {}
    shown = [
        metric for metric in (*RANKED_BY, "auprc", "brier") if any(metric in row["test"] for row in forms.values())
    ]
    if not shown:
        return []
    first = shown[0]
    rows = [["reads", *shown, f"oracle {first}", f"both less it, {first}"]]
    for form, row in forms.items():
        figures = [cell(row["test"].get(metric)) for metric in shown]
        oracle = cell({"value": number((row.get("oracle") or {}).get(first))})
        rows.append([form, *figures, oracle, cell((row.get("both_minus") or {}).get(first), signed=True)])
    return rows


def heading(name: str, task: Mapping[str, Any]) -> str:
    """Task, kind, sizes and prevalence in one line."""
    parts = [
        counted(task[f"num_{split}"], f"{split} row") for split in ("train", "val", "test") if f"num_{split}" in task
    ]
    if task.get("prevalence") is not None:
        parts.append(f"prevalence {task['prevalence']:.3f}")
    if task.get("threshold") is not None and task["kind"] in ("binary", "multilabel"):
        parts.append(f"threshold {task['threshold']:.3f}")
    if horizons := (task.get("survival") or {}).get("horizons"):
        parts.append(f"horizons {', '.join(f'{days:g}' for days in horizons)} days")
    return f"{name} ({task['kind']}), test split: {', '.join(parts)}"


def notes(task: Mapping[str, Any]) -> list[str]:
    """Sentences under the table: few patients, seeds, distance to the oracle, undefined figures, skipped baselines."""
    systems, lines = systems_of(task), []
    patients = task.get("num_test_patients", FEW_PATIENTS)
    if patients < FEW_PATIENTS:
        lines.append(f"intervals rest on {counted(patients, 'test patient')} only: take them as too narrow")
    lines += _seed_notes(task)
    for name in ORACLE_NAMES.values():
        for metric, title in RANKED_BY.items():
            ours, best = (number(systems.get(system, {}).get(metric)) for system in ("model", name))
            if ours is not None and best is not None:
                lines.append(f"model {title} minus that of the {name}: {ours - best:+.3f}")
    reasons: dict[str, list[str]] = {}
    for system, row in systems.items():
        for metric, entry in row.items():
            if isinstance(entry, Mapping) and entry.get("reason"):
                reasons.setdefault(f"{system}: {entry['reason']}", []).append(metric)
    lines += [f"{', '.join(metrics)} undefined for {reason}" for reason, metrics in reasons.items()]
    baselines = task.get("baselines") or {}
    return lines + [f"{name} skipped: {row['skipped']}" for name, row in baselines.items() if "skipped" in row]


def _seed_notes(task: Mapping[str, Any]) -> list[str]:
    """What the test figures are of where several seeds were trained, and how far the members lie apart."""
    seeds = task.get("seeds") or {}
    if not seeds.get("members"):
        return []
    spread = [
        f"{title} {row['mean']:.3f} (sd {row['std']:.3f})"
        for metric, title in RANKED_BY.items()
        if (row := seeds["members"].get(metric)) and None not in (row.get("mean"), row.get("std"))
    ]
    members = f"; members: {', '.join(spread)}" if spread else ""
    num_seeds = counted(seeds.get("num_seeds", len(spread)), "seed")
    return [f"figures are of the mean prediction of {num_seeds}{members}"]


def cell(entry: Any, *, signed: bool = False) -> str:
    """`0.812 [0.790, 0.834]`, or a dash where there is no figure; `signed` for differences."""
    values = [number(entry, key) for key in ("value", "low", "high")]
    if values[0] is None:
        return "-"
    sign = "+" if signed else ""
    value, *ends = (None if end is None else digits(end, sign=sign) for end in values)
    return value if None in ends else f"{value} [{', '.join(ends)}]"


def digits(value: float, *, sign: str = "") -> str:
    """Three decimals, fewer for large figures."""
    return f"{value:{sign}.3f}" if abs(value) < 100 else f"{value:{sign},.1f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to one width each, two spaces apart."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
