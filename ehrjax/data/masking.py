"""Which codes a model has to fill in: drawn afresh each step in training, fixed a code in evaluation.

Special tokens and [UNK] are never chosen.
"""

import numpy as np
from jaxtyping import Bool, Int

from ehrjax.data.timeline import expand
from ehrjax.data.vocab import MASK
from ehrjax.types import FIRST_CODE, MaskedCodes, VisitSequences

SHOW_MASK, SHOW_RANDOM = 0.8, 0.1  # shares of the chosen; the rest show themselves
EVAL_MASK_RATE = 0.15  # the usual one, whatever a model is trained at, so that figures of runs can be set side by side


def num_mask_slots(num_tokens: int, mask_rate: float) -> int:
    """Most codes that are chosen in a row of so many tokens."""
    return int(np.ceil(mask_rate * num_tokens))


def draw_masked(
    tokens: Int[np.ndarray, "B T"], rng: np.random.Generator, *, mask_rate: float, vocab_size: int
) -> MaskedCodes:
    """BERT's masking (Devlin et al., 2019, section 3.1) of `mask_rate` of the codes of each row (at least one).

    Exactly round(mask_rate x codes) of a row are chosen, uniformly without replacement. Of them 80 % show [MASK], 10 %
    a random code, 10 % themselves. There are `num_mask_slots(T, mask_rate)` slots a row, whatever was drawn.
    """
    check_masking(mask_rate, vocab_size)
    is_code = tokens >= FIRST_CODE
    num_codes = is_code.sum(axis=1)
    wanted = np.where(num_codes > 0, np.maximum(np.rint(mask_rate * num_codes), 1), 0)
    slots = num_mask_slots(tokens.shape[1], mask_rate)
    keys = np.where(is_code, rng.random(tokens.shape), np.inf)
    columns = np.argsort(keys, axis=1)[:, :slots]
    positions, mask = _ascending(columns, np.arange(slots) < wanted[:, None], tokens.shape[1])
    shown = np.take_along_axis(tokens, positions, axis=1)
    kind = rng.random(positions.shape)
    random_codes = rng.integers(FIRST_CODE, vocab_size, positions.shape)
    shown = np.where(kind < SHOW_MASK + SHOW_RANDOM, random_codes, shown)
    shown = np.where(kind < SHOW_MASK, MASK, shown)
    return MaskedCodes(positions.astype(np.int32), np.where(mask, shown, 0).astype(np.int32), mask)


def mask_chosen(chosen: Bool[np.ndarray, "B T"], num_slots: int) -> MaskedCodes:
    """All of these tokens (at most `num_slots` a row), each shown as [MASK]."""
    mask = np.arange(num_slots) < chosen.sum(axis=1)[:, None]
    positions = np.zeros(mask.shape, np.int32)
    positions[mask] = np.nonzero(chosen)[1]
    return MaskedCodes(positions, np.where(mask, MASK, 0).astype(np.int32), mask)


def draw_eval_mask(sequences: VisitSequences, *, mask_rate: float, seed: int) -> Bool[np.ndarray, "num_codes"]:
    """Codes to fill in at evaluation: each with probability `mask_rate`, by a hash of seed, subject and place.

    The place is the code's number in its example, so that models and baselines are judged on the same codes however
    the sequences are cut and packed, and whichever other patients are there.
    """
    _check_rate(mask_rate)
    first = sequences.visit_offsets[sequences.example_offsets]
    _, owner = expand(first[:-1], np.diff(first))
    place = np.arange(first[0], first[-1]) - first[owner]
    with np.errstate(over="ignore"):
        subject = _mix(sequences.subject_ids.astype(np.uint64) ^ _mix(np.array([seed], np.uint64)))
        hashed = _mix(subject[owner] ^ _mix(place.astype(np.uint64)))
    uniform = (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (uniform < mask_rate) & (sequences.codes >= FIRST_CODE)


def check_masking(mask_rate: float, vocab_size: int | None) -> None:
    """Raises ValueError for a rate outside (0, 1] and for a vocabulary without codes."""
    _check_rate(mask_rate)
    if vocab_size is None or vocab_size <= FIRST_CODE:
        raise ValueError(f"vocab_size={vocab_size} has no codes to show: masking needs more than {FIRST_CODE} tokens.")


def _check_rate(mask_rate: float) -> None:
    if not 0 < mask_rate <= 1:
        raise ValueError(f"mask_rate={mask_rate} must be above 0 and at most 1.")


def _ascending(columns, mask, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The masked columns of each row in ascending order, then padding (0)."""
    columns = np.sort(np.where(mask, columns, num_tokens), axis=1)
    mask = columns < num_tokens
    return np.where(mask, columns, 0), mask


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that looks random (splitmix64; Steele et al., 2014, OOPSLA)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
