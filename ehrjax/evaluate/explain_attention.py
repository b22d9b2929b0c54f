"""Where a model's attention lies: over the codes of a visit, between tokens, and rolled out to the prediction.

Attention says where a model looks, not which way that moved the prediction (Jain & Wallace, 2019, arXiv:1902.10186);
for that see `ehrjax.evaluate.explain`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped

from ehrjax.evaluate.explain import Batch, embedded_order, patient_model
from ehrjax.models.hierarchical import Hierarchical
from ehrjax.models.visit_lstm import VisitLstm
from ehrjax.nn.segments import sequence_bounds
from ehrjax.nn.transformer import Block, Encoder, LayerNorm, rotate
from ehrjax.types import TokenBatch


def code_attention(
    model: VisitLstm, params: Any, batch: Batch
) -> tuple[Int[np.ndarray, "B V C"], Float[np.ndarray, "B V C"]]:
    """Codes of each visit and their weights in its attention pooling, which sum to 1; zeros where there is no code."""
    rows = embedded_order(model, batch)
    attention = _compiled_apply(model)(params, batch).attention
    if attention is None:
        raise ValueError("the model has no attention over codes: train a VisitLstm with pooling='attention'.")
    code_visits, num_visits = np.asarray(rows.code_visits), rows.visit_mask.shape[1]
    return tuple(lay_out_by_visit(np.asarray(values), code_visits, num_visits) for values in (rows.codes, attention))


def attention_maps(model: nn.Module, params: Any, batch: TokenBatch) -> Float[np.ndarray, "L B N T T"]:
    """Attention of each query (second last axis) to each key in every layer and head; rows of padding are zeros.

    Of BEHRT between tokens; of the hierarchical transformer between visits [L B N V V]. Memory is L B N T^2 floats, so
    pass a few rows.
    """
    maps = np.array(_compiled_maps(patient_model(model))(params, batch))
    is_query = np.asarray(batch.visit_mask if _attends_visits(model) else batch.segment_ids > 0)
    return np.where(is_query[None, :, None, :, None], maps, 0)


@lru_cache(maxsize=16)
def _compiled_maps(model: nn.Module) -> Callable[..., jax.Array]:
    @jax.jit
    def maps_of(params, batch):
        encoder, layers, (states, segment_ids, positions, causal) = _encoder_call(model, params, batch)
        block = Block(encoder.num_heads, encoder.ffn_dim)

        def run_layer(states, layer):
            normed = LayerNorm().apply({"params": layer["attention_norm"]}, states)
            qkv = layer["attention"]["qkv"]
            maps = _probabilities(normed, qkv, segment_ids, positions, encoder.num_heads, causal)
            states = block.apply({"params": layer}, states, segment_ids, positions, causal=causal, train=False)
            return states, maps

        return jax.lax.scan(run_layer, states, layers)[1]

    return maps_of


def _encoder_call(model: nn.Module, params: Any, batch: TokenBatch) -> tuple[Encoder, Any, tuple[Any, ...]]:
    """The model's transformer encoder, the stacked parameters of its layers, and what it is called with."""
    calls = []

    def read(inputs, segment_ids, positions=None, columns=None, *, causal, train=False):
        return inputs, segment_ids, positions, causal  # of all columns, where the model asks for a few

    def keep(next_fun, args, kwargs, context):
        if isinstance(context.module, Encoder) and context.method_name == "__call__":
            layers = context.module.variables["params"]["layers"]
            calls.append((context.module, layers, read(*args, **kwargs)))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(keep):
        model.apply({"params": params}, batch)
    if len(calls) != 1:
        raise ValueError(f"{type(model).__name__} calls {len(calls)} transformer encoders, not one: no maps.")
    return calls[0]


def _probabilities(inputs, qkv, segment_ids, positions, num_heads, causal) -> Float[jax.Array, "B N T T"]:
    """What `SelfAttention` weights values by; unlike there, the scores are always held as a whole."""
    projected = inputs @ qkv["kernel"] + qkv["bias"][None, None]
    q, k, _ = jnp.split(projected.reshape(*inputs.shape[:2], 3 * num_heads, -1), 3, axis=2)
    if positions is not None:
        q, k = rotate(q, positions), rotate(k, positions)
    groups = segment_ids if isinstance(segment_ids, tuple) else (segment_ids,)
    masks = jnp.stack([ids[:, :, None] == ids[:, None] for ids in groups], axis=1)
    masks = jnp.repeat(masks, num_heads // len(groups), axis=1)
    if causal:
        masks &= jnp.tri(inputs.shape[1], dtype=bool)[None, None]
    scores = jnp.einsum("btnh,bsnh->bnts", q, k) * q.shape[-1] ** -0.5
    return nn.softmax(jnp.where(masks, scores, -1e30), axis=-1)


def attention_rollout(maps: Float[np.ndarray, "L B N T T"]) -> Float[np.ndarray, "B T T"]:
    """Share of each input (last axis) in each state of the last layer (Abnar & Zuidema, 2020, arXiv:2005.00928).

    Heads are averaged, half of a state is its own (the residual), and layers multiply.
    """
    mixed = np.asarray(maps).mean(axis=2) + np.eye(maps.shape[-1], dtype=np.float32)
    rollout = np.broadcast_to(np.eye(maps.shape[-1], dtype=np.float32), maps.shape[1:2] + maps.shape[-2:])
    for layer in mixed / mixed.sum(axis=-1, keepdims=True):
        rollout = layer @ rollout
    return rollout


def prediction_rollout(model: nn.Module, params: Any, batch: TokenBatch) -> Float[np.ndarray, "B S T"]:
    """Attention rollout from where each sequence's prediction is read; rows sum to 1, zeros for no sequence.

    Over tokens, or over visits [B S V] for the hierarchical transformer. Poolings other than "last" and "cls" count as
    the mean over the sequence's codes.
    """
    return _readout(model, batch) @ attention_rollout(attention_maps(model, params, batch))


def _readout(model, batch: TokenBatch) -> Float[np.ndarray, "B S T"]:
    """Weight of each state of the encoder in what the head reads."""
    num_sequences, by_visit = batch.example_ids.shape[1], _attends_visits(model)
    num_states = (batch.visit_mask if by_visit else batch.tokens).shape[1]
    if model.pooling == "last":
        _, columns, _ = map(np.asarray, sequence_bounds(jnp.asarray(batch.visit_segments), num_sequences))
        columns = columns if by_visit else np.take_along_axis(np.asarray(batch.visit_ends), columns, axis=1)
    elif model.pooling == "cls":
        columns, _, _ = map(np.asarray, sequence_bounds(jnp.asarray(batch.segment_ids), num_sequences))
    else:
        code_visits, segments = np.asarray(batch.code_visits), np.asarray(batch.segment_ids)
        sequences = np.where(code_visits >= 0, segments, 0)[:, None]
        members = (sequences == np.arange(1, num_sequences + 1)[:, None]).astype(np.float32)
        states = code_visits if by_visit else np.broadcast_to(np.arange(num_states), code_visits.shape)
        sums = members @ (states[..., None] == np.arange(num_states))
        return sums / np.maximum(sums.sum(axis=-1, keepdims=True), 1)
    return (columns[..., None] == np.arange(num_states)) * (np.asarray(batch.example_ids) >= 0)[..., None]


def lay_out_by_visit(
    values: Shaped[np.ndarray, "B T"], code_visits: Int[np.ndarray, "B T"], num_visits: int
) -> Shaped[np.ndarray, "B V C"]:
    """Values of codes, visit by visit in their order; zeros behind. C is the largest number of codes in a visit."""
    rows, columns = np.nonzero(code_visits >= 0)
    visits = rows * num_visits + code_visits[rows, columns]
    counts = np.bincount(visits, minlength=len(values) * num_visits)
    places = np.arange(len(visits)) - np.repeat(np.cumsum(counts) - counts, counts)
    laid_out = np.zeros((len(counts), int(counts.max(initial=0))), values.dtype)
    laid_out[visits, places] = values[rows, columns]
    return laid_out.reshape(len(values), num_visits, -1)


@lru_cache(maxsize=16)
def _compiled_apply(model: nn.Module) -> Callable[..., Any]:
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch))


def _attends_visits(model: nn.Module) -> bool:
    return isinstance(model, Hierarchical)
