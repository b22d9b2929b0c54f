"""Visit sequences to rows of tokens `[CLS] visit 1 [SEP] visit 2 [SEP] ..`, several sequences packed into a row.

Rows are packed once; a batch is then a slice of flat arrays. `batch_at(step)` is a pure function of seed and step.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ehrjax.data.batching import LEVELS
from ehrjax.data.masking import check_masking, draw_masked, mask_chosen
from ehrjax.data.packing import first_fit
from ehrjax.data.timeline import expand
from ehrjax.data.vocab import CLS, SEP
from ehrjax.types import FIRST_CODE, MaskedCodes, NextVisits, TokenBatch, VisitSequences

_CHUNK_TOKENS = 4_000_000  # bounds the index arrays while rows are laid out
_ORDER, _MASKS = 0, 1  # what a random stream is for, so that an epoch and a step of one number differ


class _Rows(NamedTuple):
    """Row r holds sequences `members[offsets[r]:offsets[r + 1]]`, in that order."""

    members: Int[np.ndarray, "E"]
    offsets: Int[np.ndarray, "rows+1"]
    bucket: Int[np.ndarray, "rows"]


class _Tokens(NamedTuple):
    """All rows one after another without padding: six fields of `TokenBatch`, and flags where asked for."""

    tokens: np.ndarray
    ages: np.ndarray
    visit_ids: np.ndarray
    positions: np.ndarray
    segment_ids: np.ndarray
    code_visits: np.ndarray
    chosen: np.ndarray | None  # codes of `eval_mask`
    targets: np.ndarray | None  # codes to predict from the visits before


class _Flags(NamedTuple):
    """What `next_visits` and `masked` are made of; None where not asked for."""

    is_fresh: np.ndarray | None
    eval_mask: np.ndarray | None
    code_tokens: np.ndarray | None


class _Visits(NamedTuple):
    """The same of their visits."""

    source: np.ndarray  # number in the VisitSequences
    ends: np.ndarray
    segments: np.ndarray
    targets: np.ndarray | None


_TOKEN_FIELDS = _Tokens._fields[:6]


class TokenBatches:
    """Batches of `batch_size` rows (at most all) of `row_tokens` tokens; a row holds whole sequences, by first fit.

    An epoch covers each sequence once, in batches drawn from (seed, epoch); the last may have padding rows. Static
    shapes: `shapes` lists the (B, T, V, S) that batches can have, one a bucket. With `num_buckets` > 1 row lengths
    halve (row_tokens, row_tokens / 2, ..), a sequence goes to the shortest that holds it, and batches have twice the
    rows.

    Labels belong to sequences (`level` "patient", [B S K]) or to visits ("visit", [B V K]). Options:
    `is_fresh` (a visit each): adds `next_visits`. Targets are the fresh visits with one before them in their sequence,
    and of their codes the first occurrences of ids >= 5.
    `code_tokens`: what each token is predicted as (`Vocabulary.code_tokens`); two value bins are then one code.
    `mask_rate`, `vocab_size`: adds `masked`, drawn afresh from (seed, step) by `draw_masked`; in `eval_batches` from
    (seed, number of the batch).
    `eval_mask` (a code each): adds `masked`, always these codes, each shown as [MASK].

    Raises ValueError for no examples, a sequence without visits or of more than `row_tokens` tokens, labels that do not
    fit `level`, and options that do not fit the sequences.
    """

    def __init__(
        self,
        sequences: VisitSequences,
        *,
        row_tokens: int,
        batch_size: int,
        seed: int = 0,
        level: str = "patient",
        is_fresh: Bool[np.ndarray, "num_visits"] | None = None,
        mask_rate: float = 0.0,
        vocab_size: int | None = None,
        code_tokens: Int[np.ndarray, "G"] | None = None,
        eval_mask: Bool[np.ndarray, "num_codes"] | None = None,
        num_buckets: int = 1,
    ):
        num_tokens = count_tokens(sequences)
        _check(sequences, num_tokens, row_tokens, batch_size, level, num_buckets)
        _check_options(sequences, is_fresh, mask_rate, vocab_size, eval_mask)
        self.sequences, self.seed, self.level = sequences, seed, level
        self.num_examples = len(sequences.subject_ids)
        self._mask_rate, self._vocab_size = mask_rate, vocab_size
        self._rows = rows = _pack(num_tokens, row_tokens, num_buckets)
        self._token_offsets = _row_offsets(rows, num_tokens)
        self._visit_offsets = _row_offsets(rows, np.diff(sequences.example_offsets))
        flags = _Flags(is_fresh, eval_mask, code_tokens)
        self._tokens, self._visits = _lay_out(sequences, rows, row_tokens, flags)
        buckets = np.unique(rows.bucket)
        self.shapes = [self._bucket_shape(bucket, row_tokens, batch_size) for bucket in buckets]
        self._shape_of_row = np.searchsorted(buckets, rows.bucket)
        self._num_slots = [self._most_chosen(bucket) for bucket in buckets]
        self.batch_size = self.shapes[0][0]
        self.num_batches_per_epoch = len(self._batches(np.arange(len(rows.bucket))))
        self._plan = (-1, [])

    def batch_at(self, step: int) -> TokenBatch:
        """The batch of training step `step` (from 0)."""
        epoch, index = divmod(step, self.num_batches_per_epoch)
        return self._collate(self._epoch(epoch)[index], step)

    def eval_batches(self) -> Iterator[TokenBatch]:
        """Every sequence once, in the order of the rows (`example_ids` tell which they are)."""
        for number, rows in enumerate(self._batches(np.arange(len(self._rows.bucket)))):
            yield self._collate(rows, number)

    def examples_of(self, batch: TokenBatch) -> Int[np.ndarray, "n"]:
        """Numbers of the batch's sequences, row after row."""
        ids = np.asarray(batch.example_ids)
        return ids[ids >= 0]

    @cached_property
    def padding_fraction(self) -> float:
        """Share of token slots in the batches of an epoch that hold no token."""
        shapes = [self.shapes[self._shape_of_row[rows[0]]] for rows in self._epoch(0)]
        return 1.0 - float(self._token_offsets[-1]) / sum(rows * tokens for rows, tokens, _, _ in shapes)

    def _epoch(self, epoch: int) -> list[Int[np.ndarray, "N"]]:
        """Rows of each batch of an epoch; the last epoch asked for is kept."""
        if self._plan[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, _ORDER])
            batches = self._batches(rng.permutation(len(self._rows.bucket)))
            self._plan = (epoch, [batches[index] for index in rng.permutation(len(batches))])
        return self._plan[1]

    def _batches(self, order: Int[np.ndarray, "rows"]) -> list[Int[np.ndarray, "N"]]:
        batches = []
        for shape, (size, *_) in enumerate(self.shapes):
            rows = order[self._shape_of_row[order] == shape]
            batches += [rows[start : start + size] for start in range(0, len(rows), size)]
        return batches

    def _bucket_shape(self, bucket: int, row_tokens: int, batch_size: int) -> tuple[int, int, int, int]:
        rows = self._rows.bucket == bucket
        most = [int(np.diff(offsets)[rows].max()) for offsets in (self._visit_offsets, self._rows.offsets)]
        return min(batch_size << int(bucket), int(rows.sum())), row_tokens >> int(bucket), *most

    def _most_chosen(self, bucket: int) -> int:
        if self._tokens.chosen is None:
            return 0
        chosen = np.add.reduceat(self._tokens.chosen, self._token_offsets[:-1], dtype=np.int64)
        return max(int(chosen[self._rows.bucket == bucket].max()), 1)

    def _collate(self, rows: Int[np.ndarray, "N"], step: int) -> TokenBatch:
        """The batch of these rows of one bucket, padded; masks are those of `step`."""
        shape = self._shape_of_row[rows[0]]
        size, num_tokens, num_visits, num_sequences = self.shapes[shape]
        at, token_mask = _slots(self._token_offsets, rows, size, num_tokens)
        fields = {name: _fill(token_mask, getattr(self._tokens, name)[at]) for name in _TOKEN_FIELDS}
        fields["code_visits"][~token_mask] = -1
        visit_at, visit_mask = _slots(self._visit_offsets, rows, size, num_visits)
        visits = self._visits.source[visit_at]
        member_at, sequence_mask = _slots(self._rows.offsets, rows, size, num_sequences)
        members = self._rows.members[member_at]
        owners, owner_mask = (members, sequence_mask) if self.level == "patient" else (visits, visit_mask)
        return TokenBatch(
            **fields,
            visit_ends=_fill(visit_mask, self._visits.ends[visit_at]),
            visit_mask=visit_mask,
            visit_segments=_fill(visit_mask, self._visits.segments[visit_at]),
            visit_ages=_fill(visit_mask, self.sequences.ages[visits], np.float32),
            visit_gap_days=_fill(visit_mask, self.sequences.gap_days[visits], np.float32),
            labels=_fill(owner_mask, self.sequences.labels[owners], self.sequences.labels.dtype),
            label_mask=_fill(owner_mask, self.sequences.label_mask[owners], bool),
            example_mask=np.arange(size) < len(rows),
            example_ids=np.where(sequence_mask, _fill(sequence_mask, members), -1).astype(np.int32),
            masked=self._masked(fields["tokens"], at, token_mask, shape, step),
            next_visits=self._next_visits(at, token_mask, visit_at, visit_mask),
        )

    def _masked(self, tokens, at, token_mask, shape: int, step: int) -> MaskedCodes | None:
        if self._tokens.chosen is not None:
            return mask_chosen(_fill(token_mask, self._tokens.chosen[at], bool), self._num_slots[shape])
        if not self._mask_rate:
            return None
        rng = np.random.default_rng([self.seed, step, _MASKS])
        return draw_masked(tokens, rng, mask_rate=self._mask_rate, vocab_size=self._vocab_size)

    def _next_visits(self, at, token_mask, visit_at, visit_mask) -> NextVisits | None:
        if self._visits.targets is None:
            return None
        codes = _fill(token_mask, self._tokens.targets[at], bool)
        return NextVisits(codes, _fill(visit_mask, self._visits.targets[visit_at], bool))


def count_tokens(sequences: VisitSequences) -> Int[np.ndarray, "E"]:
    """Tokens of each sequence: [CLS], its codes, and a [SEP] a visit."""
    return 1 + np.diff(sequences.visit_offsets[sequences.example_offsets]) + np.diff(sequences.example_offsets)


def _pack(num_tokens: Int[np.ndarray, "E"], row_tokens: int, num_buckets: int) -> _Rows:
    """Rows of each bucket, longest rows first."""
    shortest_first = row_tokens >> np.arange(num_buckets)[::-1]
    bucket = num_buckets - 1 - np.searchsorted(shortest_first, num_tokens)
    row, row_buckets = np.empty(len(num_tokens), np.int64), []
    for number in range(num_buckets):
        here = np.flatnonzero(bucket == number)
        packed = first_fit((num_tokens[here],), (row_tokens >> number,))
        row[here] = packed + len(row_buckets)
        row_buckets += [number] * int(packed.max(initial=-1) + 1)
    members = np.lexsort((-num_tokens, row))
    return _Rows(members, np.append(0, np.cumsum(np.bincount(row))), np.array(row_buckets))


def _row_offsets(rows: _Rows, sizes: Int[np.ndarray, "E"]) -> Int[np.ndarray, "rows+1"]:
    """Where each row begins among all rows' tokens or visits, of which a sequence has `sizes`."""
    return np.append(0, np.cumsum(sizes[rows.members]))[rows.offsets]


def _lay_out(sequences: VisitSequences, rows: _Rows, row_tokens: int, flags: _Flags) -> tuple[_Tokens, _Visits]:
    """All rows as flat arrays, of types just wide enough: about 15 bytes a token and 9 a visit."""
    small = np.int16 if row_tokens <= np.iinfo(np.int16).max else np.int32
    num_tokens = count_tokens(sequences)[rows.members]
    num_visits = np.diff(sequences.example_offsets)[rows.members]
    segments = _columns(np.ones(len(rows.members), np.int64), rows.offsets) + 1
    columns, visit_columns = _columns(num_tokens, rows.offsets), _columns(num_visits, rows.offsets)
    piece = np.cumsum(num_tokens) // _CHUNK_TOKENS
    parts = []
    for at in np.split(np.arange(len(piece)), np.flatnonzero(np.diff(piece)) + 1):
        placed = _Placed(rows.members[at], num_tokens[at], segments[at], columns[at], visit_columns[at])
        parts.append(_lay_out_placed(sequences, placed, small, flags))
    tokens, visits = zip(*parts, strict=True)
    return _Tokens(*_joined(tokens)), _Visits(*_joined(visits))


class _Placed(NamedTuple):
    """Some sequences, one after another, and where they lie in their rows."""

    members: np.ndarray
    num_tokens: np.ndarray
    segments: np.ndarray
    columns: np.ndarray  # of the first token
    visit_columns: np.ndarray  # of the first visit


def _lay_out_placed(sequences: VisitSequences, placed: _Placed, small, flags: _Flags) -> tuple[_Tokens, _Visits]:
    first_visit = sequences.example_offsets[placed.members]
    visits, owner = expand(first_visit, sequences.example_offsets[placed.members + 1] - first_visit)
    taken, visit = expand(sequences.visit_offsets[visits], np.diff(sequences.visit_offsets)[visits])
    codes = sequences.codes[taken]
    number = visits - first_visit[owner]
    positions, token_owner = expand(np.zeros_like(placed.num_tokens), placed.num_tokens)
    starts = np.cumsum(placed.num_tokens) - placed.num_tokens
    # Before a code stand all earlier codes, a [CLS] a sequence so far, and a [SEP] a visit before it.
    before = owner + 1 + np.arange(len(visits))
    code_at = np.arange(len(codes)) + before[visit]
    sep_at = np.cumsum(np.bincount(visit, minlength=len(visits))) + before
    is_target = None if flags.is_fresh is None else flags.is_fresh[visits] & (number > 0)
    chosen = None if flags.eval_mask is None else flags.eval_mask[taken] & (codes >= FIRST_CODE)
    predicted = codes if flags.code_tokens is None else flags.code_tokens[codes]

    def on_codes(values, dtype, otherwise=0):
        column = np.full(len(positions), otherwise, dtype)
        column[code_at] = values
        return column

    tokens = on_codes(codes, np.int32)
    tokens[starts], tokens[sep_at] = CLS, SEP
    years = np.maximum(np.floor(sequences.ages[visits]) + 1, 1)
    flat = _Tokens(
        tokens=tokens,
        ages=on_codes(years[visit], np.int16),
        visit_ids=on_codes((number + 1)[visit], small),
        positions=positions.astype(small),
        segment_ids=placed.segments[token_owner].astype(small),
        code_visits=on_codes((placed.visit_columns[owner] + number)[visit], small, -1),
        chosen=None if chosen is None else on_codes(chosen, bool),
        targets=None if is_target is None else on_codes(is_target[visit] & _is_first(visit, predicted), bool),
    )
    ends = (placed.columns - starts)[owner] + sep_at
    return flat, _Visits(visits, ends.astype(small), placed.segments[owner].astype(small), is_target)


def _is_first(visit: np.ndarray, codes: np.ndarray) -> Bool[np.ndarray, "n"]:
    """Real codes that their visit does not hold before."""
    order = np.lexsort((codes, visit))  # stable: the first occurrence leads
    again = np.zeros(len(codes), bool)
    again[order[1:]] = (np.diff(visit[order]) == 0) & (np.diff(codes[order]) == 0)
    return (codes >= FIRST_CODE) & ~again


def _columns(sizes: Int[np.ndarray, "E"], offsets: Int[np.ndarray, "rows+1"]) -> Int[np.ndarray, "E"]:
    """Sizes summed over what stands before in the same row."""
    starts = np.cumsum(sizes) - sizes
    return starts - np.repeat(starts[offsets[:-1]], np.diff(offsets))


def _joined(parts: list[NamedTuple]) -> Iterator[np.ndarray | None]:
    for column in zip(*parts, strict=True):
        yield None if column[0] is None else np.concatenate(column)


def _slots(offsets: Int[np.ndarray, "rows+1"], rows: Int[np.ndarray, "N"], size: int, width: int) -> tuple:
    """Places in a flat array for `size` rows of `width`, the first of them `rows`, and which hold something."""
    counts, starts = np.zeros(size, np.int64), np.zeros(size, np.int64)
    starts[: len(rows)] = offsets[rows]
    counts[: len(rows)] = offsets[rows + 1] - starts[: len(rows)]
    mask = np.arange(width) < counts[:, None]
    return np.where(mask, starts[:, None] + np.arange(width), 0), mask


def _fill(mask: np.ndarray, values: np.ndarray, dtype=np.int32) -> np.ndarray:
    """The values where the mask is True, else 0."""
    return np.where(mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim)), values, 0).astype(dtype)


def _check(
    sequences: VisitSequences, num_tokens, row_tokens: int, batch_size: int, level: str, num_buckets: int
) -> None:
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not known: use 'patient' or 'visit'.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if num_buckets < 1 or row_tokens >> (num_buckets - 1) < 1:
        raise ValueError(f"num_buckets={num_buckets} is too many for row_tokens={row_tokens}: each halves the rows.")
    if len(sequences.subject_ids) == 0:
        raise ValueError("there are no examples to batch: the cohort is empty.")
    empty = np.flatnonzero(np.diff(sequences.example_offsets) == 0)
    if len(empty):
        raise ValueError(
            f"subject {sequences.subject_ids[empty[0]]} has no visits ({len(empty)} such examples): exclude them."
        )
    long = np.flatnonzero(num_tokens > row_tokens)
    if len(long):
        raise ValueError(
            f"subject {sequences.subject_ids[long[0]]} has {num_tokens[long[0]]} tokens, over row_tokens={row_tokens}"
            f" ({len(long)} such sequences): cut_windows or truncate them before, or raise row_tokens."
        )
    expected = len(sequences.subject_ids) if level == "patient" else len(sequences.ages)
    if len(sequences.labels) != expected:
        raise ValueError(
            f"level={level!r} needs {expected} rows of labels, one a {level}; there are {len(sequences.labels)}."
        )


def _check_options(sequences: VisitSequences, is_fresh, mask_rate: float, vocab_size, eval_mask) -> None:
    for name, flags, expected in (
        ("is_fresh", is_fresh, len(sequences.ages)),
        ("eval_mask", eval_mask, len(sequences.codes)),
    ):
        if flags is not None and (len(flags) != expected or flags.dtype != bool):
            raise ValueError(f"{name} has {len(flags)} values of type {flags.dtype}: it needs {expected} of type bool.")
    if eval_mask is not None and mask_rate:
        raise ValueError(f"mask_rate={mask_rate} and eval_mask both choose codes: give one of them.")
    if mask_rate:
        check_masking(mask_rate, vocab_size)
