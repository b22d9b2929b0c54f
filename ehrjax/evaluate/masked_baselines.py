"""What a model of masked codes has to beat: frequencies, and a logistic regression on the visit's other codes.

Everything is fitted on train alone and tuned on val alone. A baseline is a function of records and a mask (which of
their codes are hidden) that gives the hidden codes' ranks and log probabilities, in order; special tokens are neither
targets nor candidates.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import scipy.sparse as sp
from jaxtyping import Array, Bool, Float, Int
from scipy.special import logsumexp

from ehrjax.metrics.masked_codes import target_ranks
from ehrjax.types import FIRST_CODE, VisitSequences

CHUNK_VALUES = 2**22  # probabilities in memory at once
# Inverse strengths of the L2 penalty (scikit-learn's C, a training code a row), each fit starting from the one before.
LOGISTIC_C = (0.1, 0.3, 1.0, 3.0)
BATCH_VISITS = 1024
LEARNING_RATE = 0.015
START_SCALES = (0.0, 0.2, 0.4, 0.6, 0.8)
# Multiplications of all fits together, about 70 seconds on a core; codes that are shown beyond this are left out.
MAX_WORK, MAX_STEPS, MAX_WEIGHTS, MAX_PAIRS = 1.2e11, 4000, 2**25, 1e8
SOFTMAX_WORK, ADAM_WORK = 14, 10  # of a step, a logit and a weight, beside the two sparse products


class MaskedScores(NamedTuple):
    """One entry a hidden code, in the records' order."""

    ranks: Int[np.ndarray, "n"]  # candidates before the true code; 0 = top
    log_probabilities: Float[np.ndarray, "n"]  # of the true code, nats


Baseline = Callable[[VisitSequences, Bool[np.ndarray, "num_codes"]], MaskedScores]


def fit_masked_baselines(
    train: VisitSequences,
    val: VisitSequences,
    types: Sequence[str],
    *,
    mask_rate: float = 0.15,
    seed: int = 0,
    max_steps: int = MAX_STEPS,
) -> dict[str, Baseline]:
    """The baselines "unigram", "same_type" and "logistic" by name; `types` has the type of every token's code.

    `max_steps` bounds the steps of the logistic one, all penalties together.
    """
    return {
        "unigram": fit_unigram(train, len(types)),
        "same_type": fit_same_type(train, types),
        "logistic": fit_logistic(train, val, len(types), mask_rate=mask_rate, seed=seed, max_steps=max_steps),
    }


def fit_unigram(train: VisitSequences, vocab_size: int) -> Baseline:
    """Each code with its share of train's codes."""
    return _by_group(np.log(_smoothed_counts(train, vocab_size)), np.zeros(vocab_size, np.int64))


def fit_same_type(train: VisitSequences, types: Sequence[str]) -> Baseline:
    """Told the type of the hidden code: the codes of that type with their share of train's codes of the type."""
    groups = np.unique(np.asarray(types, str), return_inverse=True)[1]
    return _by_group(np.log(_smoothed_counts(train, len(types))), groups)


class Logistic(NamedTuple):
    """Log odds of a hidden code: the bias plus the rows of the codes that the visit shows."""

    weights: Float[Array, "F H"]  # F visible codes, H = G - 5 candidates
    bias: Float[Array, "H"]


class Visits(NamedTuple):
    """Visits with a hidden code: which codes they show and which they hide, as counts."""

    shown: sp.csr_matrix  # [n, F]
    hidden: sp.csr_matrix  # [n, H]


def fit_logistic(
    train: VisitSequences,
    val: VisitSequences,
    vocab_size: int,
    *,
    mask_rate: float = 0.15,
    seed: int = 0,
    penalties: Sequence[float] = LOGISTIC_C,
    max_steps: int = MAX_STEPS,
    learning_rate: float = LEARNING_RATE,
) -> Baseline:
    """Multinomial logistic regression of a hidden code on the codes that its visit shows; the penalty chosen on val.

    Each epoch hides other codes of train, each with probability `mask_rate`. Adam in mini-batches of visits, from
    strong to weak penalty until val gets worse. The number of steps follows from the sizes alone, so the same data and
    seed give the same fit.
    """
    num_candidates = vocab_size - FIRST_CODE
    counts = _smoothed_counts(train, vocab_size)
    visible = np.argsort(-counts, kind="stable")[: max(MAX_WEIGHTS // num_candidates, 1)]
    column = np.full(vocab_size, -1)
    column[visible] = np.arange(len(visible))
    bias = np.log(counts[FIRST_CODE:] / counts[FIRST_CODE:].sum()).astype(np.float32)
    held_out = _visits(val, _draw(val, mask_rate, np.random.default_rng([seed, 0])), column)
    associations = _associations(train, column, seed)
    starts = [Logistic(np.float32(scale) * associations, bias) for scale in START_SCALES]
    fitted = min(starts, key=lambda start: _loss(start, held_out))
    if not (np.asarray(train.codes) >= FIRST_CODE).any():
        return lambda records, mask: _score_logistic(fitted, records, mask, column)
    mean_codes = len(train.codes) / np.count_nonzero(np.diff(train.visit_offsets))
    work = ((mean_codes + SOFTMAX_WORK) * BATCH_VISITS + ADAM_WORK * len(visible)) * num_candidates
    num_steps = int(max(min(MAX_WORK / work, max_steps) // max(len(penalties), 1), 1))
    batches = _batches(train, mask_rate, seed, column)
    best, best_loss = fitted, np.inf
    for strength in penalties:
        fitted = _fit(fitted, batches, 1.0 / (strength * max(len(train.codes), 1)), num_steps, learning_rate)
        loss = _loss(fitted, held_out)
        if not loss < best_loss:
            break
        best, best_loss = fitted, loss
    return lambda records, mask: _score_logistic(best, records, mask, column)


def _fit(start: Logistic, batches: Iterator[Visits], penalty: float, num_steps: int, learning_rate: float) -> Logistic:
    """Adam from `start` with a step size that falls to 0 along a cosine."""
    fitted, state = start, _ADAM.init(start)
    rates = 0.5 * learning_rate * (1 + np.cos(np.pi * np.arange(num_steps) / num_steps))
    for rate, (shown, hidden) in zip(rates, batches, strict=False):
        # Products with ten codes a visit: the sparse ones on the host are several times faster than dense ones.
        residual = np.asarray(_residual(_logits(fitted, shown), hidden.toarray()))
        slope = Logistic(shown.T @ residual, residual.sum(axis=0))
        fitted, state = _step(fitted, state, slope, penalty, rate)
    return fitted


_ADAM = optax.scale_by_adam(b2=0.99)  # a few hundred steps: the usual 0.999 would still remember the first ones


@jax.jit
def _residual(logits: Float[Array, "n H"], hidden: Float[Array, "n H"]) -> Float[Array, "n H"]:
    """Gradient of the mean negative log probability of the hidden codes."""
    num_hidden = hidden.sum(axis=1, keepdims=True)
    return (num_hidden * jax.nn.softmax(logits, axis=1) - hidden) / num_hidden.sum()


@jax.jit
def _step(fitted: Logistic, state: Any, slope: Logistic, penalty: float, rate: float) -> tuple[Logistic, Any]:
    slope = slope._replace(weights=slope.weights + penalty * fitted.weights)
    updates, state = _ADAM.update(slope, state)
    return jax.tree.map(lambda value, update: value - rate * update, fitted, updates), state


def _batches(train: VisitSequences, mask_rate: float, seed: int, column: np.ndarray) -> Iterator[Visits]:
    """Mini-batches of visits, epoch after epoch without end, always of one size."""
    size = max(min(BATCH_VISITS, len(train.visit_offsets) - 1), 1)
    for epoch in itertools.count(1):
        rng = np.random.default_rng([seed, epoch])
        visits = _visits(train, _draw(train, mask_rate, rng), column)
        order = rng.permutation(visits.hidden.shape[0])
        # An epoch of less than one batch takes visits twice.
        order = np.resize(order, max(len(order), size)) if len(order) else order
        for first in range(0, len(order) - size + 1, size):
            yield Visits(*(part[order[first : first + size]] for part in visits))


def _associations(train: VisitSequences, column: np.ndarray, seed: int) -> Float[np.ndarray, "F H"]:
    """Pointwise mutual information (nats, one pair added each) of a shown code and another code of its visit.

    A good part of it is a good start: most of what is to be learnt is which codes exclude each other, and the gradient
    of a weight fades as the code becomes unlikely.
    """
    sizes = np.diff(train.visit_offsets).astype(np.int64)
    order = np.random.default_rng([seed, 0]).permutation(len(sizes))
    chosen = np.zeros(len(sizes), bool)
    chosen[order[np.cumsum(sizes[order] ** 2) <= MAX_PAIRS]] = True
    codes, owner = np.asarray(train.codes), _visit_of_code(train)
    codes, owner = codes[chosen[owner]], owner[chosen[owner]]
    held = _counts(owner, codes, (len(sizes), len(column)))
    visible = np.argsort(column, kind="stable")[-(column.max() + 1) :]
    pairs = (held[:, visible].T @ held[:, FIRST_CODE:]).toarray()
    with_itself = np.bincount(codes, minlength=len(column))  # a code is no other code of its visit
    is_candidate = visible >= FIRST_CODE
    pairs[np.flatnonzero(is_candidate), visible[is_candidate] - FIRST_CODE] -= with_itself[visible[is_candidate]]
    expected = pairs.sum(axis=1, keepdims=True) * (pairs.sum(axis=0, keepdims=True) / max(pairs.sum(), 1.0))
    return np.log((pairs + 1) / (expected + 1), dtype=np.float32)


def _draw(records: VisitSequences, mask_rate: float, rng: np.random.Generator) -> np.ndarray:
    return (rng.random(len(records.codes)) < mask_rate) & (records.codes >= FIRST_CODE)


def _visits(records: VisitSequences, mask: np.ndarray, column: np.ndarray) -> Visits:
    codes, owner = np.asarray(records.codes), _visit_of_code(records)
    num_visits = len(records.visit_offsets) - 1
    is_shown = ~mask & (column[codes] >= 0)
    shown = _counts(owner[is_shown], column[codes[is_shown]], (num_visits, int(column.max()) + 1))
    hidden = _counts(owner[mask], codes[mask] - FIRST_CODE, (num_visits, len(column) - FIRST_CODE))
    rows = np.flatnonzero(hidden.getnnz(axis=1))
    return Visits(shown[rows], hidden[rows])


def _counts(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)


def _visit_of_code(records: VisitSequences) -> np.ndarray:
    return np.repeat(np.arange(len(records.visit_offsets) - 1), np.diff(records.visit_offsets))


def _loss(fitted: Logistic, visits: Visits) -> float:
    """Mean negative log probability of the hidden codes."""
    total, size = 0.0, max(CHUNK_VALUES // max(fitted.bias.shape[0], 1), 1)
    for first in range(0, visits.hidden.shape[0], size):
        shown, hidden = (part[first : first + size] for part in visits)
        total -= hidden.multiply(_log_probabilities(fitted, shown)).sum()
    return total / max(visits.hidden.sum(), 1.0)


def _log_probabilities(fitted: Logistic, shown: sp.csr_matrix) -> np.ndarray:
    logits = _logits(fitted, shown)
    return logits - logsumexp(logits, axis=1, keepdims=True)


def _logits(fitted: Logistic, shown: sp.csr_matrix) -> np.ndarray:
    return shown @ np.asarray(fitted.weights) + np.asarray(fitted.bias)


def _score_logistic(fitted: Logistic, records: VisitSequences, mask: np.ndarray, column: np.ndarray) -> MaskedScores:
    targets = _hidden_codes(records, mask, len(column)) - FIRST_CODE
    # Visits with a hidden code, in order, and which of them each hidden code is in.
    place = np.unique(_visit_of_code(records)[mask], return_inverse=True)[1]
    shown = _visits(records, mask, column).shown
    ranks, logs = np.zeros(len(targets), np.int64), np.zeros(len(targets), np.float32)
    size = max(CHUNK_VALUES // max(fitted.bias.shape[0], 1), 1)
    for first in range(0, len(targets), size):
        chunk = slice(first, first + size)
        low, high = place[chunk][0], place[chunk][-1] + 1
        scores = _log_probabilities(fitted, shown[low:high])[place[chunk] - low]
        ranks[chunk] = target_ranks(scores, targets[chunk])
        logs[chunk] = np.take_along_axis(scores, targets[chunk, None], axis=1)[:, 0]
    return MaskedScores(ranks, logs)


def _by_group(log_counts: Float[np.ndarray, "G"], groups: Int[np.ndarray, "G"]) -> Baseline:
    """Candidates are the codes of the hidden code's group, by their count there."""
    ranks, logs = np.zeros(len(log_counts), np.int64), np.zeros(len(log_counts), np.float32)
    for group in np.unique(groups[FIRST_CODE:]):
        codes = np.flatnonzero(groups == group)
        codes = codes[codes >= FIRST_CODE]
        ranks[codes[np.argsort(-log_counts[codes], kind="stable")]] = np.arange(len(codes))
        logs[codes] = log_counts[codes] - logsumexp(log_counts[codes])

    def score(records: VisitSequences, mask: Bool[np.ndarray, "num_codes"]) -> MaskedScores:
        targets = _hidden_codes(records, mask, len(ranks))
        return MaskedScores(ranks[targets], logs[targets])

    return score


def _hidden_codes(records: VisitSequences, mask: np.ndarray, vocab_size: int) -> np.ndarray:
    """The hidden codes; ValueError where one is a special token or beyond the vocabulary."""
    if np.shape(mask) != np.shape(records.codes):
        raise ValueError(f"mask has shape {np.shape(mask)} but codes {np.shape(records.codes)}: give one flag a code.")
    hidden = np.asarray(records.codes)[mask]
    wrong = hidden[(hidden < FIRST_CODE) | (hidden >= vocab_size)]
    if len(wrong):
        raise ValueError(f"token {wrong[0]} is hidden: hide codes from {FIRST_CODE} to {vocab_size - 1} only.")
    return hidden


def _smoothed_counts(train: VisitSequences, vocab_size: int) -> Float[np.ndarray, "G"]:
    """How often train holds each code, plus one, so that no code is impossible."""
    return np.bincount(train.codes, minlength=vocab_size) + 1.0
