"""Long records cut to rows: overlapping windows for pre-training, the latest visits for a task.

A sequence of v visits and c codes takes 1 + c + v tokens. Visits stay whole, unless one alone is too long: of its codes
the first `max_tokens` - 2 are kept.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from ehrjax.data.batching import LEVELS
from ehrjax.data.timeline import expand, rank_in_group
from ehrjax.types import VisitSequences


class Windows(NamedTuple):
    """Runs of visits of some examples, as examples of their own, in the order of the examples and of time."""

    sequences: VisitSequences
    is_fresh: Bool[np.ndarray, "num_visits"]  # of all windows with this visit, this one shows most of its past
    code_index: Int[np.ndarray, "num_codes"]  # number of each code in the input
    visit_index: Int[np.ndarray, "num_visits"]  # of each visit
    example_index: Int[np.ndarray, "num_windows"]  # and of each window's example

    def fresh_codes(self, flags: Bool[np.ndarray, "codes"]) -> Bool[np.ndarray, "num_codes"]:
        """Flags of the input's codes, on the windows' codes: each in the one window where its visit is fresh."""
        return flags[self.code_index] & np.repeat(self.is_fresh, np.diff(self.sequences.visit_offsets))


def cut_windows(sequences: VisitSequences, *, max_tokens: int, level: str = "patient") -> Windows:
    """Every visit in windows of at most `max_tokens` tokens; of a longer record they overlap by about half.

    A visit is fresh in the first window that holds it. The fresh visits of a later window have as many visits before
    them as fit into half of `max_tokens`. The first visit of a window has gap 0. Subjects and times are the example's.
    With labels at visits (`level` "visit"), a label counts where its visit is fresh; labels at patients would count
    once a window, so these may have no columns: ValueError otherwise, and for `max_tokens` < 3.
    """
    _check(max_tokens, level)
    if level == "patient" and sequences.labels.shape[1]:
        raise ValueError(
            f"{sequences.labels.shape[1]} labels a patient would count once a window: use truncate, or level='visit'."
        )
    sizes = _visit_tokens(sequences, max_tokens)
    start, end, fresh, example = _window_bounds(sequences.example_offsets, sizes, max_tokens)
    cut, visits, code_index = _take(sequences, start, end, example, max_tokens, level)
    is_fresh = visits >= np.repeat(fresh, end - start)
    if level == "visit":
        cut = cut._replace(label_mask=cut.label_mask & is_fresh[:, None])
    return Windows(cut, is_fresh, code_index, visits, example)


def truncate(sequences: VisitSequences, *, max_tokens: int, level: str = "patient") -> VisitSequences:
    """The latest visits of each example that fit into `max_tokens` tokens; the first kept has gap 0.

    Labels stay with their examples or (`level` "visit") with the kept visits. ValueError for `max_tokens` < 3.
    """
    _check(max_tokens, level)
    first, end = sequences.example_offsets[:-1], sequences.example_offsets[1:]
    before = np.append(0, np.cumsum(_visit_tokens(sequences, max_tokens)))
    start = np.maximum(np.searchsorted(before, before[end] - (max_tokens - 1)), first)
    return _take(sequences, start, end, np.arange(len(first)), max_tokens, level)[0]


def take_examples(sequences: VisitSequences, examples: Int[np.ndarray, "n"]) -> VisitSequences:
    """These examples, in this order, with patient-level labels."""
    bounds = sequences.example_offsets[examples], sequences.example_offsets[np.asarray(examples) + 1]
    return _take(sequences, *bounds, np.asarray(examples), len(sequences.codes) + 2, "patient")[0]


def _visit_tokens(sequences: VisitSequences, max_tokens: int) -> Int[np.ndarray, "num_visits"]:
    """Tokens of each visit with its [SEP], as they are kept."""
    return np.minimum(np.diff(sequences.visit_offsets), max_tokens - 2) + 1


def _window_bounds(example_offsets, sizes: Int[np.ndarray, "num_visits"], max_tokens: int) -> tuple[np.ndarray, ...]:
    """First visit, end, first fresh visit and example of each window.

    One round makes one window of every record that is not yet through, so the loop is as long as the longest record.
    """
    before = np.append(0, np.cumsum(sizes))
    room = max_tokens - 1  # beside [CLS]
    example = np.arange(len(example_offsets) - 1)
    start = fresh = example_offsets[:-1]
    rounds = []
    while len(example):
        last = example_offsets[example + 1]
        end = np.minimum(np.searchsorted(before, before[start] + room, side="right") - 1, last)
        rounds.append((start, end, fresh, example))
        example, fresh = example[end < last], end[end < last]
        past = np.minimum(max_tokens // 2, room - sizes[fresh])
        start = np.maximum(np.searchsorted(before, before[fresh] - past), example_offsets[example])
    if not rounds:
        return (np.zeros(0, np.int64),) * 4
    start, end, fresh, example = (np.concatenate(column) for column in zip(*rounds, strict=True))
    order = np.argsort(example, kind="stable")
    return start[order], end[order], fresh[order], example[order]


def _take(sequences: VisitSequences, start, end, example, max_tokens: int, level: str) -> tuple:
    """Visits start..end of these examples as sequences; the number of each visit and code in the input."""
    visits, owner = expand(start, end - start)
    kept = np.minimum(np.diff(sequences.visit_offsets)[visits], max_tokens - 2)
    codes, _ = expand(sequences.visit_offsets[visits], kept)
    rows = example if level == "patient" else visits
    taken = VisitSequences(
        codes=sequences.codes[codes],
        visit_offsets=np.append(0, np.cumsum(kept)),
        example_offsets=np.append(0, np.cumsum(end - start)),
        ages=sequences.ages[visits],
        gap_days=np.where(rank_in_group(owner) == 0, 0, sequences.gap_days[visits]).astype(sequences.gap_days.dtype),
        subject_ids=sequences.subject_ids[example],
        times=sequences.times[example],
        labels=sequences.labels[rows],
        label_mask=sequences.label_mask[rows],
    )
    return taken, visits, codes


def _check(max_tokens: int, level: str) -> None:
    if level not in LEVELS:
        raise ValueError(f"level={level!r} is not known: use 'patient' or 'visit'.")
    if max_tokens < 3:
        raise ValueError(f"max_tokens={max_tokens} must be at least 3: [CLS], a code and a [SEP].")
