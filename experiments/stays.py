"""The data part of a run on hospital stays: settings, notes with their vectors, and each task's windows by split."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ehrjax.data.labels import Labels
from ehrjax.data.note_cache import embed_sentences
from ehrjax.data.note_features import count_features
from ehrjax.data.notes import Notes, build_notes
from ehrjax.data.stay_batching import StayWindows
from ehrjax.data.stay_windows import (
    NoteVectors,
    WindowSettings,
    collect,
    count_notes,
    fit_scaler,
    make_windows,
    window_settings,
)
from ehrjax.data.store import Store
from ehrjax.evaluate.files import replaced
from ehrjax.evaluate.report import write_json
from ehrjax.models.minilm_texts import load_text_encoder
from ehrjax.models.minilm_weights import find_folder
from ehrjax.wording import counted
from experiments import build

TEXTS_AT_ONCE = 5_000  # with the vectors of their sentences in memory


class StayData(NamedTuple):
    """What windows are made of, beside the stores."""

    settings: WindowSettings
    notes: NoteVectors | None


def stay_settings(config: ConfigDict) -> WindowSettings:
    """Settings of the windows; raises ValueError or FileNotFoundError for what is wrong in `config.stays`.

    For one who reads notes also where there are none, or no weights for their vectors: before any work starts.
    """
    settings = window_settings(
        tuple(config.stays.variables),
        window_hours=config.stays.window_hours,
        bin_hours=config.stays.bin_hours,
        mapping=config.stays.mapping or None,
        summaries=config.stays.summaries,
    )
    if build.reads_notes(config):
        if config.stays.note_encoder not in NOTE_ENCODERS:
            raise ValueError(
                f"stays.note_encoder={config.stays.note_encoder!r} is not known: use {' or '.join(NOTE_ENCODERS)}."
            )
        if config.data.source != "simulate" and not config.stays.notes:
            raise ValueError(
                "the model reads notes and stays.notes is empty: add --config.stays.notes=FILE[,FILE...], or leave "
                "notes out by --config.model.modalities=\"('vitals',)\"."
            )
        if config.stays.note_encoder == "minilm":
            _find_weights(config)
    return settings


def _find_weights(config: ConfigDict) -> Path:
    try:
        return find_folder(config.stays.note_weights or None)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}\nGive that folder as stays.note_weights, or read what notes state and deny, without weights: "
            "--config.stays.note_encoder=lexicon"
        ) from error


def prepare_notes(config: ConfigDict, workdir: Path, simulated: Path | None) -> NoteVectors | None:
    """Notes of the stays with a vector for each distinct text, or None for a model that reads none.

    Written to `data/notes`, the vectors to `data/note_vectors.npy`; what was embedded before a kill is not again.
    """
    if not build.reads_notes(config):
        return None
    paths = [simulated / "notes.csv"] if simulated else [part.strip() for part in config.stays.notes.split(",")]
    notes = build_notes(paths, workdir / "data" / "notes")
    names = {"num_notes": "note", "num_subjects": "patient", "num_texts": "text"}
    kept = ", ".join(counted(notes.report[key], name) for key, name in names.items())
    print(f"{kept}, {notes.report['rows_quarantined']:,} quarantined", flush=True)
    vectors = NOTE_ENCODERS[config.stays.note_encoder](notes, config, workdir)
    with replaced(workdir / "data" / "note_vectors.npy") as partial, partial.open("wb") as file:
        np.save(file, vectors)
    return NoteVectors(notes, vectors)


def _embed(notes: Notes, config: ConfigDict, workdir: Path) -> np.ndarray:
    """Mean of MiniLM's vectors of the sentences of each text beside what `_state` finds, [num_texts, 384 + 2 F].

    MiniLM hardly tells "no confusion" from "confusion", which the lexicon does; the lexicon lacks most other wordings.
    """
    encoder = load_text_encoder(_find_weights(config))
    settings = {"model_id": encoder.model_id, "width": encoder.width, "progress": True}
    vectors = np.empty((len(notes.texts), encoder.width), np.float32)
    for start in range(0, len(vectors), TEXTS_AT_ONCE):
        texts = notes.texts.slice(start, TEXTS_AT_ONCE).to_pylist()
        vectors[start : start + len(texts)] = embed_sentences(
            texts, encoder.embed, workdir / "data" / "note_cache", **settings
        )
    return np.concatenate([vectors, _state(notes, config, workdir)], axis=1)


def _state(notes: Notes, config: ConfigDict, workdir: Path) -> np.ndarray:
    """Whether each feature of the lexicon is stated of the patient, and whether it is denied, [num_texts, 2 F]."""
    counts = count_features(notes.texts)
    return (np.concatenate([counts.present, counts.denied], axis=1) > 0).astype(np.float32)


NOTE_ENCODERS = {"minilm": _embed, "lexicon": _state}


def make_parts(
    name: str, parts: Mapping[str, Labels], stores: Mapping[str, Store], stays: StayData, workdir: Path
) -> dict[str, StayWindows]:
    """Windows by split, scaled as train says; writes that and counts of measurements and notes to `stays/TASK/`."""
    found = {split: collect(stores[split], labels, stays.settings) for split, labels in parts.items()}
    scaler = fit_scaler(found["train"], stays.settings, stays.notes)
    folder = workdir / "stays" / name
    for file, part in scaler.files.items():
        with replaced(folder / file) as partial:
            part.save(partial)
    write_json(folder / "measurements.json", {split: each.measurements.counts for split, each in found.items()})
    if stays.notes is not None:
        counts = {split: count_notes(stores[split], each, stays.notes.notes) for split, each in found.items()}
        write_json(folder / "notes.json", counts)
    return {split: make_windows(each, stays.settings, scaler, stays.notes) for split, each in found.items()}


def inputs_meta(sequences: Any) -> dict[str, str]:
    """What a checkpoint of a model of stays belongs to beside config and vocabulary: the very windows of train.

    Notes, their vectors and the mapping of codes lie in files that the config only names. Of codes {}.
    """
    if not isinstance(sequences, StayWindows):
        return {}
    digest = hashlib.blake2b(digest_size=16)
    for field in fields(sequences):
        digest.update(np.ascontiguousarray(getattr(sequences, field.name)))
    return {"windows": digest.hexdigest()}


def describe_parts(parts: Mapping[str, StayWindows]) -> str:
    """How many rows lack a modality, in words."""
    num_rows = sum(len(part.has_vitals) for part in parts.values())
    lacking = {
        what: sum(int((~has).sum()) for has in each)
        for what, each in (
            ("any measurement", [part.has_vitals for part in parts.values()]),
            ("notes", [part.has_notes for part in parts.values() if part.notes.shape[1]]),
        )
        if each
    }
    parts = (f"{counted(count, 'is', 'are')} without {what}" for what, count in lacking.items())
    return f"of {counted(num_rows, 'window')} {', '.join(parts)}"
