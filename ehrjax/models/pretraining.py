"""An encoder with the heads that pre-train it, and what each objective shows it of a batch.

The encoder is any model of token batches (`Outputs` from `encoder(batch, train=, causal=)`), best with
`num_outputs=0`. Its parameters stay as they are under "encoder", where fine-tuning takes them from; beside them are
"mlm_head", "next_visit_head" and "projection".
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ehrjax.nn.heads import MaskedCodeHead, NextVisitHead, ProjectionHead
from ehrjax.nn.segments import sequence_bounds, take_columns, to_parts
from ehrjax.nn.sequence_pooling import pool_sequences, token_visits
from ehrjax.types import MaskedCodes, Outputs, TokenBatch

HEADS = ("mlm", "next_visit", "pooled_next_visit", "contrastive")


class Pretraining(nn.Module):
    """Encoder and heads; call the methods by `model.apply(variables, batch, train, method="masked_logits")`.

    `code_tokens` [G] names the token that each token is predicted as, such as a code for all of its value bins: then
    values are read and codes predicted. `heads` names the objectives whose heads exist; both kinds of next-visit
    prediction share one. With `tie_embeddings` the masked codes are decoded by the encoder's own code embeddings.
    """

    encoder: nn.Module
    vocab_size: int
    code_tokens: tuple[int, ...] | None = None
    heads: tuple[str, ...] = ("mlm", "next_visit")
    tie_embeddings: bool = True
    projection_dim: int = 128

    def setup(self):
        unknown = sorted(set(self.heads) - set(HEADS))
        if unknown:
            raise ValueError(f"heads={unknown[0]!r} is not known: use some of {', '.join(HEADS)}.")
        if "mlm" in self.heads:
            self._check_token_states()
            self.mlm_head = MaskedCodeHead(self.vocab_size)
        if {"next_visit", "pooled_next_visit"} & set(self.heads):
            self.next_visit_head = NextVisitHead(self.vocab_size)
        if "contrastive" in self.heads:
            self.projection = ProjectionHead(self.projection_dim)

    def __call__(self, batch: TokenBatch, train: bool = False) -> Outputs:
        """The encoder's outputs; under `init` it makes the parameters of all heads, from any token batch."""
        outputs = self.encoder(batch, train=train)
        if self.is_initializing():
            if "mlm" in self.heads:
                self._decode_masked(outputs.tokens[:, :1])
            if hasattr(self, "next_visit_head"):
                self.next_visit_head(outputs.hidden)
            if "contrastive" in self.heads:
                self.projection(outputs.pooled)
        return outputs

    def masked_logits(self, batch: TokenBatch, train: bool = False) -> Float[Array, "B M G"]:
        """Logits at the masked positions alone, from all other tokens; the true tokens there are not read."""
        self._check_token_states()
        masked = _require(batch.masked, "masked", "mask_rate")
        states = self._states_at(masked.positions, show_masked(batch, masked), causal=False, train=train)
        return self._only_predicted(self._decode_masked(states))

    def next_visit_logits(self, batch: TokenBatch, train: bool = False) -> Float[Array, "B V G"]:
        """Logits of the codes of visit v + 1 in column v, from the visits up to v, in one causal pass."""
        if reads_columns(self.encoder):
            hidden = self._states_at(batch.visit_ends, batch, causal=True, train=train)
        else:
            hidden = self.encoder(batch, train=train, causal=True).hidden
        return self._only_predicted(self.next_visit_head(hidden))

    def pooled_next_visit_logits(self, batch: TokenBatch, train: bool = False) -> Float[Array, "B S G"]:
        """Logits of the codes of each sequence's last visit, from the pooled visits before it."""
        history = keep_only(batch, visits=~is_last_visit(batch))
        return self._only_predicted(self.next_visit_head(self.encoder(history, train=train).pooled))

    def sequence_vectors(self, batch: TokenBatch, train: bool = False) -> Float[Array, "B S D"]:
        """A vector of each sequence: the mean of its codes' states, each of which sees all of it.

        Of models of visits: what they pool.
        """
        if not has_token_states(self.encoder):
            return self.encoder(batch, train=train).pooled
        outputs = self.encoder(batch, train=train, causal=False)
        return pool_sequences("mean", outputs.tokens, outputs.hidden, batch)

    def project(self, batch: TokenBatch, train: bool = False) -> Float[Array, "B S P"]:
        """What contrast compares of each sequence, from its vector."""
        return self.projection(self.sequence_vectors(batch, train))

    def predicted_as(self, tokens: Int[Array, "*shape"]) -> Int[Array, "*shape"]:
        """What these tokens are predicted as."""
        tokens = jnp.asarray(tokens)
        return tokens if self.code_tokens is None else jnp.asarray(self.code_tokens, tokens.dtype)[tokens]

    def _only_predicted(self, logits: Float[Array, "*shape G"]) -> Float[Array, "*shape G"]:
        """Logits so low that softmax and sigmoid give 0 for tokens that are predicted as another."""
        if self.code_tokens is None:
            return logits
        is_predicted = np.asarray(self.code_tokens) == np.arange(self.vocab_size)
        return jnp.where(is_predicted.reshape((1,) * (logits.ndim - 1) + (-1,)), logits, -1e30)

    def _states_at(self, columns, batch, *, causal, train):
        """Token states [B M D] at some columns, by computing no others where the encoder can."""
        if reads_columns(self.encoder):
            return self.encoder(batch, train=train, causal=causal, columns=columns).tokens
        return take_columns(self.encoder(batch, train=train, causal=causal).tokens, columns)

    def _decode_masked(self, states):
        # Only a bound encoder that has run holds its parameters while they are being made.
        table = self.encoder.variables["params"]["embedding"]["embedding"] if self.tie_embeddings else None
        return self.mlm_head(states, table)

    def _check_token_states(self):
        if not has_token_states(self.encoder):
            raise ValueError(
                f"{type(self.encoder).__name__} has states of visits and none of tokens, so it cannot fill in masked "
                "codes: pre-train it by next_visit, pooled_next_visit or contrastive, or take a model of tokens."
            )


def has_token_states(encoder: nn.Module) -> bool:
    """Whether the model computes `Outputs.tokens`, and can then also read both ways."""
    return getattr(encoder, "has_token_states", True)


def reads_columns(encoder: nn.Module) -> bool:
    """Whether the model can compute the states of some columns alone (`columns` of its call)."""
    return getattr(encoder, "reads_columns", False)


def show_masked(batch: TokenBatch, masked: MaskedCodes) -> TokenBatch:
    """The batch with `masked.shown` in place of the tokens at the masked positions."""
    num_tokens = batch.tokens.shape[1]
    # Padding slots point at column 0, whose token must stay: send them past the row's end, where they are dropped.
    columns = jnp.where(masked.mask, masked.positions, num_tokens)
    rows = jnp.arange(columns.shape[0])[:, None]
    tokens = jnp.asarray(batch.tokens).at[rows, columns].set(masked.shown, mode="drop")
    return batch._replace(tokens=tokens)


def is_last_visit(batch: TokenBatch) -> Bool[Array, "B V"]:
    """The last visit of each sequence."""
    _, last, _ = sequence_bounds(batch.visit_segments, batch.example_ids.shape[1])
    columns = jnp.arange(batch.visit_mask.shape[1])[None]
    return (columns == to_parts(last, batch.visit_segments)) & batch.visit_mask


def keep_only(batch: TokenBatch, *, visits: Bool[Array, "B V"], codes: Bool[Array, "B T"] | None = None) -> TokenBatch:
    """The batch with the other visits, and other codes, turned into padding where they stand; shapes stay.

    What remains keeps its position, age and visit number. [CLS] stays, a visit's [SEP] goes with the visit; the
    entries of `codes` at special tokens are not read. Padding may then stand between tokens of a sequence.
    """
    visits = visits & batch.visit_mask
    owners = token_visits(batch)
    kept = (owners < 0) | jnp.take_along_axis(visits, jnp.maximum(owners, 0), axis=1)
    if codes is not None:
        kept &= codes | (batch.code_visits < 0)
    masked = {
        name: jnp.where(kept, getattr(batch, name), 0)
        for name in ("tokens", "ages", "visit_ids", "positions", "segment_ids")
    }
    for name in ("visit_ends", "visit_segments", "visit_ages", "visit_gap_days"):
        masked[name] = jnp.where(visits, getattr(batch, name), 0)
    return batch._replace(code_visits=jnp.where(kept, batch.code_visits, -1), visit_mask=visits, **masked)


def _require(part, name, option):
    if part is None:
        raise ValueError(f"the batch has no `{name}`: build the token batches with {option} set.")
    return part
