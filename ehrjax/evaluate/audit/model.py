"""A run's models rebuilt from its config and checkpoints, as the evaluation used them."""

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np

from ehrjax.data.batching import VisitBatches
from ehrjax.data.notes import open_notes
from ehrjax.data.perturb_notes import change_notes_after
from ehrjax.data.sequences import build_visit_level_sequences, build_visit_sequences
from ehrjax.data.stay_batching import StayBatches, StayWindows
from ehrjax.data.stay_windows import NoteVectors, WindowScaler, WindowSettings, collect, make_windows, window_settings
from ehrjax.data.timeline import rank_in_group
from ehrjax.data.token_batching import TokenBatches, count_tokens
from ehrjax.data.windows import truncate
from ehrjax.evaluate.audit.index_time import TaskModel
from ehrjax.evaluate.audit.workdir import Run, TaskRecord
from ehrjax.evaluate.predict import predict
from ehrjax.models.registry import MODELS, head_names
from ehrjax.train.checkpoint import restore_best_params
from ehrjax.types import VisitSequences


def rebuild(run: Run, record: TaskRecord, params: Any = None) -> TaskModel:
    """How the task's inputs and outputs are made.

    `params` are those of one model; without them the best ones of the checkpoint, where it holds whole parameters of
    one seed (else there are no outputs, and a reason).
    """
    if reads_stays(run):
        return _rebuild_stays(run, record, params)
    limits = {"max_visits": run.config["data.max_visits"], "max_codes": run.config["data.max_codes"]}

    def patient_level(store, labels) -> VisitSequences:
        return build_visit_sequences(store, run.vocab, labels, **limits)

    def visit_level(store, labels) -> VisitSequences:
        return build_visit_level_sequences(store, run.vocab, labels, **limits)

    at_visits = visit_level if _trains_at_visits(run, record) else None
    if params is None:
        reason = _why_not(run)
        if reason:
            return TaskModel(patient_level, make_visit_sequences=at_visits, reason=reason)
        params = restore_best_params(run.workdir / "checkpoints" / record.name)
    return TaskModel(
        patient_level,
        partial(_predict, run.config, params, len(run.vocab)),
        at_visits,
        None if at_visits is None else partial(_predict_visits, run.config, params, len(run.vocab)),
    )


def reads_stays(run: Run) -> bool:
    """Whether the run's model takes windows of hospital stays."""
    return getattr(MODELS[run.config["model.name"]], "reads_stays", False)


def settings_of(run: Run) -> WindowSettings:
    """The windows' settings, as the config names them."""
    hours = {name: run.config[f"stays.{name}"] for name in ("window_hours", "bin_hours")}
    others = {"mapping": run.config["stays.mapping"] or None, "summaries": run.config.get("stays.summaries", False)}
    return window_settings(run.config["stays.variables"], **hours, **others)


def load_scaler(run: Run, name: str) -> WindowScaler:
    """What scaled the windows of a task."""
    return WindowScaler.load(run.workdir / "stays" / name, settings_of(run), reads_notes=_reads_notes(run))


def notes_of(run: Run) -> NoteVectors | None:
    """The run's notes with their vectors; None where the model reads none."""
    if not _reads_notes(run):
        return None
    folder = run.workdir / "data"
    return NoteVectors(open_notes(folder / "notes"), np.load(folder / "note_vectors.npy", mmap_mode="r"))


def _reads_notes(run: Run) -> bool:
    return "notes" in run.config.get("model.modalities", ())


def _rebuild_stays(run: Run, record: TaskRecord, params: Any) -> TaskModel:
    settings, scaler, notes = settings_of(run), load_scaler(run, record.name), notes_of(run)

    def windows(store, labels, *, notes=notes) -> StayWindows:
        return make_windows(collect(store, labels, settings), settings, scaler, notes)

    def windows_after(subject_ids, times, change: str, seed: int):
        changed = change_notes_after(notes.notes, subject_ids, times, change=change, seed=seed)
        return partial(windows, notes=notes._replace(notes=changed))

    model = TaskModel(windows, change_rest=windows_after if notes else None)
    if params is None:
        reason = _why_not(run)
        if reason:
            return model._replace(reason=reason)
        params = restore_best_params(run.workdir / "checkpoints" / record.name)
    return model._replace(predict=partial(_predict_stays, run.config, params))


def _predict_stays(config: dict[str, Any], params: Any, stays: StayWindows) -> np.ndarray:
    apply_fn = partial(_logits, _model(config, params, 0, "patient"))
    batches = StayBatches(stays, batch_size=config["train.batch_size"])
    return predict(apply_fn, params, batches.eval_batches(), kind="regression")


def _trains_at_visits(run: Run, record: TaskRecord) -> bool:
    is_causal = not run.config.get("model.bidirectional", False) and run.config.get("model.causal", True)
    is_drawn = record.task is None or record.task.index != "every_visit"
    return bool(run.config["train.every_visit"] and is_causal and not is_drawn)


def _why_not(run: Run) -> str:
    if run.config["train.lora_rank"]:
        return "the checkpoint holds adapters, not the model (train.lora_rank)"
    if run.config.get("train.num_seeds", 1) != 1:
        return "the checkpoint holds several members (train.num_seeds)"
    return ""


def _model(config: dict[str, Any], params: Any, vocab_size: int, level: str):
    model = MODELS[config["model.name"]]
    names = {field.name for field in dataclasses.fields(model)}
    fields = {key.removeprefix("model."): value for key, value in config.items() if key.startswith("model.")}
    fields = {name: value for name, value in fields.items() if name in names and name != "name"}
    fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}  # JSON has no tuples
    decided = {"vocab_size": vocab_size, "level": level, "max_tokens": config["data.max_tokens"]}
    fields |= {name: value for name, value in decided.items() if name in names}
    return model(num_outputs=params[head_names(params)[0]]["kernel"].shape[-1], **fields)


def _logits(model, params: Any, batch: Any) -> jax.Array:
    return model.apply({"params": params}, batch).logits


def _predict(config: dict[str, Any], params: Any, vocab_size: int, sequences: VisitSequences) -> np.ndarray:
    """Logits [E, K]: what follows from them (link, threshold) reads nothing else."""
    apply_fn = partial(_logits, _model(config, params, vocab_size, "patient"))
    if config["model.name"] == "visit_lstm":
        sizes = {"num_buckets": config["train.num_buckets"], "max_codes": config["data.max_codes"]}
        batches = VisitBatches(sequences, batch_size=config["train.batch_size"], **sizes)
    else:
        longest = config["data.max_tokens"]
        short = truncate(sequences, max_tokens=longest)
        batches = TokenBatches(short, row_tokens=longest, batch_size=config["train.batch_size"])
    return predict(apply_fn, params, batches.eval_batches(), kind="regression")  # regression: logits as they are


def _predict_visits(config: dict[str, Any], params: Any, vocab_size: int, sequences: VisitSequences) -> np.ndarray:
    """Logits [num_visits, K]; of records too long for a row of tokens, which train reads in windows, NaN."""
    model = _model(config, params, vocab_size, "visit")
    if config["model.name"] == "visit_lstm":
        sizes = {"num_buckets": config["train.num_buckets"], "max_codes": config["data.max_codes"]}
        batches = VisitBatches(sequences, batch_size=config["train.batch_size"], level="visit", **sizes)
        return predict(partial(_logits, model), params, batches.eval_batches(), kind="regression")
    longest = config["data.max_tokens"]
    fits = np.flatnonzero(count_tokens(sequences) <= longest)
    scores = np.full((len(sequences.ages), model.num_outputs), np.nan, np.float32)
    if not len(fits):
        return scores
    short, visits = _take(sequences, fits)
    batches = TokenBatches(short, row_tokens=longest, batch_size=config["train.batch_size"], level="visit")
    step = jax.jit(partial(_logits, model))
    for batch in batches.eval_batches():
        logits, ids = np.asarray(step(params, batch)), np.asarray(batch.example_ids)
        rows, columns = np.nonzero(batch.visit_mask)
        segments = np.asarray(batch.visit_segments)[rows, columns]
        examples = ids[rows, segments - 1]
        number = rank_in_group(rows * (ids.shape[1] + 1) + segments)
        scores[visits[short.example_offsets[examples] + number]] = logits[rows, columns]
    return scores


def _take(sequences: VisitSequences, examples: np.ndarray) -> tuple[VisitSequences, np.ndarray]:
    """These examples of visit-level sequences, and the number that each of their visits had."""
    chosen = np.zeros(len(sequences.subject_ids), bool)
    chosen[examples] = True
    of_visit = np.repeat(chosen, np.diff(sequences.example_offsets))
    sizes = np.diff(sequences.visit_offsets)
    return (
        VisitSequences(
            codes=sequences.codes[np.repeat(of_visit, sizes)],
            visit_offsets=np.append(0, np.cumsum(sizes[of_visit])),
            example_offsets=np.append(0, np.cumsum(np.diff(sequences.example_offsets)[chosen])),
            ages=sequences.ages[of_visit],
            gap_days=sequences.gap_days[of_visit],
            subject_ids=sequences.subject_ids[chosen],
            times=sequences.times[chosen],
            labels=sequences.labels[of_visit],
            label_mask=sequences.label_mask[of_visit],
        ),
        np.flatnonzero(of_visit),
    )
