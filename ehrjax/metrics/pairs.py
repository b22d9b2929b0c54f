"""Weighted sums over ordered pairs in O(n log n): the kernel of concordance.

A case i is compared with every control j whose position lies above its own. Two positions differ first at one bit, the
highest in which they are unlike, so each pair belongs to one bit and to one node: the positions alike above that bit.
Within a node every case meets every control, and the pairs are counted as in an ROC curve (`areas`). Only the weights
change between the resamples of a bootstrap: a bit is two sparse sums and a cumulative sum, for many weightings at once.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from ehrjax.types import Array


class Level(NamedTuple):
    """Pairs of one bit; G distinct (node, score) of cases, with one more below all scores of each node."""

    cases: sp.csr_matrix  # [G, n]: times weights, the weight of cases at each
    controls: sp.csr_matrix  # [2G+1, n]: times weights, that of controls below (even) and at (odd) each
    node_starts: Int[Array, "G"]  # the entry that opens the node of each entry


class Pairs(NamedTuple):
    """Pairs of a case and a control with position(case) < position(control), ready to be weighted.

    The matrices take the rows in the order of scores, in which one node's rows lie close together in memory.
    """

    order: Int[Array, "n"]  # rows in ascending order of score
    levels: list[Level]
    case_totals: sp.csr_matrix  # [P, n]: times weights, the weight of cases at each position
    control_totals: sp.csr_matrix  # [P, n]

    def count(
        self, case_weights: Float[Array, "n R"], control_weights: Float[Array, "n R"]
    ) -> tuple[Float[Array, "R"], Float[Array, "R"]]:
        """Case weight times control weight, summed over pairs whose case scores higher (equal: half) and over all."""
        case_weights, control_weights = (x.take(self.order, axis=0) for x in (case_weights, control_weights))
        won = np.zeros(case_weights.shape[1])
        for level in self.levels:
            controls = level.controls @ control_weights
            at = controls[1::2].copy()
            up_to = np.cumsum(controls, axis=0, out=controls)[1::2]
            below = up_to - 0.5 * at - up_to.take(level.node_starts, axis=0)
            won += np.einsum("gr,gr->r", level.cases @ case_weights, below)
        controls = self.control_totals @ control_weights
        above = np.cumsum(controls[::-1], axis=0)[::-1] - controls
        return won, np.einsum("pr,pr->r", self.case_totals @ case_weights, above)


def pairs(case_positions: Int[Array, "n"], control_positions: Int[Array, "n"], scores: Float[Array, "n"]) -> Pairs:
    """Prepare the pairs of rows; a row of case position -1 is no case, one of control position 0 no control."""
    num_positions = int(np.max(control_positions, initial=0)) + 1
    order = np.argsort(scores, kind="stable")
    ranks = np.cumsum(_is_first(scores[order]))
    case_positions, control_positions = case_positions[order], control_positions[order]
    # Cases above every control have no pair.
    cases = np.flatnonzero((case_positions >= 0) & (case_positions < num_positions))
    controls = np.flatnonzero(control_positions > 0)
    sides = (cases, case_positions[cases]), (controls, control_positions[controls])
    return Pairs(
        order,
        [_level(bit, *sides, ranks) for bit in range((num_positions - 1).bit_length())],
        *(_summing(positions, rows, (num_positions, len(order))) for rows, positions in sides),
    )


def _level(bit: int, cases: tuple, controls: tuple, ranks: np.ndarray) -> Level:
    num_rows = len(ranks)
    case_rows, case_keys = _in_node(bit, *cases, ranks, side=0)
    control_rows, control_keys = _in_node(bit, *controls, ranks, side=1)

    nodes = case_keys // (num_rows + 1)
    opens = nodes[_is_first(nodes)] * (num_rows + 1)
    entries = np.sort(np.concatenate([case_keys[_is_first(case_keys)], opens]), kind="stable")
    starts = np.searchsorted(entries, opens)
    place = np.searchsorted(entries, control_keys, side="left") + np.searchsorted(entries, control_keys, side="right")
    return Level(
        cases=_summing(np.searchsorted(entries, case_keys), case_rows, (len(entries), num_rows)),
        controls=_summing(place, control_rows, (2 * len(entries) + 1, num_rows)),
        node_starts=np.repeat(starts, np.diff(np.append(starts, len(entries)))),
    )


def _in_node(bit: int, rows, positions, ranks, *, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose bit is `side` by node, then score, and ascending keys that name their (node, score)."""
    chosen = (positions >> bit) & 1 == side
    rows, nodes = rows[chosen], positions[chosen] >> (bit + 1)
    num_nodes = int(np.max(nodes, initial=0)) + 1
    by_node = _summing(nodes, np.arange(len(rows)), (num_nodes, len(rows))).indices  # a counting sort, and stable
    rows, nodes = rows[by_node], nodes[by_node]
    return rows, nodes * (len(ranks) + 1) + ranks[rows]


def _is_first(ascending: np.ndarray) -> np.ndarray:
    """Which values differ from the one before."""
    return np.r_[True, ascending[1:] != ascending[:-1]][: len(ascending)]


def _summing(place: np.ndarray, rows: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """The matrix that sums weights of rows by place."""
    return sp.csr_matrix((np.ones(len(place)), (place, rows)), shape=shape)
