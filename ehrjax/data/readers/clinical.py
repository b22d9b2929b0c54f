"""What readers of clinical tables share: known patients, encounters' ends, days without a time of day, fused codes."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehrjax.data.events import STATIC_TIME
from ehrjax.data.readers.columns import Column, combine, has_value, parse_numbers
from ehrjax.data.readers.tables import Block, EventPart

DAY = 86_400_000_000  # microseconds
SECOND = 1_000_000
MAX_TEXT = 40  # a longer text is a comment, not a category


class SortedIds:
    """A set of ids (8 bytes each) with positions, grown block by block."""

    def __init__(self):
        self.ids = np.empty(0, np.int64)

    def position(self, ids: np.ndarray) -> np.ndarray:
        """Position of each id among the sorted known ones, -1 where it is not known."""
        if not len(self.ids):
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[at] == ids, at, -1)

    def add_patients(self, block: Block, name: str) -> np.ndarray:
        """Ids of a patient table's rows; rejects `no_patient` and all but the first row of a patient."""
        ids = block.ints(name, reason="no_patient")
        block.reject("duplicate_patient", self.position(ids) >= 0)
        kept = np.flatnonzero(block.keep)
        first = kept[np.unique(ids[kept], return_index=True)[1]]
        block.reject("duplicate_patient", ~np.isin(np.arange(len(ids)), first))
        self.ids = np.union1d(self.ids, ids[first])
        return ids

    def patients(self, block: Block, name: str) -> np.ndarray:
        """Ids of the patients that a table's rows name; rejects `no_patient` and `unknown_patient`."""
        ids = block.ints(name, reason="no_patient")
        block.reject("unknown_patient", self.position(ids) < 0)
        return ids


class Encounters(SortedIds):
    """Start and end (int64 microseconds, STATIC_TIME where unknown) of every encounter: 24 bytes each."""

    def __init__(self, ids: np.ndarray, start: np.ndarray, end: np.ndarray):
        self.ids, first = np.unique(ids, return_index=True)
        self.start, self.end = start[first], end[first]

    def end_of(self, ids: np.ndarray) -> np.ndarray:
        """End of each encounter, STATIC_TIME where the encounter or its end is unknown."""
        return np.append(self.end, STATIC_TIME)[self.position(ids)]

    def known_by(self, days: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """When something dated only by a day is known at the latest: at the end of that day, or of its encounter.

        `days` int64 microseconds (any time of that day). The day's end would put the codes of a morning visit after
        it; the day's start would show an admission what was found hours later.
        """
        start, end = days - days % DAY, end_of_day(days)
        leaves = self.end_of(ids)
        known = np.where((leaves >= start) & (leaves < end), leaves, end)
        return np.where(days == STATIC_TIME, STATIC_TIME, known)


def end_of_day(time: np.ndarray) -> np.ndarray:
    """The last second of each time's day (microseconds; STATIC_TIME stays)."""
    return np.where(time == STATIC_TIME, STATIC_TIME, time - time % DAY + DAY - SECOND)


def code_at(time: np.ndarray, code: str, visit_id: np.ndarray | None = None) -> EventPart:
    """The same code wherever there is a time."""
    return EventPart(time, np.where(time == STATIC_TIME, -1, 0).astype(np.int32), [code], visit_id=visit_id)


def build_codes(block: Block, names: Sequence[str], build: Callable[..., str]) -> tuple[np.ndarray, list[str]]:
    """Codes (index int32 [n], -1 = none; names) that `build` makes of the texts of several columns; "" makes none."""
    index, tuples = combine([block.texts(name) for name in names])
    codes = [build(*texts) for texts in tuples]
    has_code = np.array([bool(code) for code in codes], bool)
    return np.where(has_code[index] if len(codes) else False, index, np.int32(-1)), codes


def answers(
    column: Column, *, numbers: np.ndarray | None = None, ignore: Sequence[str] = ()
) -> tuple[np.ndarray, list[str]]:
    """The short texts of a value column ("NEG", "Never smoker") as (index, texts), to fuse with codes.

    Index -1 stands for numbers, prose, the texts to `ignore` and nothing. `numbers`: `parse_numbers` of the values,
    where the caller has them.
    """
    numbers = parse_numbers(column.values) if numbers is None else numbers
    chosen = np.flatnonzero(np.isnan(numbers) & has_value(column.values))
    texts = pc.cast(column.values.take(pa.array(chosen)), pa.string())
    unwanted = pc.or_(pc.greater(pc.utf8_length(texts), MAX_TEXT), pc.is_in(texts, pa.array(ignore, pa.string())))
    wanted = ~unwanted.to_numpy(zero_copy_only=False)
    position = np.full(len(numbers), -1, np.int32)
    position[chosen[wanted]] = np.arange(wanted.sum())
    return column.take(position, -1), [segment(text) for text in texts.filter(pa.array(wanted)).to_pylist()]


def add_answers(
    code: np.ndarray, codes: Sequence[str], value: np.ndarray, answer: tuple[np.ndarray, Sequence[str]]
) -> tuple[np.ndarray, list[str]]:
    """Codes with a row's answer as last segment (LAB//MIMIC//51463//NEG) where the row has no numeric value."""
    index = np.where(np.isnan(value), answer[0], np.int32(-1))
    fused, tuples = combine([(code, codes), (index, answer[1])])
    names = [f"{name}//{last}" if last else name for name, last in tuples]
    return np.where(code >= 0, fused, np.int32(-1)), names


def segment(text: str) -> str:
    """A text fit to be one `//` segment of a code."""
    return " ".join(text.replace("//", "/").split())


def described(block: Block, code: np.ndarray, codes: Sequence[str], column: str) -> dict[str, str]:
    """code -> text of `column`, from any row that has both."""
    index, texts = block.texts(column)
    _, pairs = combine([(code, codes), (index, texts)])
    return {name: text for name, text in pairs if name and text}
