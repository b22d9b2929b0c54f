"""From texts to unit vectors: word pieces, several texts in a row, MiniLM.

Rows come in three lengths, so at most three programs are compiled. A text shares a row with others, so hardly any
padding is computed; attention stays within a text and positions restart, so a vector is the same whatever shares its
row.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ehrjax.models.minilm import MiniLm
from ehrjax.models.minilm_weights import find_folder, fingerprint, read_model, read_tokenizer

MAX_PIECES = 256  # with [CLS] and [SEP]: where the reference cuts
ROW_LENGTHS = (64, 128, 256)
TEXTS_A_ROW = 16
# Tokens of a batch: on CPU 512 stay near the caches (2048 were a sixth slower), an accelerator wants many. A CPU
# computes as many batches at once as it has cores: on two 7 to 9 % faster than all cores on one batch.
CPU_TOKENS, ACCELERATOR_TOKENS = 512, 65_536
GROUP = 1024  # texts tokenized and packed at a time: bounds memory
LONG_TEXTS = ("cut", "average")


class TextEncoder:
    """MiniLM with its weights and tokenizer; see `load_text_encoder`.

    `model_id` tells encoders apart whose vectors may differ, as a key for `ehrjax.data.note_cache`.
    """

    def __init__(self, model: MiniLm, params: Any, tokenizer: Any, *, long_texts: str = "cut", weights_id: str = ""):
        if long_texts not in LONG_TEXTS:
            raise ValueError(f"long_texts={long_texts!r} is not known: use one of {', '.join(LONG_TEXTS)}.")
        if tokenizer.get_vocab_size() > model.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_vocab_size()} pieces, the weights {model.vocab_size}: "
                "take both from one folder."
            )
        self.model, self.params, self.width = model, jax.device_put(params), model.width
        self.long_texts = long_texts
        self.model_id = hashlib.sha256(f"{weights_id} {MAX_PIECES} {long_texts}".encode()).hexdigest()[:32]
        self._tokenizer = tokenizer
        self._start, self._end = (tokenizer.token_to_id(piece) for piece in ("[CLS]", "[SEP]"))

    def embed(self, texts: Sequence[str], *, progress: bool = False) -> Float[np.ndarray, "N D"]:
        """Unit vectors in the order of `texts`; a text without a word has the vector of [CLS] [SEP] alone.

        A text of more than 254 word pieces is cut there, as the reference does, or with long_texts="average" its
        pieces are embedded 254 at a time and the vectors averaged, each weighing as many as it has pieces. Raises
        TypeError naming the place of what is no string.
        """
        vectors = np.zeros((len(texts), self.width), np.float32)
        with tqdm(total=len(texts), desc="embedding", unit=" texts", disable=not progress) as bar:
            for start in range(0, len(texts), GROUP):
                owners, parts = self._parts(texts[start : start + GROUP], start)
                is_first = np.diff(owners, prepend=-1) > 0
                for members, found in self._embed_parts(parts):
                    weights = np.array([len(parts[part]) - 2 for part in members]).clip(1)
                    np.add.at(vectors, start + owners[members], found * weights[:, None])
                    bar.update(int(is_first[members].sum()))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def _parts(self, texts: Sequence[str], first: int) -> tuple[Int[np.ndarray, "P"], list[list[int]]]:
        """Word pieces, [CLS] and [SEP] around them, of at most MAX_PIECES each, and which text each list is of."""
        for place, text in enumerate(texts, first):
            if not isinstance(text, str):
                raise TypeError(f"texts[{place}] is {text!r}, not a string: drop it, or give '' for a note of nothing.")
        whole = [text.encode("utf-8", "replace").decode() for text in texts]  # the tokenizer refuses half a pair
        size, owners, parts = MAX_PIECES - 2, [], []
        for owner, encoding in enumerate(self._tokenizer.encode_batch(whole, add_special_tokens=False)):
            pieces = encoding.ids if self.long_texts == "average" else encoding.ids[:size]
            for start in range(0, max(len(pieces), 1), size):
                owners.append(owner)
                parts.append([self._start, *pieces[start : start + size], self._end])
        return np.array(owners, np.int64), parts

    def _embed_parts(self, parts: list[list[int]]) -> Iterator[tuple[Int[np.ndarray, "m"], Float[np.ndarray, "m D"]]]:
        rows, is_cpu = pack([len(part) for part in parts]), jax.default_backend() == "cpu"
        batches = []
        for length in ROW_LENGTHS:
            chosen = [row.members for row in rows if row.length == length]
            size = (CPU_TOKENS if is_cpu else ACCELERATOR_TOKENS) // length
            batches += [(chosen[start : start + size], size, length) for start in range(0, len(chosen), size)]

        def embed_batch(batch):
            members, size, length = batch
            pooled = np.asarray(_forward(self.model, self.params, *_fill(members, parts, size, length)))
            row_of = np.repeat(np.arange(len(members)), [len(row) for row in members])
            slot_of = np.concatenate([np.arange(len(row)) for row in members])
            return np.concatenate(members), pooled[row_of, slot_of]

        with ThreadPoolExecutor(_count_cores() if is_cpu else 1) as pool:
            yield from pool.map(embed_batch, batches)


def load_text_encoder(folder: str | Path | None = None, *, long_texts: str = "cut") -> TextEncoder:
    """The all-MiniLM-L6-v2 encoder with weights from `folder`, the installed package or huggingface_hub.

    Raises FileNotFoundError that says the ways to get the weights, ImportError that names the extra to install.
    """
    found = find_folder(folder)
    model, params = read_model(found)
    return TextEncoder(model, params, read_tokenizer(found), long_texts=long_texts, weights_id=fingerprint(found))


def _count_cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(usable(0)) if usable else os.cpu_count() or 1


class Row(NamedTuple):
    """A row's length in tokens, and which texts lie in it, in order."""

    length: int
    members: list[int]


def pack(lengths: Sequence[int]) -> list[Row]:
    """Texts into rows, longest first: into the first row with room, else a new one of the least length that fits."""
    rows: list[Row] = []
    left = np.zeros(len(lengths), np.int64)  # of the rows so far
    for item in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        fits = left[: len(rows)] >= lengths[item]
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            length = next(length for length in ROW_LENGTHS if length >= lengths[item])
            rows.append(Row(length, []))
            left[row] = length
        rows[row].members.append(item)
        left[row] -= lengths[item]
        if len(rows[row].members) == TEXTS_A_ROW:
            left[row] = 0
    return rows


def _fill(batch: list[list[int]], parts: list[list[int]], size: int, length: int) -> Int[np.ndarray, "3 size length"]:
    """Tokens, positions and segment ids of `size` rows, those beyond the batch empty."""
    filled = np.zeros((3, size, length), np.int32)
    for row, members in enumerate(batch):
        start = 0
        for segment, part in enumerate(members, 1):
            end = start + len(parts[part])
            filled[:, row, start:end] = parts[part], np.arange(end - start), np.full(end - start, segment)
            start = end
    return filled


@partial(jax.jit, static_argnums=0)
def _forward(model, params, tokens, positions, segment_ids):
    return model.apply({"params": params}, tokens, positions, segment_ids, TEXTS_A_ROW).pooled
