"""Windows of hospital stays to batches of one shape: `batch_at(step)` is a pure function of the seed and the step."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ehrjax.types import Array, StayBatch

FLOATS = ("values", "hours_since", "statics", "summaries", "notes")
MASKS = ("observed", "time_mask", "has_vitals", "has_notes", "label_mask")
SHAPES = {
    "subject_ids": "N",
    "times": "N",
    "values": "NTK",
    "observed": "NTK",
    "hours_since": "NTK",
    "time_mask": "NT",
    "statics": "NS",
    "summaries": "NU",
    "notes": "ND",
    "has_vitals": "N",
    "has_notes": "N",
    "labels": "NO",
    "label_mask": "NO",
}
CHECKED_ROWS = 4096  # at a time, so that memory-mapped arrays are never held whole


@dataclass(frozen=True)
class StayWindows:
    """All examples of a split, N rows in the arrays' first axis: a window of a stay, and what was known at its end.

    Letters and meaning as in `StayBatch`. Each row has its own index time; nothing in it is later. Arrays may be
    memory-mapped. A source without notes has D = 0, one without vital signs T = 0, and without summaries U = 0.
    """

    subject_ids: Int[Array, "N"]
    times: Int[Array, "N"]  # index time, seconds since 1970-01-01
    values: Float[Array, "N T K"]
    observed: Bool[Array, "N T K"]
    hours_since: Float[Array, "N T K"]
    time_mask: Bool[Array, "N T"]
    statics: Float[Array, "N S"]
    summaries: Float[Array, "N U"]
    notes: Float[Array, "N D"]
    has_vitals: Bool[Array, "N"]
    has_notes: Bool[Array, "N"]
    labels: Shaped[Array, "N O"]
    label_mask: Bool[Array, "N O"]

    def take(self, rows: Int[np.ndarray, "M"] | Bool[np.ndarray, "N"]) -> "StayWindows":
        """The rows chosen by an index or mask."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


class StayBatches:
    """Batches of `batch_size` rows (at most the number of stays), all of one shape.

    An epoch covers each row once, in an order drawn from (seed, epoch); its last batch may have padding rows. Raises
    ValueError for no rows, arrays that do not fit each other, and values that are not finite, naming the row.
    """

    level = "patient"  # as other batches say it: labels belong to examples

    def __init__(self, stays: StayWindows, *, batch_size: int, seed: int = 0):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        check_stays(stays)
        self.stays = stays
        self.num_examples = len(stays.subject_ids)
        self.batch_size = min(batch_size, self.num_examples)
        self.seed = seed
        self.num_batches_per_epoch = -(-self.num_examples // self.batch_size)
        self._plan: tuple[int, Int[np.ndarray, "N"]] = (-1, np.zeros(0, np.int64))

    def batch_at(self, step: int) -> StayBatch:
        """The batch of training step `step` (from 0)."""
        epoch, index = divmod(step, self.num_batches_per_epoch)
        start = index * self.batch_size
        return self.collate(self._epoch(epoch)[start : start + self.batch_size])

    def eval_batches(self) -> Iterator[StayBatch]:
        """Every row once, in order."""
        for start in range(0, self.num_examples, self.batch_size):
            yield self.collate(np.arange(start, min(start + self.batch_size, self.num_examples)))

    @cached_property
    def padding_fraction(self) -> float:
        """Share of the time points in an epoch's batches that hold none."""
        slots = self.num_batches_per_epoch * self.batch_size * self.stays.time_mask.shape[1]
        return 1.0 - int(np.asarray(self.stays.time_mask).sum()) / slots if slots else 0.0

    def collate(self, ids: Int[np.ndarray, "M"]) -> StayBatch:
        """The batch of these rows, in this order, padded to `batch_size` rows."""
        num_padding = self.batch_size - len(ids)
        dtypes = dict.fromkeys(FLOATS, np.float32) | dict.fromkeys(MASKS, np.bool_)
        columns = {
            name: _pad(getattr(self.stays, name)[ids].astype(dtype, copy=False), num_padding)
            for name, dtype in dtypes.items()
        }
        return StayBatch(
            **columns,
            labels=_pad(self.stays.labels[ids], num_padding),
            example_mask=np.arange(self.batch_size) < len(ids),
            example_ids=_pad(ids.astype(np.int32), num_padding, empty=-1),
        )

    def _epoch(self, epoch: int) -> Int[np.ndarray, "N"]:
        """Order of the rows in an epoch; that of the last epoch asked for is kept."""
        if self._plan[0] != epoch:
            self._plan = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.num_examples))
        return self._plan[1]


def check_stays(stays: StayWindows) -> None:
    """Raise ValueError where there are no rows, shapes do not fit each other, or a value is not finite."""
    _check_shapes(stays)
    num_rows = len(stays.subject_ids)
    if num_rows == 0:
        raise ValueError("there are no stays to batch: the cohort is empty.")
    for name in FLOATS:
        array = getattr(stays, name)
        for start in range(0, num_rows, CHECKED_ROWS):
            faulty = np.argwhere(~np.isfinite(array[start : start + CHECKED_ROWS]))
            if len(faulty):
                place = (start + int(faulty[0, 0]), *faulty[0, 1:].tolist())
                raise ValueError(
                    f"{name}{list(place)} (subject {stays.subject_ids[place[0]]}) is {array[place]}: fill what was not "
                    "measured, and masked time points with 0."
                )


def _check_shapes(stays: StayWindows) -> None:
    sizes: dict[str, int] = {}
    for name, letters in SHAPES.items():
        shape = getattr(stays, name).shape
        if len(shape) == len(letters):
            sizes = dict(zip(letters, shape, strict=True)) | sizes  # the first array with a letter decides
        expected = tuple(sizes.get(letter) for letter in letters)
        if shape != expected:
            known = ", ".join(f"{letter}={size}" for letter, size in sizes.items())
            raise ValueError(f"{name} has shape {shape}, where [{' '.join(letters)}] is needed ({known}).")


def _pad(values: np.ndarray, num_rows: int, empty: int = 0) -> np.ndarray:
    """The values with so many more rows of `empty` behind them."""
    if num_rows == 0:
        return values
    return np.concatenate([values, np.full((num_rows, *values.shape[1:]), empty, values.dtype)])
