"""The containers that flow between data, models and training, and the letters that name their dimensions.

B rows, T tokens, S key tokens, V visits, C codes in a visit, N heads, H head size, D width, G vocabulary, K outputs,
L layers, E examples. Masks are True where the value is real. Every container is a NamedTuple, hence a JAX pytree, and
holds NumPy arrays on the host and JAX arrays on a device; this module imports neither.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped

FIRST_CODE = 5  # token ids below are special: [PAD], [UNK], [MASK], [CLS], [SEP]
Array = Any  # numpy.ndarray on the host, jax.Array on the device


class VisitSequences(NamedTuple):
    """Examples as ragged visits of token ids (CSR): what `ehrjax.data.sequences` makes and batching reads.

    Example e owns visits `example_offsets[e]:example_offsets[e + 1]`, oldest first; visit v owns codes
    `visit_offsets[v]:visit_offsets[v + 1]`, ordered by type. `labels` has one row an example, or one row a visit when
    the task is visit-level (then its length is the number of visits). `label_mask` marks the labels that count.
    """

    codes: Int[Array, "num_codes"]
    visit_offsets: Int[Array, "num_visits+1"]
    example_offsets: Int[Array, "E+1"]
    ages: Float[Array, "num_visits"]  # years at the visit's start
    gap_days: Float[Array, "num_visits"]  # days since the previous visit's start, 0 for the first
    subject_ids: Int[Array, "E"]
    times: Int[Array, "E"]  # index time, seconds since 1970-01-01
    labels: Shaped[Array, "rows K"]
    label_mask: Bool[Array, "rows K"]
    segment_ids: Int[Array, "num_visits"] | None = (
        None  # packed rows (data/packing.py): which patient of the row, from 1
    )


class VisitBatch(NamedTuple):
    """One batch of visit sequences, padded along patients (B), visits (V) and codes (T), never along codes in a visit.

    A row lists all its codes, visit after visit, and `code_visits` says which visit holds each. A few visits have ten
    times the codes of the others, so the layout [B V C] would be nine tenths padding.
    """

    codes: Int[Array, "B T"]
    code_visits: Int[Array, "B T"]  # column of the visit that holds the code, ascending in a row; -1 for padding
    visit_mask: Bool[Array, "B V"]
    ages: Float[Array, "B V"]  # years at the visit's start
    gap_days: Float[Array, "B V"]  # days since the previous visit's start
    labels: Shaped[Array, "B K"]  # or [B V K] for visit-level tasks
    label_mask: Bool[Array, "B K"]  # the shape of labels; False on padding rows and padding visits
    example_mask: Bool[Array, "B"]
    example_ids: Int[Array, "B"]  # row in the VisitSequences, -1 for padding rows
    segment_ids: Int[Array, "B V"] | None = None  # packed rows: which patient of the row, from 1; 0 for padding


class MaskedCodes(NamedTuple):
    """Tokens that a model has to fill in, as many slots a row as the fullest row needs."""

    positions: Int[Array, "B M"]  # column in the row's tokens, ascending; 0 in padding slots
    shown: Int[Array, "B M"]  # what stands there instead: [MASK], a random code, or the code itself
    mask: Bool[Array, "B M"]


class NextVisits(NamedTuple):
    """Which visits are to be predicted from the visits before them, and which tokens are their code sets."""

    codes: Bool[Array, "B T"]  # first occurrence of a code in a visit that is to be predicted
    visits: Bool[Array, "B V"]  # the visit's code set is to be predicted from the state after the visit before it


class TokenBatch(NamedTuple):
    """Rows of token sequences `[CLS] visit 1 [SEP] visit 2 [SEP] ..`, several patients packed into a row.

    `segment_ids` says which of the row's sequences a token belongs to (from 1; 0 is padding). Positions, visit numbers
    and ages start afresh with each sequence; ages and visit numbers are 0 on special tokens. V counts the visits of a
    row, of all its sequences one after another, and S its sequences. Labels belong to visits (R = V) or to sequences
    (R = S).
    """

    tokens: Int[Array, "B T"]
    ages: Int[Array, "B T"]  # completed years at the visit's start plus 1; 0 on special tokens
    visit_ids: Int[Array, "B T"]  # number of the visit in its sequence, from 1; 0 on special tokens
    positions: Int[Array, "B T"]  # from 0 in each sequence
    segment_ids: Int[Array, "B T"]
    code_visits: Int[Array, "B T"]  # column (of V) of the visit that holds the code; -1 on special tokens and padding
    visit_ends: Int[Array, "B V"]  # column (of T) of the [SEP] that closes the visit; 0 for padding
    visit_mask: Bool[Array, "B V"]
    visit_segments: Int[Array, "B V"]  # as segment_ids; 0 for padding
    visit_ages: Float[Array, "B V"]  # years at the visit's start
    visit_gap_days: Float[Array, "B V"]  # days since the previous visit's start
    labels: Shaped[Array, "B R K"]
    label_mask: Bool[Array, "B R K"]
    example_mask: Bool[Array, "B"]  # the row holds a sequence
    example_ids: Int[Array, "B S"]  # number of each sequence; -1 for padding
    masked: MaskedCodes | None = None
    next_visits: NextVisits | None = None


class StayBatch(NamedTuple):
    """Windows of hospital stays, each up to its index time: vital signs on a regular grid, the notes' mean vector.

    Here T counts time points (oldest first), K variables, S statics, U summaries, D the width of a note vector and O
    labels. Values are scaled and filled; what a mask covers may hold anything and reaches no result.
    """

    values: Float[Array, "B T K"]
    observed: Bool[Array, "B T K"]  # measured in that bin, not filled in
    hours_since: Float[Array, "B T K"]  # since the variable was last measured
    time_mask: Bool[Array, "B T"]
    statics: Float[Array, "B S"]  # age, sex, ..: scaled, missing ones filled and flagged
    summaries: Float[Array, "B U"]  # of the window, of each variable (data/vital_summaries.py): scaled, 0 if missing
    notes: Float[Array, "B D"]  # zeros without notes
    has_vitals: Bool[Array, "B"]
    has_notes: Bool[Array, "B"]
    labels: Shaped[Array, "B O"]
    label_mask: Bool[Array, "B O"]  # False on padding rows
    example_mask: Bool[Array, "B"]
    example_ids: Int[Array, "B"]  # row among the stays, -1 for padding rows


class Outputs(NamedTuple):
    """What a model returns; a field that a model does not compute is None."""

    logits: Float[Array, "B K"] | None = None  # or [B V K], or [B S K] for the sequences of packed rows
    pooled: Float[Array, "B D"] | None = None  # or [B S D]
    hidden: Float[Array, "B V D"] | None = None  # after each visit, or each time point of a stay
    tokens: Float[Array, "B T D"] | None = None  # of each token
    attention: Float[Array, "B T"] | None = None  # weight of each code in its visit


class LossOutput(NamedTuple):
    """A loss as a sum and the weight to divide it by, so that sums over batches stay exact."""

    loss_sum: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, tuple[Any, Any]] = {}  # noqa: RUF012 - name -> (sum, weight), on device
