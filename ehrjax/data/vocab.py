"""Vocabulary: codes (and binned values) to token ids, fitted on the train patients only.

`[PAD]=0 [UNK]=1 [MASK]=2 [CLS]=3 [SEP]=4`, then tokens by descending train frequency, ties by name. A code with enough
numeric values gets one token a quantile bin, `CODE//Q1` .. `CODE//Qn`, beside `CODE` for events without a value.

Back-off along `//`: a code seen fewer than `min_count` times in train hands its count to its parent (the name less its
last segment), which becomes a token where the sum reaches `min_count`: rare LOINC codes make `LAB//LOINC`. At encoding
a name without a token drops segments until one is found, else it is `[UNK]`; so each parent token was trained on
the rare codes that it stands for.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "[SEP]")
PAD, UNK, MASK, CLS, SEP = range(5)
FORMAT_VERSION = 1
_VALUES_A_CODE = 100_000  # enough for quantiles; more shards of a code that has them are not read


class EncodeTable(NamedTuple):
    """Token of each (code id, bin) of one store: `tokens[:, 0]` without a value, `tokens[:, q]` in bin q."""

    tokens: np.ndarray  # int32 [num_codes, 1 + bins]
    edges: np.ndarray  # float32 [num_codes, bins - 1], inner bin edges padded with inf

    def encode(self, code_ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Token ids (int32 [n]) of events with these store code ids and values (NaN where there is none)."""
        if self.tokens.shape[1] == 1:
            return self.tokens[code_ids, 0]
        bins = np.ones(len(code_ids), np.int8)
        for edge in self.edges.T:
            bins += values > edge[code_ids]
        return self.tokens[code_ids, np.where(np.isfinite(values), bins, 0)]


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in id order, and the inner edges of binned codes: a value in bin q has edges[q-2] < value <= edges[q-1].

    Raises ValueError where the special tokens are not the first five, or a token is there twice.
    """

    tokens: tuple[str, ...]
    edges: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self):
        if self.tokens[: len(SPECIAL_TOKENS)] != SPECIAL_TOKENS:
            raise ValueError(f"tokens start with {self.tokens[:5]}, not with {SPECIAL_TOKENS}: fit it anew.")
        if len(self.index) != len(self.tokens):
            twice = Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"token {twice!r} is in the vocabulary twice: fit the vocabulary anew.")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def index(self) -> dict[str, int]:
        """Token -> id."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of tokens and edges (hex): two vocabularies with one hash encode alike."""
        return hashlib.sha256(json.dumps([self.tokens, self.edges], sort_keys=True).encode()).hexdigest()

    @cached_property
    def code_tokens(self) -> np.ndarray:
        """Token of each token's code without its value bin (int32 [G]); of a code with bins only, its first bin.

        >>> Vocabulary((*SPECIAL_TOKENS, "A//Q1", "A//Q2", "B//Q1", "B"), {"A": (1.0,), "B": (1.0,)}).code_tokens[5:]
        array([5, 5, 8, 8], dtype=int32)
        """
        tokens = np.arange(len(self), dtype=np.int32)
        for code, inner in self.edges.items():
            bins = [self.index[name] for name in _bin_names(code, inner) if name in self.index]
            tokens[bins] = self.index.get(code, min(bins))
        return tokens

    def token_id(self, name: str) -> int:
        """Id of a code or of its nearest ancestor that has a token; `[UNK]` where none has.

        >>> Vocabulary((*SPECIAL_TOKENS, "LAB//LOINC")).token_id("LAB//LOINC//4548-4")
        5
        """
        for candidate in (name, *ancestors(name)):
            token = self.index.get(candidate, UNK)
            if token >= len(SPECIAL_TOKENS):  # a code that is called "[PAD]" must not become padding
                return token
        return UNK

    def encode_table(self, codes: Sequence[str]) -> EncodeTable:
        """The table that encodes events of a store with these codes (in code id order)."""
        most = max((len(edges) for edges in self.edges.values()), default=-1)
        tokens = np.zeros((len(codes), most + 2), np.int32)
        edges = np.full((len(codes), max(most, 0)), np.inf, np.float32)
        for row, code in enumerate(map(str, codes)):
            tokens[row] = self.token_id(code)
            if inner := self.edges.get(code):
                edges[row, : len(inner)] = inner
                tokens[row, 1 : len(inner) + 2] = [self.token_id(bin_name(code, q + 1)) for q in range(len(inner) + 1)]
        return EncodeTable(tokens, edges)

    def save(self, path: str | Path) -> None:
        """Write JSON: format version, content hash, tokens and edges."""
        content = {"version": FORMAT_VERSION, "content_hash": self.content_hash}
        content |= {"tokens": self.tokens, "edges": self.edges}
        partial = Path(f"{path}.partial")  # renamed when whole, so a killed run leaves no half file
        partial.write_text(json.dumps(content, ensure_ascii=False, indent=0), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read what `save` wrote; ValueError where the file is not one, was edited, or is of another version."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            tokens, version = tuple(content["tokens"]), content["version"]
            edges = {code: tuple(inner) for code, inner in content["edges"].items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}: not a vocabulary file ({error}): fit and save it again.") from error
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: vocabulary format {version}, this version reads {FORMAT_VERSION}: fit it again.")
        vocabulary = cls(tokens, edges)
        if vocabulary.content_hash != content.get("content_hash"):
            raise ValueError(f"{path}: content does not match its hash: the file was changed after it was saved.")
        return vocabulary


def ancestors(name: str) -> Iterator[str]:
    """The names above a code, nearest first.

    >>> list(ancestors("LAB//LOINC//4548-4"))
    ['LAB//LOINC', 'LAB']
    """
    while "//" in name:
        name = name.rsplit("//", 1)[0]
        if name:
            yield name


def bin_name(code: str, number: int) -> str:
    """Name of a value-bin token, bins counted from 1."""
    return f"{code}//Q{number}"


def fit_vocabulary(
    store, subject_ids: np.ndarray, *, min_count: int = 5, max_size: int | None = 10_000, value_bins: int = 0
) -> Vocabulary:
    """Vocabulary of the records of `subject_ids` (the train patients); no other patient is looked at.

    `max_size` counts the special tokens too. With `value_bins` >= 2, a code with at least `value_bins * min_count`
    numeric values is cut at its quantiles; equal quantiles are merged, and a code left with one bin is not binned.
    Raises ValueError for no patients in the store, or settings out of range.
    """
    if min_count < 1 or value_bins < 0 or (max_size is not None and max_size <= len(SPECIAL_TOKENS)):
        raise ValueError(
            f"min_count={min_count}, max_size={max_size}, value_bins={value_bins}: needs min_count >= 1,"
            f" max_size > {len(SPECIAL_TOKENS)} and value_bins >= 0."
        )
    codes = [str(code) for code in store.codes]
    totals = count_codes(store, subject_ids)
    if not totals.any():
        raise ValueError(f"none of the {len(subject_ids)} train patients has an event in the store: check the split.")
    edges = np.full((len(codes), max(value_bins - 1, 0)), np.inf, np.float32)
    if value_bins >= 2:
        _fit_edges(store, subject_ids, edges, totals, min_count)
    counts = _with_parents({code: int(n) for code, n in zip(codes, totals, strict=True) if n}, min_count)
    inner = {}
    for row, by_bin in _count_bins(store, subject_ids, edges).items():
        inner[codes[row]] = tuple(float(edge) for edge in edges[row, : len(by_bin) - 2])
        counts[codes[row]] = by_bin[0]
        counts |= {bin_name(codes[row], q): n for q, n in enumerate(by_bin) if q}
    ranked = sorted((name for name in counts if name not in SPECIAL_TOKENS), key=lambda name: (-counts[name], name))
    tokens = (*SPECIAL_TOKENS, *ranked)[:max_size]
    kept = set(tokens)
    return Vocabulary(tokens, {code: cut for code, cut in inner.items() if kept & set(_bin_names(code, cut))})


def subject_events(store, subject_ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Store code ids and values of all events, static ones too, of these subjects, one pair a shard."""
    for shard in store.shards:
        chosen = np.isin(shard.subject_ids, subject_ids)
        if not chosen.any():
            continue
        in_visits = np.repeat(chosen, np.diff(np.asarray(shard.event_offsets)[shard.visit_offsets]))
        static = np.repeat(chosen, np.diff(shard.static_offsets))
        codes = np.concatenate([shard.event_codes[in_visits], shard.static_codes[static]])
        yield codes, np.concatenate([shard.event_values[in_visits], shard.static_values[static]])


def count_codes(store, subject_ids: np.ndarray) -> np.ndarray:
    """Number of events (int64 [num_codes]) that each code of the store has among these subjects."""
    counts = np.zeros(len(store.codes), np.int64)
    for codes, _ in subject_events(store, subject_ids):
        counts += np.bincount(codes, minlength=len(counts))
    return counts


def _bin_names(code: str, edges: Sequence[float]) -> list[str]:
    return [bin_name(code, q + 1) for q in range(len(edges) + 1)]


def _with_parents(totals: dict[str, int], min_count: int) -> dict[str, int]:
    """Counts of the names that become tokens: from the deepest up, a rare name hands its count to its parent."""
    counts = Counter(totals)
    for depth in range(max(name.count("//") for name in counts), -1, -1):
        rare = [name for name, n in counts.items() if n < min_count and name.count("//") == depth]
        for name in rare:
            n = counts.pop(name)
            if parent := next(ancestors(name), None):
                counts[parent] += n
    return dict(counts)


def _fit_edges(store, subject_ids, edges: np.ndarray, totals: np.ndarray, min_count: int) -> None:
    """Write the inner quantile edges of each code with enough values into its row of `edges`."""
    num_bins = edges.shape[1] + 1
    codes, values = _sample_values(store, subject_ids)
    order = np.lexsort((values, codes))
    codes, values = codes[order], values[order]
    used, starts, sizes = np.unique(codes, return_index=True, return_counts=True)
    enough = (sizes >= num_bins * min_count) & (totals[used] >= min_count)
    for code, start, size in zip(used[enough], starts[enough], sizes[enough], strict=True):
        group = values[start : start + size]
        cuts = np.unique(np.quantile(group, np.linspace(0, 1, num_bins + 1)[1:-1]).astype(np.float32))
        cuts = cuts[cuts < group[-1]]  # a bin above the largest value would have no one in it
        edges[code, : len(cuts)] = cuts


def _sample_values(store, subject_ids) -> tuple[np.ndarray, np.ndarray]:
    """Codes and finite values for the quantiles; shards hold hashed patients, so the first ones are a fair sample."""
    have = np.zeros(len(store.codes), np.int64)
    parts = []
    for codes, values in subject_events(store, subject_ids):
        wanted = np.isfinite(values) & (have[codes] < _VALUES_A_CODE)
        parts.append((codes[wanted], values[wanted]))
        have += np.bincount(codes[wanted], minlength=len(have))
    return np.concatenate([codes for codes, _ in parts]), np.concatenate([values for _, values in parts])


def _count_bins(store, subject_ids, edges: np.ndarray) -> dict[int, list[int]]:
    """Counts of each binned code's events: without a value, in bin 1, in bin 2, ..."""
    binned = np.isfinite(edges).any(axis=1)
    if not binned.any():
        return {}
    width = edges.shape[1] + 2
    table = EncodeTable(np.arange(len(edges) * width, dtype=np.int32).reshape(-1, width), edges)
    counts = np.zeros(len(edges) * width, np.int64)
    for codes, values in subject_events(store, subject_ids):
        chosen = binned[codes]
        counts += np.bincount(table.encode(codes[chosen], values[chosen]), minlength=len(counts))
    num_edges = np.isfinite(edges).sum(axis=1)
    by_bin = counts.reshape(-1, width)
    return {int(row): by_bin[row, : num_edges[row] + 2].tolist() for row in np.flatnonzero(binned)}
