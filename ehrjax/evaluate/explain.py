"""Which codes and visits a patient's logit rests on: integrated gradients, and leaving visits out.

Both take any model that embeds codes by an `nn.Embed` named "embedding", and its patient-level logit in float32; rows
of several patients come as a TokenBatch. Attributions are in logits (log-odds of a binary label). They say what moved
this model, not what causes the outcome. Attention is in `ehrjax.evaluate.explain_attention`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ehrjax.models.pretraining import keep_only
from ehrjax.models.visit_lstm import VisitLstm, in_visit_order
from ehrjax.nn.segments import to_parts
from ehrjax.types import Array, TokenBatch, VisitBatch

Batch = VisitBatch | TokenBatch
# What a code is replaced by: nothing at all, or the vector of [MASK], which pre-training has taught to mean "some
# code". That of [PAD] is no choice: nothing trains it.
BASELINES: dict[str, int | None] = {"zero": None, "mask": 2}
CODE_LOOKUP = ("embedding", "__call__")  # name and method of the nn.Embed that turns codes into vectors


class Attributions(NamedTuple):
    """Parts of `logits - baseline_logits`: of each code, and summed over each visit. S is 1 for a VisitBatch.

    `gap` is what the sum of a sequence's attributions misses of that difference: the error of the quadrature.
    """

    codes: Float[np.ndarray, "B T"]  # as the batch's codes or tokens; 0 on special tokens and padding
    visits: Float[np.ndarray, "B V"]
    logits: Float[np.ndarray, "B S"]
    baseline_logits: Float[np.ndarray, "B S"]  # without codes, but with the times and number of the visits
    gap: Float[np.ndarray, "B S"]


def integrated_gradients(
    model: nn.Module, params: Any, batch: Batch, *, output: int = 0, baseline: str = "zero", num_steps: int = 64
) -> Attributions:
    """Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365) of logit `output` over the code embeddings.

    Each code's vector goes from the baseline ("zero", "mask") to its own along a straight line; [CLS], [SEP], ages and
    positions stay. Each sequence's attributions are those of its own logit. `num_steps` nodes of Gauss-Legendre, one
    forward and backward pass each; where `gap` is too large, take more.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline!r} is not known: use one of {', '.join(BASELINES)}.")
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    nodes, weights = (nodes + 1) / 2, weights / 2
    # Alpha = node squared puts more of them near 0, where a LayerNorm after the embedding turns quickly.
    path = (nodes**2).astype(np.float32), (2 * nodes * weights).astype(np.float32)
    integrate = _compiled_integral(patient_model(model), output, BASELINES[baseline])
    is_real = sequence_ids(batch) >= 0
    codes, logits, baseline_logits = jax.device_get(integrate(params, batch, is_real.astype(np.float32), *path))
    visits = sum_by_visit(codes, batch)
    totals = _sum_by_sequence(visits, batch)
    return Attributions(
        codes, visits, logits, baseline_logits, np.where(is_real, totals - (logits - baseline_logits), 0)
    )


@lru_cache(maxsize=16)
def _compiled_integral(model: nn.Module, output: int, baseline: int | None) -> Callable[..., tuple[jax.Array, ...]]:
    """`(params, batch, chosen [B S], alphas, weights)` -> attributions to the sum of the chosen logits, both logits."""

    def total(gates, params, batch, chosen):
        return (_gated_logits(model, params, batch, gates, output, baseline) * chosen).sum()

    @jax.jit
    def integrate(params, batch, chosen, alphas, weights):
        ones = jnp.ones(batch.code_visits.shape)

        def add(sums, node):
            alpha, weight = node
            return sums + weight * jax.grad(total)(alpha * ones, params, batch, chosen), None

        attributions, _ = jax.lax.scan(add, jnp.zeros_like(ones), (alphas, weights))
        logits = jax.lax.map(
            lambda gate: _gated_logits(model, params, batch, gate * ones, output, baseline), jnp.array([1.0, 0.0])
        )
        return attributions, *logits

    return integrate


def _gated_logits(model, params, batch, gates, output, baseline) -> Float[jax.Array, "B S"]:
    """Logits where each code's vector is `baseline + gate * (own - baseline)`; other tokens keep theirs.

    The derivative by a gate is the gradient by the vector times the way from the baseline: no [B T E] need be kept.
    """
    codes, is_used = embedded_order(model, batch), []
    if codes is not batch:
        gates = embedded_order(model, batch._replace(tokens=gates)).codes

    def gate(next_fun, args, kwargs, context):
        vectors = next_fun(*args, **kwargs)
        if not isinstance(context.module, nn.Embed) or (context.module.name, context.method_name) != CODE_LOOKUP:
            return vectors
        is_used.append(True)
        reference = 0.0 if baseline is None else next_fun(jnp.full_like(args[0], baseline))
        gated = reference + gates[..., None] * (vectors - reference)
        return jnp.where((codes.code_visits >= 0)[..., None], gated, vectors)

    with nn.intercept_methods(gate):
        logits = _patient_logits(model, params, batch, output)
    if not is_used:
        raise ValueError(f"{type(model).__name__} calls no nn.Embed of the name 'embedding': there is no path to take.")
    return logits


def occlude_visits(model: nn.Module, params: Any, batch: Batch, *, output: int = 0) -> Float[np.ndarray, "B V"]:
    """What each visit adds to its sequence's logit: with all visits, less without this one; no gradient is involved.

    The others keep their times, numbers and positions. 0 on padding, NaN for the only visit of a sequence.
    """
    visit_mask = np.asarray(batch.visit_mask)
    without = visit_mask & ~np.eye(visit_mask.shape[1], dtype=bool)[:, None]
    logits = _logits_of(model, params, batch, np.concatenate([visit_mask[None], without]), output)
    change = logits[0] - np.moveaxis(np.diagonal(logits[1:], axis1=0, axis2=2), -1, 1)
    counts = _sum_by_sequence(visit_mask.astype(np.float32), batch)
    segments = _visit_segments(batch)
    alone = np.take_along_axis(counts, np.maximum(segments - 1, 0), axis=1) == 1
    return np.where(visit_mask, np.where(alone, np.nan, change), 0.0)


def running_logits(model: nn.Module, params: Any, batch: Batch, *, output: int = 0) -> Float[np.ndarray, "B V"]:
    """The logit had the record ended with each visit; NaN on padding.

    A causal model's visit-level logits are the same numbers; here each visit is a pass of its own over what came up to
    it, so that models that read both ways have them too.
    """
    visit_mask = np.asarray(batch.visit_mask)
    so_far = visit_mask & np.tri(visit_mask.shape[1], dtype=bool)[:, None]
    logits = _logits_of(model, params, batch, so_far, output)
    return np.where(visit_mask, np.moveaxis(np.diagonal(logits, axis1=0, axis2=2), -1, 1), np.nan)


def _logits_of(model, params, batch, kept: Bool[np.ndarray, "M B V"], output) -> Float[np.ndarray, "M B V"]:
    """Logit of each visit's sequence, once for each choice of visits to keep."""
    return np.asarray(_compiled_choices(patient_model(model), output)(params, batch, kept))


@lru_cache(maxsize=16)
def _compiled_choices(model: nn.Module, output: int) -> Callable[..., jax.Array]:
    @jax.jit
    def logits_of(params, batch, kept):
        segments = jnp.asarray(_visit_segments(batch))

        def logits(visits):
            return to_parts(_patient_logits(model, params, _keep_visits(batch, visits), output), segments)

        return jax.lax.map(logits, kept)

    return logits_of


def _keep_visits(batch: Batch, visits: Bool[jax.Array, "B V"]) -> Batch:
    """The batch without the other visits; those of a TokenBatch close up, since a gap would part a sequence in two."""
    if isinstance(batch, VisitBatch):
        return batch._replace(visit_mask=visits)
    batch = keep_only(batch, visits=visits)
    order = jnp.argsort(~visits, axis=1, stable=True)
    columns = jnp.take_along_axis(jnp.cumsum(visits, axis=1) - 1, jnp.maximum(batch.code_visits, 0), axis=1)
    names = [name for name in TokenBatch._fields if name.startswith("visit_") and name != "visit_ids"]
    moved = {name: jnp.take_along_axis(jnp.asarray(getattr(batch, name)), order, axis=1) for name in names}
    return batch._replace(code_visits=jnp.where(batch.code_visits >= 0, columns, -1), **moved)


def explain_patients(
    model: nn.Module,
    params: Any,
    batch: Batch,
    tokens: Sequence[str],
    *,
    descriptions: Mapping[str, str] | None = None,
    output: int = 0,
    baseline: str = "zero",
) -> list[dict[str, Any]]:
    """A JSON-able table of each sequence of the batch: its logit, and what each visit and code added to it.

    `tokens` names the vocabulary's ids, `descriptions` the codes in words. A visit has `number`, `age` (years),
    `days_before_last`, `attribution` (sum over `codes`), `occlusion`, and `logit_after`, `risk_after` (had the record
    ended there). Risks are sigmoids: meant for binary and multi-label outputs. What is not defined is None.
    """
    parts = integrated_gradients(model, params, batch, output=output, baseline=baseline)
    occlusion = occlude_visits(model, params, batch, output=output)
    running = running_logits(model, params, batch, output=output)
    ids, segments, tables = sequence_ids(batch), np.asarray(_visit_segments(batch)), []
    for row, slot in zip(*np.nonzero(ids >= 0), strict=True):
        columns = np.flatnonzero(segments[row] == slot + 1)
        codes = [_code_rows(batch, parts.codes, row, column, tokens, descriptions or {}) for column in columns]
        logit = float(parts.logits[row, slot])
        table = {"example": int(ids[row, slot]), "logit": logit, "risk": _risk(logit)}
        table |= {"baseline_logit": float(parts.baseline_logits[row, slot]), "gap": float(parts.gap[row, slot])}
        changes = {"attribution": parts.visits, "occlusion": occlusion, "logit_after": running}
        visits = _visit_rows(batch, row, columns, changes)
        table["visits"] = [visit | {"codes": rows} for visit, rows in zip(visits, codes, strict=True)]
        tables.append(table)
    return tables


def _visit_rows(batch, row, columns, changes: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    ages, gap_days = (
        (batch.ages, batch.gap_days) if isinstance(batch, VisitBatch) else (batch.visit_ages, batch.visit_gap_days)
    )
    days = np.cumsum(np.asarray(gap_days, np.float64)[row, columns])
    rows = []
    for number, column in enumerate(columns):
        visit = {"number": number + 1, "age": _number(ages[row, column])}
        visit |= {"days_before_last": _number(days[-1] - days[number])}
        visit |= {name: _number(values[row, column]) for name, values in changes.items()}
        rows.append(visit | {"risk_after": _risk(visit["logit_after"])})
    return rows


def _code_rows(batch, attributions, row, column, tokens, descriptions) -> list[dict[str, Any]]:
    ids = np.asarray(batch.codes if isinstance(batch, VisitBatch) else batch.tokens)[row]
    places = np.flatnonzero(np.asarray(batch.code_visits)[row] == column)
    return [
        {
            "code": tokens[ids[place]],
            "description": describe(tokens[ids[place]], descriptions),
            "attribution": float(attributions[row, place]),
        }
        for place in places
    ]


def describe(token: str, descriptions: Mapping[str, str]) -> str:
    """The description of a token, or of its nearest ancestor along `//` with the rest behind it, or the token itself.

    >>> describe("LAB//LOINC//4548-4//Q3", {"LAB//LOINC//4548-4": "Hemoglobin A1c"})
    'Hemoglobin A1c (Q3)'
    """
    parts = token.split("//")
    for length in range(len(parts), 0, -1):
        name = descriptions.get("//".join(parts[:length]))
        if name:
            rest = "//".join(parts[length:])
            return f"{name} ({rest})" if rest else name
    return token


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _risk(logit: float | None) -> float | None:
    return None if logit is None else float(0.5 * (1.0 + np.tanh(0.5 * logit)))  # the sigmoid, without overflow


def sum_by_visit(values: Float[np.ndarray, "B T"], batch: Batch) -> Float[np.ndarray, "B V"]:
    """Sum of the values of each visit's codes."""
    sums = np.zeros(batch.visit_mask.shape)
    rows, columns = np.nonzero(np.asarray(batch.code_visits) >= 0)
    np.add.at(sums, (rows, np.asarray(batch.code_visits)[rows, columns]), np.asarray(values)[rows, columns])
    return sums


def sequence_ids(batch: Batch) -> Int[np.ndarray, "B S"]:
    """Example of each sequence of a row, -1 for none; a row of a VisitBatch is one sequence."""
    ids = np.asarray(batch.example_ids)
    return ids if ids.ndim == 2 else ids[:, None]


def _sum_by_sequence(values: Float[np.ndarray, "B V"], batch: Batch) -> Float[np.ndarray, "B S"]:
    members = np.asarray(_visit_segments(batch))[:, None] == np.arange(1, sequence_ids(batch).shape[1] + 1)[:, None]
    return np.where(members, np.asarray(values)[:, None], 0).sum(axis=-1)


def _visit_segments(batch: Batch) -> Int[Array, "B V"]:
    """Sequence of each visit, from 1; 0 for padding."""
    return batch.visit_mask.astype(np.int32) if isinstance(batch, VisitBatch) else batch.visit_segments


def patient_model(model: nn.Module) -> nn.Module:
    """The same model with a logit a patient, in float32 and with attention that has a gradient on every device."""
    wanted = {"level": "patient", "dtype": None, "path": None}
    return model.clone(**{field.name: wanted[field.name] for field in fields(model) if field.name in wanted})


def _patient_logits(model, params, batch, output) -> Float[jax.Array, "B S"]:
    logits = model.apply({"params": params}, batch).logits
    if logits is None:
        raise ValueError(f"{type(model).__name__} has no head: there is no logit to explain with num_outputs=0.")
    return logits[..., output].reshape(logits.shape[0], -1)


def embedded_order(model: nn.Module, batch: Batch) -> Batch:
    """The batch in the order in which the model embeds its codes."""
    return in_visit_order(batch) if isinstance(model, VisitLstm) and isinstance(batch, TokenBatch) else batch
