"""The containers that flow between data, models and training, and the letters that name their dimensions.

B rows, T tokens, S key tokens, V visits, C codes in a visit, N heads, H head size, D width, G vocabulary, K outputs,
L layers, E examples. Masks are True where the value is real. Every container is a NamedTuple, hence a JAX pytree, and
holds NumPy arrays on the host and JAX arrays on a device; this module imports neither.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int, Shaped

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


class Outputs(NamedTuple):
    """What a model returns; a field that a model does not compute is None."""

    logits: Float[Array, "B K"] | None = None  # or [B V K]
    pooled: Float[Array, "B D"] | None = None
    hidden: Float[Array, "B V D"] | None = None
    attention: Float[Array, "B T"] | None = None  # weight of each code in its visit


class LossOutput(NamedTuple):
    """A loss as a sum and the weight to divide it by, so that sums over batches stay exact."""

    loss_sum: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, tuple[Any, Any]] = {}  # noqa: RUF012 - name -> (sum, weight), on device
