"""Text embeddings kept on disk by the content of the text: a sentence is embedded once, whatever run asks for it.

`FOLDER/MODEL_ID/*.npy`, each an array of records: a key (the SHA-256 of the text's UTF-8, its first 32 hex digits) and
a float32 vector. Files appear whole or not at all and are never changed, so a killed run goes on where it was and
several processes may share a folder.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from tqdm import tqdm

TEXTS_A_FILE = 1024  # at most so many are embedded again after a kill
# A line that goes on in lower case goes on with the sentence. "Mrs. R. has" does not end one.
_SOFT_WRAP = re.compile(r"\r?\n(?=[ \t]*[a-z])")
_SENTENCE_END = re.compile(r"(?<=[.;?!])(?<!\b[A-Z]\.)(?<!\b[DM][rs]\.)(?<!\bMrs\.)\s+|\r?\n")

Embed = Callable[[list[str]], Float[np.ndarray, "n D"]]


def embed_cached(
    texts: Sequence[str], embed: Embed, folder: str | Path, *, model_id: str, width: int, progress: bool = False
) -> Float[np.ndarray, "N D"]:
    """Vectors of the texts in their order; those not in the folder are made by `embed` and added to it.

    `model_id` names whatever decides the vectors (weights, tokenizer, settings). Raises ValueError naming a file that
    is no such array, or vectors that are not finite or of another width.
    """
    folder = Path(folder) / model_id
    unique, first, places = np.unique(content_keys(texts), return_index=True, return_inverse=True)
    vectors = np.empty((len(unique), width), np.float32)
    is_known = _read_all(folder, unique, vectors)
    missing = np.flatnonzero(~is_known)
    missing = missing[np.argsort(first[missing])]
    with tqdm(total=len(unique), initial=int(is_known.sum()), desc="notes", unit="", disable=not progress) as bar:
        for start in range(0, len(missing), TEXTS_A_FILE):
            part = missing[start : start + TEXTS_A_FILE]
            vectors[part] = _checked(embed([texts[place] for place in first[part]]), len(part), width)
            _write(folder, unique[part], vectors[part])
            bar.update(len(part))
    return vectors[places]


def embed_sentences(
    texts: Sequence[str], embed: Embed, folder: str | Path, *, model_id: str, width: int, progress: bool = False
) -> Float[np.ndarray, "N D"]:
    """Mean vector of the sentences of each text, each distinct sentence embedded once; else as `embed_cached`.

    A sentence says one thing, which its vector holds well; the vector of a whole note blurs what it states and denies.
    Notes repeat sentences far more than they repeat themselves, and none is too long for the encoder.
    """
    if not len(texts):
        return np.zeros((0, width), np.float32)
    parts = [split_sentences(text) for text in texts]
    vectors = embed_cached(
        [sentence for part in parts for sentence in part],
        embed,
        folder,
        model_id=model_id,
        width=width,
        progress=progress,
    )
    counts = np.array([len(part) for part in parts])
    sums = np.add.reduceat(vectors, np.cumsum(counts) - counts, axis=0)
    return sums / counts[:, None].astype(np.float32)


def split_sentences(text: str) -> list[str]:
    """Sentences of a clinical note: up to a full stop, semicolon, question or exclamation mark, or the line's end.

    What holds no letter or digit is left out, unless the whole text does not.

    >>> split_sentences("Mr R. is alert; no SOB at 2.5 L\\nof oxygen. Cough?")
    ['Mr R. is alert;', 'no SOB at 2.5 L of oxygen.', 'Cough?']
    """
    parts = (part.strip() for part in _SENTENCE_END.split(_SOFT_WRAP.sub(" ", text)))
    return [part for part in parts if any(map(str.isalnum, part))] or [text]


def content_keys(texts: Sequence[str]) -> Shaped[np.ndarray, "N"]:
    """32 hex digits for each text, as bytes."""
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32] for text in texts]
    return np.array(digests, "S32")


def _record(width: int) -> np.dtype:
    return np.dtype([("key", "S32"), ("vector", "<f4", (width,))])


def _read_all(folder: Path, keys: Shaped[np.ndarray, "U"], vectors: Float[np.ndarray, "U D"]) -> Bool[np.ndarray, "U"]:
    """Fill in the vectors of the (sorted) keys that the folder has, and say which those are."""
    is_known = np.zeros(len(keys), bool)
    for path in sorted(folder.glob("*.npy")) if len(keys) else []:
        records = _open(path, _record(vectors.shape[1]))
        places = np.searchsorted(keys, records["key"]).clip(max=len(keys) - 1)
        hits = np.flatnonzero(keys[places] == records["key"])
        vectors[places[hits]] = records["vector"][hits]
        is_known[places[hits]] = True
    return is_known


def _open(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        records = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}): delete it, its notes are then embedded again.") from error
    if records.dtype != dtype:
        raise ValueError(f"{path} holds {records.dtype}, expected {dtype}: delete it, or use another cache folder.")
    return records


def _checked(vectors: np.ndarray, num_texts: int, width: int) -> np.ndarray:
    if vectors.shape != (num_texts, width):
        raise ValueError(f"the encoder returned shape {vectors.shape} for {num_texts} texts, expected width={width}.")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise ValueError(f"the encoder returned a vector that is not finite, for text {row} of {num_texts}.")
    return vectors


def _write(folder: Path, keys: np.ndarray, vectors: np.ndarray) -> None:
    records = np.empty(len(keys), _record(vectors.shape[1]))
    records["key"], records["vector"] = keys, vectors
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
    partial = folder / f".{name}.{secrets.token_hex(4)}.partial"
    try:
        with partial.open("wb") as file:
            np.save(file, records, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / f"{name}.npy")
    finally:
        partial.unlink(missing_ok=True)
